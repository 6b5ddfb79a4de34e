"""Between two steps of a search the host reads nothing that a GPU would have to be waited for."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, bn_cnn, cnn, observe, pictures, spec
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacker import gradient_matching
from attacker.attack import Attack, Progress
from attacker.distances import cosine_distance
from attacker.image_span import image_span
from attacker.inversion_problem import problem_with_labels
from attacker.joint_terms import Stacks, TermAt, values_and_gradients
from attacker.order_noise import layer_weighted_vector, no_order_noise
from attacker.placement import on_device
from attacker.recipes import FeatureSpan, FedAvgLeakage, GradInversion, InvertingGradients
from attacker.recipes.feature_span_quick import FeatureSpanQuick
from attacker.recipes.matching_term import matching_term as distance_term
from attacker.recipes.span_terms import Weights, matching_term, prior_term
from fl_sim.records import LocalTraining

# What a CUDA tensor's shape or value on the host is computed with.
_WAITS = {
    "_linalg_check_errors",
    "_linalg_svd",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "linalg_eigh",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}

LOCAL = LocalTraining(epochs=2, batch_size=2, learning_rate=0.05)
ATTACKS: dict[str, tuple[Attack, Callable[..., nn.Module], LocalTraining | None]] = {
    "inverting gradients": (InvertingGradients(steps=4), cnn, None),
    "fedavg leakage": (FedAvgLeakage(steps=4), cnn, LOCAL),
    "fedavg leakage, cosine": (FedAvgLeakage(steps=4, loss="cosine"), cnn, LOCAL),
    "feature span": (FeatureSpan(steps=4, rounds=0), cnn, LOCAL),
    "feature span, a round": (FeatureSpan(steps=1, rounds=1, round_steps=2, hold=2, orders=3), cnn, LOCAL),
    "feature span, quick": (FeatureSpanQuick(steps=4), cnn, LOCAL),
    "GradInversion": (GradInversion(steps=4, group_size=1, batch_norm_statistics=0.1), bn_cnn, None),
}


def _is_in_optimiser() -> bool:
    """Say whether torch's optimiser asks: it reads its count of steps, which stays on the CPU."""
    return any("torch/optim" in frame.filename for frame in traceback.extract_stack())


class _Waits(TorchDispatchMode):
    """Notes each operation that waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.num_operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.num_operations += 1
        chosen_by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype is torch.bool for index in args[1]
        )
        if (name in _WAITS or chosen_by_mask) and not _is_in_optimiser():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits_within_the_loop(attack: Attack, model: Callable[..., nn.Module], recipe: LocalTraining | None) -> _Waits:
    data = spec()
    observation = observe(model(data), data, pictures(4), torch.arange(4), recipe=recipe, threat_model=FULL_KNOWLEDGE)
    waits = _Waits()

    def watch(progress: Progress) -> None:
        # The attack goes on inside of the mode that is entered here.
        if progress.step == progress.num_steps - 2:
            waits.__enter__()
        if progress.step == progress.num_steps:
            waits.__exit__(None, None, None)

    attack(observation, generator=torch.Generator().manual_seed(0), on_step=watch)
    return waits


@pytest.mark.parametrize("name", ATTACKS)
def test_the_host_does_not_wait_within_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_matching, "is_free_to_look_at", lambda tensor: False)
    waits = waits_within_the_loop(*ATTACKS[name])
    assert waits.num_operations > 100
    assert waits.found == []


def test_on_a_cpu_it_looks_whether_the_loss_is_finite() -> None:
    # Also shows that a wait is seen.
    assert waits_within_the_loop(*ATTACKS["feature span"]).found == ["_local_scalar_dense"] * 2


def test_a_divergence_seen_late_ends_as_one_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def matching(variables: Tensor) -> Tensor:
        return variables.sum().log()  # falls without end, until there is no logarithm

    objective = gradient_matching.Objective(matching=matching)
    search = gradient_matching.Search(
        steps=100, learning_rate=lambda step: 0.1, matching_factor=lambda step: 1.0, keep="best"
    )
    start = torch.ones(2)
    at_once = gradient_matching.minimise(objective, start, search, on_step=lambda progress: None)
    monkeypatch.setattr(gradient_matching, "is_free_to_look_at", lambda tensor: False)
    told: list[int] = []
    late = gradient_matching.minimise(objective, start, search, on_step=lambda progress: told.append(progress.step))
    assert at_once.outcome is late.outcome is gradient_matching.Outcome.NON_FINITE
    assert len(at_once.losses) < len(told) < 100
    assert torch.equal(at_once.losses[:-1], late.losses[:-1])
    assert at_once.losses[-1].isnan()
    assert late.losses[-1].isnan()
    assert torch.equal(at_once.variables, late.variables)
    assert at_once.matching_loss == late.matching_loss


@pytest.mark.parametrize("recipe", [None, LOCAL], ids=["one step", "local steps"])
def test_all_that_a_step_is_computed_from_lies_on_one_device(recipe: LocalTraining | None) -> None:
    # The device "meta" computes shapes only, and like a GPU it refuses tensors that lie elsewhere.
    data = spec()
    seen = observe(cnn(data), data, pictures(4), torch.arange(4), recipe=recipe, threat_model=FULL_KNOWLEDGE)
    problem = problem_with_labels(on_device(seen, "meta"), torch.arange(4).to("meta"))
    span = image_span(problem, position=0.5)
    weights = Weights(quadratic_variation=1.0, pixel_box=1.0, feature_volume=1.0, least_volume=0.3)
    variables = torch.zeros(4, 1, 8, 8, device="meta", requires_grad=True)
    noise = no_order_noise(layer_weighted_vector(problem.observed))
    priors = prior_term(problem, span, weights, variables.detach())
    distances = (matching_term(problem, noise), distance_term(problem, cosine_distance))
    matchings = [problem.matching(problem.to_pixels(variables), "full", distance) for distance in distances]
    loss = torch.stack([*matchings, priors.alone(variables, 2.0)]).sum()
    (gradient,) = torch.autograd.grad(loss, variables)
    assert gradient.is_meta
    held = torch.zeros(2, dtype=torch.int64, device="meta")
    moving = prior_term(problem, span, weights, variables.detach(), moving=held)
    asked = TermAt(term=moving, variables=variables.detach()[:2], factors=(2.0,))
    assert all(found.gradient.is_meta for found in values_and_gradients([asked, asked], Stacks()))
    with pytest.raises(RuntimeError, match="meta"):
        priors.alone(torch.zeros(4, 1, 8, 8), 2.0)
