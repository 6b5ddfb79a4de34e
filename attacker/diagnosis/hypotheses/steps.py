"""More or fewer local epochs, larger or smaller batches, or other batches of the same size."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from attacker.diagnosis.inquiry import Finding, Inquiry
from attacker.diagnosis.replay import Variation, num_steps, random_visits, replay
from attacker.diagnosis.residual import energy
from fl_sim.seeds import generator

_MOST_SMALL_SIZES = 16
_MOST_STEPS = 1500
"""Local steps that are replayed for pairs of epochs and batch size."""
_ORDERS = 24
"""Random orders from which it is learnt how far orders differ."""
_LEAST_SHARE = 0.01
"""Of what orders differ by: less of it is left by something else."""


def most_epochs(epochs: int) -> int:
    """Return the largest number of epochs that is tried where ``epochs`` are declared."""
    return min(2 * epochs + 2, epochs + 10)


def epochs(inquiry: Inquiry) -> list[Finding]:
    """Try other numbers of local epochs."""
    return _best(inquiry, [(number, inquiry.training.recipe.batch_size) for number in _other_epochs(inquiry)])


def batch_size(inquiry: Inquiry) -> list[Finding]:
    """Try other batch sizes, and leaving out the last, smaller batch."""
    recipe, found = inquiry.training.recipe, list[Finding]()
    size = recipe.batch_size or inquiry.training.num_examples
    if inquiry.training.num_examples % size and inquiry.training.num_examples > size:
        drops = replace(inquiry.training.declared(), drops_last=True)
        found.append(inquiry.tried("batch_size", "the last, smaller batch of an epoch is left out", drops))
    found.extend(_best(inquiry, [(recipe.epochs, other) for other in _other_sizes(inquiry)]))
    return found


def epochs_and_batch_size(inquiry: Inquiry) -> list[Finding]:
    """Try pairs of both, those of the fewest steps first; dear, and so only where nothing else explains the update."""
    pairs = [(number, other) for number in _other_epochs(inquiry) for other in _other_sizes(inquiry)]
    return _best(inquiry, list(_affordable(inquiry, pairs)))


def batch_order(inquiry: Inquiry) -> list[Finding]:
    """Look whether the client kept its images in their order, or drew another order than the run's seeds tell."""
    training = inquiry.training
    declared = training.declared()
    if training.recipe.batches_per_epoch(training.num_examples) == 1:
        return []
    static = torch.arange(training.num_examples).expand(training.recipe.epochs, -1)
    found: list[Finding] = []
    if not all(torch.equal(visit[: training.recipe.epochs], static) for visit in training.visits):
        detail = "images are visited in the client's own order, without shuffling"
        found.append(inquiry.tried("batch_order", detail, replace(declared, visits=(static,))))
    if training.knows_order:
        draw = generator(0, "diagnosis-of-order")
        visits = random_visits(training.num_examples, training.recipe.epochs, draw, num_draws=_ORDERS)
        replayed = replay(training, replace(declared, visits=visits))
        residual = inquiry.residual_of(replayed)
        expected = replayed.variance / (energy(inquiry.delta) or 1.0)
        detail = (
            "another random order: what is left is as much as two orders differ "
            f"({expected:.1e} of the energy), the batches cannot be told"
        )
        # Much less than that is not another order, but something that orders drown.
        if inquiry.residual >= _LEAST_SHARE * expected:
            evidence = inquiry.evidence(residual, replayed.variance)
            found.append(Finding(cause="batch_order", detail=detail, residual=residual, evidence=evidence))
    return found


def _best(inquiry: Inquiry, pairs: list[tuple[int, int | None]]) -> list[Finding]:
    """Return the best finding of some numbers of epochs with batch sizes."""
    tried = [_tried(inquiry, number, size) for number, size in pairs]
    found = [finding for finding in tried if finding is not None]
    return [min(found, key=lambda finding: finding.residual)] if found else []


def _tried(inquiry: Inquiry, number: int, size: int | None) -> Finding | None:
    recipe = inquiry.training.recipe
    differs = [
        text
        for text, is_other in (
            (f"E = {number} where {recipe.epochs} is declared", number != recipe.epochs),
            (f"m = {_size(size)} where {_size(recipe.batch_size)} is declared", size != recipe.batch_size),
        )
        if is_other
    ]
    cause = "epochs_and_batch_size" if len(differs) > 1 else "batch_size" if number == recipe.epochs else "epochs"
    variation = _variation(inquiry, number, size)
    try:
        finding = inquiry.tried(cause, " and ".join(differs), variation)
    except ValueError:
        return None  # BatchNorm refuses a batch of one value for each channel: the client cannot have done that
    # Whole numbers out of a few dozen are no fit, but two of them are more than one.
    return replace(finding, num_fitted=len(differs) - 1)


def _variation(inquiry: Inquiry, number: int, size: int | None) -> Variation:
    return inquiry.training.declared().with_recipe(epochs=number, batch_size=size)


def _size(size: int | None) -> str:
    return "all" if size is None else str(size)


def _other_epochs(inquiry: Inquiry) -> list[int]:
    declared = inquiry.training.recipe.epochs
    return [number for number in range(1, most_epochs(declared) + 1) if number != declared]


def _other_sizes(inquiry: Inquiry) -> list[int | None]:
    """Return batch sizes that make other batches than the declared one: all small ones, and powers of two."""
    num_examples = inquiry.training.num_examples
    declared = inquiry.training.recipe.batch_size or num_examples
    sizes = {size for size in range(1, num_examples) if size <= _MOST_SMALL_SIZES or size.bit_count() == 1}
    others: list[int | None] = [size for size in sorted(sizes) if size != declared]
    return others if declared >= num_examples else [*others, None]


def _affordable(inquiry: Inquiry, pairs: list[tuple[int, int | None]]) -> Iterator[tuple[int, int | None]]:
    """Yield the pairs of fewest steps first, as far as the steps go round."""
    steps = {pair: num_steps(_variation(inquiry, *pair), inquiry.training.num_examples) for pair in pairs}
    total = 0
    for pair, number in sorted(steps.items(), key=lambda item: item[1]):
        total += number
        if total > _MOST_STEPS:
            return
        yield pair
