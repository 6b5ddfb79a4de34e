"""The client's training with the true images, as declared or with something changed.

    w <- w - eta u,   u = momentum(g + lambda w),   g = the gradient of a step by `simulate_local_update`

In double precision, so that what is left between replay and recording is the client's doing. Where the order of the
batches or dropout is not known, several draws are replayed: their mean, and how far they lie apart.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacker.batch_norm import batch_norm_layers
from attacker.diagnosis.residual import difference, energy
from attacker.gradient_clipping import GradientClipping
from attacker.local_update import simulate_local_update
from fl_sim.parameters import Parameters, subtract, weighted_mean
from fl_sim.records import LocalTraining

_ONE_STEP = LocalTraining(learning_rate=1.0)
_NUM_DRAWS = 6
_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredTraining:
    """What the client is said to have done, on the images that it really has; all floating tensors in float64.

    Attributes:
        model: The architecture, in training mode.
        weights: w_t, in the model's order.
        buffers: The buffers sent out with w_t.
        images: (N, C, H, W), pixels in [0, 1].
        labels: (N,), int64.
        mean: (C, 1, 1), of the public normalisation, in pixel units.
        std: (C, 1, 1), likewise.
        recipe: E, m, eta, momentum.
        visits: Orders of visits, each (E', N) with E' >= E: the client's own alone where it is known, else several
            random ones. Rows beyond E are those that the client would have drawn next.
        knows_order: Whether ``visits`` is the client's own.
    """

    model: nn.Module
    weights: Parameters
    buffers: Mapping[str, Tensor]
    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    recipe: LocalTraining
    visits: tuple[Tensor, ...]
    knows_order: bool = True

    @property
    def num_examples(self) -> int:
        """N_c."""
        return len(self.labels)

    @property
    def num_steps(self) -> int:
        """U_c."""
        return self.recipe.steps(self.num_examples)

    @property
    def draws_dropout(self) -> bool:
        """Whether the model drops units at random in training mode."""
        return any(isinstance(module, _DROPOUT) and module.p > 0 for module in self.model.modules())

    def declared(self) -> "Variation":
        """Return the training as it is declared, to be changed."""
        return Variation(recipe=self.recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """A training that may differ from the declared one.

    Attributes:
        recipe: E, m, eta, momentum.
        images: Pixels in place of the true ones; ``None``: those.
        visits: Orders in place of the known ones; ``None``: those.
        nesterov: Takes Nesterov's momentum.
        weight_decay: lambda, added to the gradient as lambda w.
        sums_loss: Sums the loss over a batch, where the mean is declared.
        ascends: Climbs the loss.
        drops_last: Leaves out a last batch that is smaller than m.
        frozen: Tensors that are not trained.
        clipping: Of the gradients of examples and of steps.
        batch_norm_eval: BatchNorm layers normalise by their running statistics.
        dropout_off: Dropout layers let everything through.
    """

    recipe: LocalTraining
    images: Tensor | None = None
    visits: tuple[Tensor, ...] | None = None
    nesterov: bool = False
    weight_decay: float = 0.0
    sums_loss: bool = False
    ascends: bool = False
    drops_last: bool = False
    frozen: frozenset[str] = frozenset()
    clipping: GradientClipping | None = None
    batch_norm_eval: bool = False
    dropout_off: bool = False

    def with_recipe(self, **changes: float | int | None) -> "Variation":
        """Return the same with other fields of the recipe."""
        return replace(self, recipe=replace(self.recipe, **changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a training gives.

    Attributes:
        delta: w_U - w_t by name, the mean over the draws.
        variance: Energy by which a further draw is expected to differ from ``delta``; 0 where nothing is drawn.
    """

    delta: dict[str, Tensor]
    variance: float = 0.0


def replay(training: DeclaredTraining, variation: Variation) -> Replay:
    """Train on the true images.

    Args:
        training: The client's training as declared.
        variation: What is done in its place; `DeclaredTraining.declared` changes nothing.

    Returns:
        The update; averaged over draws of what is not known.

    Raises:
        ValueError: If examples are to be clipped in a model with BatchNorm in training mode, or there are not enough
            orders for the epochs.
    """
    model = _in_mode(training.model, variation)
    visits = training.visits if variation.visits is None else variation.visits
    draws_masks = training.draws_dropout and not variation.dropout_off
    if draws_masks and len(visits) == 1:
        visits = visits * _NUM_DRAWS
    deltas: list[dict[str, Tensor]] = []
    for draw, visit in enumerate(visits):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw)  # of the dropout masks only
            deltas.append(_train(model, training, variation, visit))
    mean = weighted_mean(deltas, [1.0] * len(deltas))
    number = len(deltas)
    if number == 1:
        return Replay(delta=mean)
    spread = sum(energy(difference(delta, mean)) for delta in deltas) / (number - 1)
    return Replay(delta=mean, variance=spread * (1.0 + 1.0 / number))


