"""N_c from the update: exact where it is counted, near where it is inferred, refused where it cannot be seen."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_problems import cnn, mlp, observe, seeded, spec
from torch import Tensor, nn

from attacker.attack import DoesNotApplyError
from attacker.labels.last_layer import find_last_layer
from attacker.num_examples import NumExamplesEstimate, estimate_num_examples
from attacker.num_examples.class_sums import is_altered
from attacker.num_examples.weight_rank import weight_rank
from attacker.observation import NotGrantedError, Observation, ThreatModel
from fl_sim.models import Normalisation
from fl_sim.records import LocalTraining

DATA = spec(num_classes=12)
HELD = torch.tensor([1, 3, 4, 8, 9])


def private(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy pictures, which are all linearly independent, and labels of five classes of twelve."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(num, 1, 8, 8, generator=drawn), HELD[torch.randint(5, (num,), generator=drawn)]


def estimate(observation: Observation) -> NumExamplesEstimate:
    return estimate_num_examples(observation, generator=torch.Generator().manual_seed(0))


def altered(observation: Observation, change: Callable[[Tensor], Tensor]) -> Observation:
    return replace(observation, delta={name: change(tensor) for name, tensor in observation.delta.items()})


def noise(share: float) -> Callable[[Tensor], Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return lambda tensor: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=drawn)


@pytest.mark.parametrize("model", [mlp, cnn])
@pytest.mark.parametrize("num", [1, 2, 3, 7, 12, 20])
def test_fedsgd_is_counted(model: Callable[..., nn.Module], num: int) -> None:
    found = estimate(observe(model(DATA), DATA, *private(num)))
    assert (found.num_examples, found.low, found.high, found.method) == (num, num, num, "rank")


@pytest.mark.parametrize("batch_size", [1, 3, 20, None])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_epoch_is_counted_whatever_the_batches(batch_size: int | None, momentum: float) -> None:
    recipe = LocalTraining(epochs=1, batch_size=batch_size, learning_rate=0.05, momentum=momentum)
    found = estimate(observe(cnn(DATA), DATA, *private(11), recipe=recipe))
    assert (found.num_examples, found.method) == (11, "rank")


def test_copies_of_an_image_are_one() -> None:
    images, labels = private(6)
    twice = observe(cnn(DATA), DATA, torch.cat([images, images[:2]]), torch.cat([labels, labels[:2]]))
    assert estimate(twice).num_examples == 6


@pytest.mark.parametrize("num", [1, 2, 3])
def test_few_images_leave_a_gap_after_several_epochs(num: int) -> None:
    recipe = LocalTraining(epochs=5, batch_size=2, learning_rate=0.004)
    found = estimate(observe(cnn(DATA), DATA, *private(num), recipe=recipe))
    assert (found.num_examples, found.method) == (num, "gap between singular values")


@pytest.mark.parametrize("num", [24, 40, 61])
def test_fedsgd_with_more_images_than_units_is_read_from_the_label_shares(num: int) -> None:
    found = estimate(observe(mlp(DATA, hidden=16), DATA, *private(num)))
    assert found.method == "label shares"
    assert found.num_examples == num
    assert found.low <= num <= found.high


def test_several_epochs_with_more_images_give_larger_estimates() -> None:
    recipe = LocalTraining(epochs=4, batch_size=2, learning_rate=0.01)
    sizes = (6, 12, 24, 36)
    found = [estimate(observe(cnn(DATA), DATA, *private(num), recipe=recipe)) for num in sizes]
    assert [each.method for each in found] == ["label shares"] * 4
    assert all(abs(each.num_examples - size) <= 0.2 * size for each, size in zip(found, sizes, strict=True))
    assert all(each.low <= each.num_examples <= each.high for each in found)
    assert sorted(each.num_examples for each in found) == [each.num_examples for each in found]


@pytest.mark.parametrize("recipe", [None, LocalTraining(epochs=4, batch_size=2, learning_rate=0.01)])
def test_what_is_known_of_the_number_is_not_looked_at(recipe: LocalTraining | None) -> None:
    observation = observe(cnn(DATA), DATA, *private(12), recipe=recipe)
    found = estimate(observation)
    for number in (None, 3):
        assert estimate(replace(observation, knowledge=replace(observation.knowledge, num_examples=number))) == found


@pytest.mark.parametrize("model", [mlp, cnn])
def test_noise_hides_directions_and_is_noticed(model: Callable[..., nn.Module]) -> None:
    observation = observe(model(DATA), DATA, *private(5))
    layer = find_last_layer(observation.model, DATA.num_classes)
    assert not is_altered(observation, layer)
    assert not weight_rank(observation).noisy
    noisy = altered(observation, noise(0.3))
    assert is_altered(noisy, layer)
    with pytest.raises(DoesNotApplyError, match=r"leaves N_c open|no N_c explains"):
        estimate(noisy)


@pytest.mark.parametrize("seed", range(3))
def test_an_update_that_is_mostly_noise_is_refused(seed: int) -> None:
    drowned = altered(observe(cnn(DATA), DATA, *private(9, seed=seed)), noise(2.0))
    with pytest.raises(DoesNotApplyError, match="mostly noise"):
        estimate(drowned)


def test_faint_noise_does_not_count_as_images() -> None:
    noisy = altered(observe(mlp(DATA), DATA, *private(5)), noise(1e-5))
    assert weight_rank(noisy).noisy
    assert estimate(noisy).num_examples == 5


@pytest.mark.parametrize("recipe", [None, LocalTraining(epochs=4, batch_size=2, learning_rate=0.01)])
@pytest.mark.parametrize(
    "change",
    [
        torch.sign,
        lambda tensor: torch.where(tensor.abs() >= tensor.abs().median(), tensor, 0.0),
        lambda tensor: torch.full_like(tensor, float("nan")),
        torch.zeros_like,
    ],
    ids=["sign", "pruning", "not a number", "zero"],
)
def test_a_defense_that_destroys_the_update_is_refused(
    recipe: LocalTraining | None, change: Callable[[Tensor], Tensor]
) -> None:
    observation = observe(cnn(DATA), DATA, *private(12), recipe=recipe)
    with pytest.raises(DoesNotApplyError, match="defense"):
        estimate(altered(observation, change))


def test_a_full_layer_without_label_shares_is_refused() -> None:
    with pytest.raises(DoesNotApplyError, match=r"floor, .*; .* last layer with a bias"):
        estimate(observe(mlp(DATA, bias=False), DATA, *private(40)))


def test_clients_with_every_class_are_refused_after_several_epochs() -> None:
    images, _ = private(36)
    recipe = LocalTraining(epochs=4, batch_size=2, learning_rate=0.01)
    with pytest.raises(DoesNotApplyError, match="only they tell the number of local steps"):
        estimate(observe(cnn(DATA), DATA, images, torch.arange(36) % 12, recipe=recipe))


def test_other_refusals() -> None:
    images, labels = private(4)
    convolutions = seeded(lambda: nn.Sequential(Normalisation(DATA.mean, DATA.std), nn.Conv2d(1, 12, 8), nn.Flatten()))
    with pytest.raises(DoesNotApplyError, match="has none; label recovery needs a last layer"):
        estimate(observe(convolutions, DATA, images, labels))
    observation = observe(cnn(DATA), DATA, images, labels)
    with pytest.raises(DoesNotApplyError, match="a mean over 2"):
        estimate(replace(observation, num_rounds=2))
    secretive = ThreatModel(name="secretive", description="No recipe.", realistic=True, local_training=False)
    with pytest.raises(NotGrantedError, match="local_training"):
        estimate(observe(cnn(DATA), DATA, images, labels, threat_model=secretive))
