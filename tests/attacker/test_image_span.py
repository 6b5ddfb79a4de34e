"""Where features are taken: half-way between what the server sent and what came back."""

import torch
from defended_clients import declared, defended
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec

from attacker.image_span import ImageSpan, image_span
from attacker.inversion_problem import InversionProblem, inversion_problem
from fl_sim.records import LocalTraining

LABELS = torch.tensor([0, 1, 2, 3])


def problem_of(recipe: LocalTraining | None) -> InversionProblem:
    """Return what a server sees: FedSGD without a recipe, else FedAvg."""
    observation = observe(cnn(spec()), spec(), pictures(4), LABELS, threat_model=FULL_KNOWLEDGE, recipe=recipe)
    return inversion_problem(observation, "automatic", torch.Generator())


def span_of(problem: InversionProblem, position: float = 0.5) -> ImageSpan:
    found = image_span(problem, rank=4, position=position)
    assert isinstance(found, ImageSpan)
    return found


def test_true_images_keep_less_outside_than_at_the_global_weights() -> None:
    problem = problem_of(LocalTraining(epochs=5, batch_size=1, learning_rate=0.05))
    outside = {
        at: span.prior(span.features(pictures(4))).item() for at in (0.0, 0.5) for span in [span_of(problem, at)]
    }
    assert 0 < outside[0.5] < 0.6 * outside[0.0]


def test_a_single_step_is_taken_at_the_global_weights() -> None:
    for problem in (problem_of(LocalTraining(learning_rate=0.05)), problem_of(None)):
        span = span_of(problem)
        assert span.weights is problem.parameters
        assert span.prior(span.features(pictures(4))).item() < 1e-5


def test_known_defenses_hide_the_way() -> None:
    observation = defended(declared("gaussian_noise", stddev=1e-6), labels=LABELS)
    problem = inversion_problem(observation, "automatic", torch.Generator())
    assert span_of(problem).weights is problem.parameters
