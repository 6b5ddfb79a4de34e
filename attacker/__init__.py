"""The attack: gradient inversion on recorded updates, by an honest-but-curious server."""
