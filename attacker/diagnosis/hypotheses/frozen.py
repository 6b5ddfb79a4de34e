"""Tensors that the client does not train."""

from dataclasses import replace

from attacker.diagnosis.inquiry import Finding, Inquiry


def frozen(inquiry: Inquiry) -> list[Finding]:
    """Find tensors that came back exactly as they were sent out, although they have a gradient."""
    unchanged = [name for name, tensor in inquiry.delta.items() if not tensor.any() and _would_move(inquiry, name)]
    if not unchanged:
        return []
    if len(unchanged) == len(inquiry.delta):
        detail = "no tensor changed at all: the client did not train, or sent back what it got"
    else:
        detail = f"unchanged, although they have a gradient: {', '.join(unchanged)}"
    return [inquiry.tried("frozen", detail, replace(inquiry.training.declared(), frozen=frozenset(unchanged)))]


def _would_move(inquiry: Inquiry, name: str) -> bool:
    """Say whether a tensor's replayed update is more than the steps' rounding hides."""
    hidden = inquiry.training.num_steps * inquiry.roundings(name)
    return bool((inquiry.plain.delta[name].abs() > hidden).any())
