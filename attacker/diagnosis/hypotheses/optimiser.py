"""Local SGD with another momentum, with Nesterov's, or with weight decay."""

from dataclasses import replace

from attacker.diagnosis.inquiry import Evidence, Finding, Inquiry
from attacker.diagnosis.replay import Variation, replay
from attacker.diagnosis.residual import difference, energy, inner
from fl_sim.parameters import scale

_USUAL = (0.0, 0.5, 0.9, 0.95, 0.99)


def momentum(inquiry: Inquiry) -> list[Finding]:
    """Find another momentum, from the usual ones on; a single step has none."""
    if inquiry.training.num_steps == 1:
        return []
    plain, declared = inquiry.training.declared(), inquiry.training.recipe.momentum
    found: list[Finding] = []
    for is_nesterov in (False, True):
        number, finding = _best_momentum(inquiry, replace(plain, nesterov=is_nesterov), declared)
        if number > 1e-3 if is_nesterov else abs(number - declared) > 1e-3:
            found.append(finding)
    return found


def _best_momentum(inquiry: Inquiry, plain: Variation, declared: float) -> tuple[float, Finding]:
    def with_momentum(number: float) -> Variation:
        return plain.with_recipe(momentum=number)

    others = [number for number in _USUAL if number != declared or plain.nesterov]
    usual = {number: replay(inquiry.training, with_momentum(number)) for number in others}
    number = min(usual, key=lambda one: inquiry.residual_of(usual[one]))
    replayed, num_fitted = usual[number], 0
    if inquiry.evidence(inquiry.residual_of(replayed)) is not Evidence.EXACT:
        neighbour = number - 0.02 if number > 0.5 else number + 0.02
        number, replayed = inquiry.fit(with_momentum, (neighbour, number), (0.0, 0.999))
        num_fitted = 1
    name = "Nesterov momentum" if plain.nesterov else "momentum"
    detail = f"{name} {number:.4g} where momentum {declared:g} is declared"
    return number, inquiry.found("momentum", detail, replayed, num_fitted=num_fitted)


def weight_decay(inquiry: Inquiry) -> list[Finding]:
    """Find the weight decay that explains most: that of a single step solves a linear equation, the rest is a fit."""
    training = inquiry.training
    weights = {name: training.weights[name] for name in inquiry.delta}
    pull = scale(weights, -training.recipe.learning_rate * training.num_steps)
    if not energy(pull):
        return []
    first = inner(difference(inquiry.delta, inquiry.plain.delta), pull) / energy(pull)
    if first == 0.0:
        return []
    decay, replayed = inquiry.fit(
        lambda number: replace(training.declared(), weight_decay=number), (0.0, first), (-1e3, 1e3)
    )
    if decay <= 0:
        return []
    return [inquiry.found("weight_decay", f"weight decay {decay:.4g} where none is declared", replayed, num_fitted=1)]
