"""The platform: a Flower federation whose server writes down everything that it receives."""
