"""Each defense does what its numbers say, and none at strength zero."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.defenses import DEFENSES, chain
from clients.defenses.clipping import Clipping
from clients.defenses.gaussian_noise import GaussianNoise
from clients.defenses.laplace_noise import LaplaceNoise
from clients.defenses.pruning import MagnitudePruning, RandomPruning
from fl_sim.parameters import flatten, l2_norm, subtract
from fl_sim.seeds import generator

UPDATE = {
    "w": torch.randn(200, 100, generator=generator(0, "w")),
    "b": torch.randn(100, generator=generator(0, "b")),
}
NOTHING = [
    GaussianNoise(stddev=0.0),
    LaplaceNoise(scale=0.0),
    Clipping(clip_norm=math.inf),
    RandomPruning(probability=0.0),
    MagnitudePruning(share=0.0),
]
SOMETHING = [
    GaussianNoise(stddev=0.1),
    LaplaceNoise(scale=0.1),
    Clipping(clip_norm=1.0),
    RandomPruning(probability=0.5),
    MagnitudePruning(share=0.5),
]


def apply(defense, update=UPDATE, *, client=0, server_round=1):
    return defense(update, num_examples=10, generator=generator(0, "defense", client, server_round))


def test_the_table_is_covered():
    assert {type(defense) for defense in SOMETHING} == set(DEFENSES.values())


@pytest.mark.parametrize("defense", NOTHING, ids=lambda defense: type(defense).__name__)
def test_strength_zero_is_the_update_itself(defense):
    assert apply(defense) is UPDATE


@pytest.mark.parametrize("defense", SOMETHING, ids=lambda defense: type(defense).__name__)
def test_names_shapes_dtypes_stay_and_the_input_is_not_changed(defense):
    before = {name: tensor.clone() for name, tensor in UPDATE.items()}
    defended = apply(defense)
    assert list(defended) == list(UPDATE)
    assert all(defended[name].shape == UPDATE[name].shape for name in UPDATE)
    assert all(defended[name].dtype == UPDATE[name].dtype for name in UPDATE)
    assert all(torch.equal(before[name], UPDATE[name]) for name in UPDATE)
    assert l2_norm(subtract(defended, UPDATE)) > 0


@pytest.mark.parametrize(("defense", "stddev"), [(SOMETHING[0], 0.1), (SOMETHING[1], 0.1 * math.sqrt(2))])
def test_noise_has_the_stated_spread_and_no_bias(defense, stddev):
    noise = flatten(subtract(apply(defense), UPDATE))
    assert noise.std().item() == pytest.approx(stddev, rel=0.03)
    assert abs(noise.mean().item()) < 4 * stddev / math.sqrt(noise.numel())


def test_laplace_tails_are_heavier_than_gaussian_ones():
    noise = flatten(subtract(apply(SOMETHING[1]), UPDATE))
    kurtosis = (noise**4).mean() / (noise**2).mean() ** 2
    assert kurtosis.item() == pytest.approx(6, rel=0.15)


@given(norm=st.floats(0.01, 1000))
def test_clipping_never_lengthens_and_twice_is_once(norm):
    clipped = apply(Clipping(clip_norm=norm))
    assert l2_norm(clipped) <= min(norm, l2_norm(UPDATE)) * (1 + 1e-5)
    assert torch.allclose(flatten(apply(Clipping(clip_norm=norm), clipped)), flatten(clipped), rtol=1e-5)


def test_pruning_keeps_the_stated_share():
    assert (flatten(apply(RandomPruning(probability=0.3))) == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert int((flatten(apply(MagnitudePruning(share=0.3))) == 0).sum()) == round(0.3 * flatten(UPDATE).numel())


def test_magnitude_pruning_takes_the_smallest_and_handles_ties():
    pruned = apply(MagnitudePruning(share=0.5), {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([[2.0, -0.5]])})
    assert flatten(pruned).tolist() == [0.0, -3.0, 2.0, 0.0]
    tied = apply(MagnitudePruning(share=0.5), {"a": torch.ones(10)})
    assert int((tied["a"] == 0).sum()) == 5


@pytest.mark.parametrize("defense", [SOMETHING[0], SOMETHING[1], SOMETHING[3]], ids=lambda d: type(d).__name__)
def test_draws_differ_by_client_and_round_and_repeat_by_seed(defense):
    first = flatten(apply(defense))
    assert torch.equal(first, flatten(apply(defense)))
    assert not torch.equal(first, flatten(apply(defense, client=1)))
    assert not torch.equal(first, flatten(apply(defense, server_round=2)))


def test_chain_applies_the_first_one_first():
    noisy_last = chain([Clipping(clip_norm=1.0), GaussianNoise(stddev=1.0)])
    clipped_last = chain([GaussianNoise(stddev=1.0), Clipping(clip_norm=1.0)])
    assert l2_norm(apply(noisy_last)) > 10
    assert l2_norm(apply(clipped_last)) == pytest.approx(1.0, rel=1e-5)
    assert apply(chain([])) is UPDATE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(stddev=-1.0), "stddev must be a number >= 0, got -1.0"),
        (lambda: LaplaceNoise(scale=-1.0), "scale must be a number >= 0"),
        (lambda: Clipping(clip_norm=0.0), "clip_norm must be > 0"),
        (lambda: RandomPruning(probability=1.0), r"probability must be in \[0, 1\), got 1.0"),
        (lambda: MagnitudePruning(share=-0.1), "share must be"),
    ],
)
def test_wrong_strengths_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
