"""Which constants of the feature-span attack a problem gets: by what the server knows, unless somebody names others."""

from dataclasses import replace

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec

from attacker.image_span import ImageSpan
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.recipes import FeatureSpan
from attacker.recipes.span_constants import MOST_REPAIR_STEPS, span_constants
from attacker.wide_steps import missed
from fl_sim.records import LocalTraining

LABELS = torch.tensor([0, 1, 2, 3])


def problem_of(*, epochs: int, learning_rate: float = 0.01, channels: int = 1) -> InversionProblem:
    """Return four images one at a time."""
    dataset = spec(channels=channels)
    recipe = LocalTraining(epochs=epochs, batch_size=1, learning_rate=learning_rate)
    images = pictures(4, channels=channels)
    observation = observe(cnn(dataset), dataset, images, LABELS, threat_model=FULL_KNOWLEDGE, recipe=recipe)
    return inversion_problem(observation, "automatic", torch.Generator())


FEW, MANY = 2, 63


def test_many_local_steps_make_matching_and_span_weigh_less() -> None:
    few, many = (span_constants(problem_of(epochs=epochs), given=None) for epochs in (FEW, MANY))
    assert many.matching < few.matching
    assert many.feature_span_end < few.feature_span_end
    assert few.repair_steps == MOST_REPAIR_STEPS
    assert many.repair_steps == 0
    assert many.simulation == "merged_10"  # full batches would not follow them


def test_colours_have_constants_of_their_own() -> None:
    grey, colour = (span_constants(problem_of(epochs=FEW, channels=channels), given=None) for channels in (1, 3))
    assert colour.pixel_box > grey.pixel_box


def test_curvature_that_bears_no_wide_steps_is_followed_as_needed() -> None:
    gentle, steep = (problem_of(epochs=8, learning_rate=rate) for rate in (0.01, 2.0))
    assert missed(gentle, 5) < 0.1 < 0.9 < missed(steep, 5)
    assert span_constants(gentle, given=None).simulation == 5
    assert span_constants(steep, given=None).simulation == "as_needed"


def test_what_bears_wide_steps_is_told_without_what_was_observed() -> None:
    problem = problem_of(epochs=8)
    hidden = {name: torch.full_like(tensor, torch.nan) for name, tensor in problem.observed.items()}
    state = torch.get_rng_state()
    assert missed(replace(problem, observed=hidden), 5) == missed(problem, 5) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("epochs", [FEW, MANY])
def test_what_is_named_counts(epochs: int) -> None:
    given = FeatureSpan(matching=7.0, repair_steps=3, simulation=("fedsgd", "full"), full_contrast=0.25)
    found = span_constants(problem_of(epochs=epochs), given=given)
    assert (found.matching, found.repair_steps, found.full_contrast) == (7.0, 3, 0.25)
    assert found.simulation == ("fedsgd", "full")


def test_the_attack_takes_them_from_the_local_steps() -> None:
    problems = [problem_of(epochs=epochs) for epochs in (FEW, MANY)]
    few, many = (FeatureSpan().span(problem) for problem in problems)
    assert isinstance(few, ImageSpan)
    assert isinstance(many, ImageSpan)
    assert (few.basis.shape[1], many.basis.shape[1]) == (7, 8)  # 1.6 and 1.9 for each of 4 images
    assert few.weights is problems[0].parameters
    assert many.weights is not problems[1].parameters  # features on the way
