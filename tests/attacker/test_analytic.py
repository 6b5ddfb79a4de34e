"""The closed form: exact for one image, whatever the local training, and clear about where it does not apply."""

import pytest
import torch
from small_problems import FULL_KNOWLEDGE, cnn, mlp, observe, pictures, seeded, spec
from torch import nn

from attacker.analytic import AnalyticFullyConnected
from attacker.attack import DoesNotApplyError, Outcome
from attacker.matching import match
from fl_sim.models import Normalisation
from fl_sim.records import LocalTraining

DATA = spec(channels=3)


def attack(observation, **options):
    return AnalyticFullyConnected(**options)(observation, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("recipe", [
    None,
    LocalTraining(epochs=4, batch_size=1, learning_rate=0.1),
    LocalTraining(epochs=3, learning_rate=0.05, momentum=0.9),
])  # fmt: skip
def test_one_image_is_exact(recipe: LocalTraining | None) -> None:
    image, label = pictures(1, channels=3), torch.tensor([2])
    reconstruction = attack(observe(mlp(DATA), DATA, image, label, recipe=recipe))
    torch.testing.assert_close(reconstruction.images, image, rtol=0, atol=1e-5)
    assert torch.equal(reconstruction.labels, label)
    assert reconstruction.outcome is Outcome.FINISHED
    assert reconstruction.matching_loss < 1e-8
    assert reconstruction.losses.shape == (0,)


def test_units_that_one_image_drives_show_it() -> None:
    model = seeded(
        lambda: nn.Sequential(
            Normalisation(DATA.mean, DATA.std), nn.Flatten(), nn.Linear(192, 400), nn.ReLU(), nn.Linear(400, 4)
        )
    )
    images, labels = pictures(2, channels=3), torch.tensor([0, 3])
    reconstruction = attack(observe(model, DATA, images, labels))
    torch.testing.assert_close(reconstruction.images[match(images, reconstruction.images)], images, rtol=0, atol=1e-3)


def test_an_update_of_zeros_gives_grey_pictures() -> None:
    observation = observe(mlp(DATA), DATA, pictures(2, channels=3), torch.tensor([0, 1]), threat_model=FULL_KNOWLEDGE)
    for tensor in observation.delta.values():
        tensor.zero_()
    assert attack(observation).images.unique().tolist() == [0.5]


@pytest.mark.parametrize("model", [
    cnn(DATA),
    seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))),
    seeded(lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4))),
    seeded(lambda: nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))),
])  # fmt: skip
def test_does_not_apply(model: nn.Module) -> None:
    observation = observe(model, DATA, pictures(1, channels=3), torch.tensor([2]))
    with pytest.raises(DoesNotApplyError, match="attack 'analytic' needs a first"):
        attack(observation)


def test_the_distance_is_checked() -> None:
    with pytest.raises(ValueError, match="distinct_distance must be > 0, got 0"):
        AnalyticFullyConnected(distinct_distance=0)
