"""The order of the local batches as noise: its mean, its directions, and what is left of a residual."""

from dataclasses import replace

import pytest
import torch
from small_problems import cnn, observe, pictures, spec
from torch import Tensor

from attacker.distances import layer_weighted_l2
from attacker.inversion_problem import InversionProblem, problem_with_labels
from attacker.local_update import simulate_local_update
from attacker.order_noise import OrderNoise, layer_weighted_vector, no_order_noise, sample_order_noise
from fl_sim.records import LocalTraining

DATA = spec()
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
IMAGES = pictures(6, seed=3)
BATCHES = LocalTraining(epochs=4, batch_size=2, learning_rate=0.2)


def a_problem(recipe: LocalTraining) -> InversionProblem:
    return problem_with_labels(observe(cnn(DATA), DATA, IMAGES, LABELS, recipe=recipe), LABELS)


def noise_at(problem: InversionProblem, pixels: Tensor, *, seed: int = 5) -> OrderNoise:
    generator = torch.Generator().manual_seed(seed)
    return sample_order_noise(problem, pixels, 1, num_orders=24, floor=1e-4, generator=generator)


def residual(problem: InversionProblem, pixels: Tensor) -> Tensor:
    return layer_weighted_vector(problem.observed) - layer_weighted_vector(problem.simulate(pixels, 1))


def test_the_vector_has_the_norm_of_the_layer_weighted_distance():
    problem = a_problem(BATCHES)
    simulated = problem.simulate(IMAGES, 1)
    expected = layer_weighted_l2(simulated, problem.observed)
    assert residual(problem, IMAGES).square().sum() == pytest.approx(expected.item(), rel=1e-5)
    found = no_order_noise(residual(problem, IMAGES)).squared_distance(residual(problem, IMAGES))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_distance_is_that_of_mahalanobis():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.double)).Q.T
    variances, floor = torch.tensor([5.0, 1.0, 0.1]).double(), 0.5
    offset, seen = torch.randn(2, 7, generator=generator, dtype=torch.double)
    noise = OrderNoise(offset=offset, directions=directions, discounts=variances / (variances + floor))
    covariance = torch.eye(7).double() + directions.T @ torch.diag(variances) @ directions / floor
    expected = (seen - offset) @ torch.linalg.solve(covariance, seen - offset)
    assert noise.squared_distance(seen).item() == pytest.approx(expected.item())


def test_true_images_explain_the_update_once_the_order_is_discounted():
    problem = a_problem(BATCHES)
    true, noise = residual(problem, IMAGES), noise_at(problem, IMAGES)
    plain, discounted = true.square().sum().item(), noise.squared_distance(true).item()
    assert discounted < 0.05 * plain
    assert len(noise.discounts) == 23
    # Other images are not explained by any order.
    other = residual(problem, pictures(6, seed=8))
    assert noise.squared_distance(other).item() > 10 * discounted


def test_without_batches_the_offset_alone_makes_a_cheap_simulation_exact():
    problem = a_problem(replace(BATCHES, batch_size=None))
    noise = noise_at(problem, IMAGES)
    assert len(noise.discounts) == 0
    assert residual(problem, IMAGES).square().sum() > 1e-4
    assert noise.squared_distance(residual(problem, IMAGES)).item() < 1e-8


def test_orders_are_given_to_each_client_of_a_mean():
    problem = replace(a_problem(BATCHES), members=(4, 2))
    orders = [torch.tensor([[3, 1, 0, 2]] * 4), torch.tensor([[1, 0]] * 4)]
    found = problem.simulate(IMAGES, "full", orders=orders)
    parts = [
        simulate_local_update(
            problem.model, problem.parameters, problem.buffers, IMAGES[own], LABELS[own], BATCHES, order=order
        )
        for own, order in zip((slice(0, 4), slice(4, 6)), orders, strict=True)
    ]
    # Eight steps of four images, four of two; the mean over images, in steps of the longer training.
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (4 * 8 * parts[0][name] + 2 * 4 * parts[1][name]) / (6 * 8))


def test_a_granted_order_is_no_noise():
    problem = a_problem(BATCHES)
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(epoch)) for epoch in range(4)])
    assert len(noise_at(replace(problem, order=order), IMAGES).discounts) == 0


def test_the_generator_draws_the_orders_and_nothing_else_does():
    problem = a_problem(BATCHES)
    first = noise_at(problem, IMAGES)
    torch.manual_seed(77)
    again, other = noise_at(problem, IMAGES), noise_at(problem, IMAGES, seed=6)
    assert torch.equal(first.directions, again.directions)
    assert not torch.equal(first.directions, other.directions)