def random_visits(
    num_examples: int, epochs: int, generator: torch.Generator, *, num_draws: int = _NUM_DRAWS
) -> tuple[Tensor, ...]:
    """Draw orders of visits, each (E, N), for what is not known."""
    return tuple(
        torch.stack([torch.randperm(num_examples, generator=generator) for _ in range(epochs)])
        for _ in range(num_draws)
    )


def num_steps(variation: Variation, num_examples: int) -> int:
    """Return the local steps that a variation takes."""
    return sum(1 for _ in _batches(variation, torch.arange(num_examples).expand(variation.recipe.epochs, -1)))


def _train(model: nn.Module, training: DeclaredTraining, variation: Variation, visit: Tensor) -> dict[str, Tensor]:
    images = training.images if variation.images is None else variation.images
    recipe = variation.recipe
    if len(visit) < recipe.epochs:
        raise ValueError(f"visits must hold an order for each of {recipe.epochs} epochs, got {len(visit)}")
    start = {name: tensor for name, tensor in training.weights.items() if name not in variation.frozen}
    # What is not trained goes to the model as a buffer does.
    kept = {**training.buffers, **{name: training.weights[name] for name in variation.frozen}}
    weights: dict[str, Tensor] = dict(start)
    velocity: dict[str, Tensor] = {}
    for batch in _batches(variation, visit):
        gradient = simulate_local_update(
            model, weights, kept, images[batch], training.labels[batch], _ONE_STEP, clipping=variation.clipping
        )
        factor = (-1.0 if variation.ascends else 1.0) * (len(batch) if variation.sums_loss else 1.0)
        steps = {name: factor * own + variation.weight_decay * weights[name] for name, own in gradient.items()}
        if recipe.momentum:
            velocity = {
                name: step + (recipe.momentum * velocity[name] if velocity else 0.0) for name, step in steps.items()
            }
            steps = (
                {name: step + recipe.momentum * velocity[name] for name, step in steps.items()}
                if variation.nesterov
                else velocity
            )
        weights = {name: tensor - recipe.learning_rate * steps[name] for name, tensor in weights.items()}
    moved = subtract(weights, start)
    return {name: moved[name] if name in moved else torch.zeros_like(own) for name, own in training.weights.items()}


def _batches(variation: Variation, visit: Tensor) -> Iterator[Tensor]:
    recipe, num_examples = variation.recipe, visit.shape[1]
    size = recipe.batch_size or num_examples
    for order in visit[: recipe.epochs]:
        for batch in order.split(size):
            if len(batch) == size or not variation.drops_last:
                yield batch


def _in_mode(model: nn.Module, variation: Variation) -> nn.Module:
    """Return the model, or a copy of it some layers of which are in evaluation mode."""
    if not variation.batch_norm_eval and not variation.dropout_off:
        return model
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if variation.dropout_off and isinstance(module, _DROPOUT):
            module.eval()
    for layer in batch_norm_layers(changed).values() if variation.batch_norm_eval else ():
        layer.eval()
    return changed
