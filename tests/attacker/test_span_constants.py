"""Which constants of the feature-span attack a problem gets: by what the server knows, unless somebody names others."""

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, cnn, observe, pictures, spec

from attacker.image_span import ImageSpan
from attacker.inversion_problem import inversion_problem
from attacker.recipes import FeatureSpan
from attacker.recipes.span_constants import MOST_REPAIR_STEPS, span_constants
from fl_sim.records import LocalTraining

LABELS = torch.tensor([0, 1, 2, 3])


def test_many_local_steps_make_matching_and_span_weigh_less() -> None:
    few, many = (span_constants(1, num_steps, given=None) for num_steps in (100, 500))
    assert many.matching < few.matching
    assert many.feature_span_end < few.feature_span_end
    assert few.repair_steps == MOST_REPAIR_STEPS
    assert many.repair_steps == 0
    assert many.simulation == "merged_10"  # full batches would not follow them


def test_colours_have_constants_of_their_own() -> None:
    assert span_constants(3, 100, given=None).pixel_box > span_constants(1, 100, given=None).pixel_box


@pytest.mark.parametrize("num_steps", [100, 500])
def test_what_is_named_counts(num_steps: int) -> None:
    given = FeatureSpan(matching=7.0, repair_steps=3, simulation=("fedsgd", "full"), full_contrast=0.25)
    found = span_constants(1, num_steps, given=given)
    assert (found.matching, found.repair_steps, found.full_contrast) == (7.0, 3, 0.25)
    assert found.simulation == ("fedsgd", "full")


def test_the_attack_takes_them_from_the_local_steps() -> None:
    recipes = (LocalTraining(epochs=epochs, batch_size=1, learning_rate=0.01) for epochs in (2, 63))
    problems = [
        inversion_problem(
            observe(cnn(spec()), spec(), pictures(4), LABELS, threat_model=FULL_KNOWLEDGE, recipe=recipe),
            "automatic",
            torch.Generator(),
        )
        for recipe in recipes
    ]
    few, many = (FeatureSpan().span(problem) for problem in problems)
    assert isinstance(few, ImageSpan)
    assert isinstance(many, ImageSpan)
    assert (few.basis.shape[1], many.basis.shape[1]) == (7, 8)  # 1.6 and 1.9 for each of 4 images
    assert few.weights is problems[0].parameters
    assert many.weights is not problems[1].parameters  # features on the way
