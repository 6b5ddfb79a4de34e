"""Clipping draws nothing and hides nothing but a length: the simulation clips as the client does, wherever it does."""

from attacker.adaptation.link import Link, Part, not_followed
from attacker.gradient_clipping import GradientClipping, clipped


def clipping(link: Link) -> Part:
    """Return the part that clips examples, steps or the update."""
    norm, where = link.option("clip_norm"), link.defense.where
    if where == "example":
        return Part(clipping=GradientClipping(example=norm), done=f"clipping of examples to {norm:g}")
    if not link.acts_on_what_is_sent:
        return Part(clipping=GradientClipping(step=norm), done=f"clipping of steps to {norm:g}")
    if link.client.num_rounds > 1 and link.variance:
        return not_followed(link, "each round was clipped with noise of its own")
    # The noise was clipped with the update: as much of its energy as is expected counts.
    hidden = sum(tensor.numel() * link.variance.get(name, 0.0) for name, tensor in link.observed.items())
    own = norm / link.client.unit
    return Part(
        follow=lambda simulated: clipped(simulated, own, hidden_energy=hidden),
        done=f"clipping of the update to {norm:g}",
    )
