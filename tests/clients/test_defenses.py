"""Each defense does what its numbers say, and none at strength zero."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.defenses import DEFENSES, GradientDefense, chain
from clients.defenses.clipping import Clipping
from clients.defenses.gaussian_noise import GaussianNoise
from clients.defenses.laplace_noise import LaplaceNoise
from clients.defenses.pruning import MagnitudePruning, RandomPruning
from clients.defenses.quantisation import Quantisation
from clients.defenses.sign import Sign
from clients.defenses.top_k import TopK
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
    TopK(share=1.0),
    Quantisation(bits=32),
]
SOMETHING = [
    GaussianNoise(stddev=0.1),
    LaplaceNoise(scale=0.1),
    Clipping(clip_norm=1.0),
    RandomPruning(probability=0.5),
    MagnitudePruning(share=0.5),
    TopK(share=0.5),
    Quantisation(bits=4),
    Sign(),
]
DRAWING = [
    defense for defense in SOMETHING if isinstance(defense, GaussianNoise | LaplaceNoise | RandomPruning | Quantisation)
]


def apply(defense, update=UPDATE, *, client=0, server_round=1):
    return defense(update, num_examples=10, generator=generator(0, "defense", client, server_round))


def test_the_table_is_covered():
    of_the_update = {defense for defense in DEFENSES.values() if not isinstance(defense, GradientDefense)}
    assert {type(defense) for defense in SOMETHING} == of_the_update
    assert {type(defense) for defense in NOTHING} == of_the_update - {Sign}  # which has no strength


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


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), norm=st.floats(0.001, 500))
def test_clipping_keeps_the_direction(values, norm):
    update = {"a": torch.tensor(values[:1]), "b": torch.tensor(values[1:])}
    clipped = apply(Clipping(clip_norm=norm), update)
    factor = min(1.0, norm / max(l2_norm(update), 1e-12))
    assert torch.allclose(flatten(clipped), factor * flatten(update), rtol=1e-4, atol=1e-6)


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), share=st.floats(0.01, 1))
def test_top_k_keeps_the_stated_number_and_nothing_larger_is_left_out(values, share):
    update = {"a": torch.tensor(values), "b": torch.tensor([[0.5, -0.25]])}
    kept = flatten(apply(TopK(share=share), update))
    before = flatten(update)
    num_kept = max(1, round(share * len(before)))
    changed = kept != before
    assert torch.equal(kept[changed], torch.zeros(int(changed.sum())))
    assert int((kept != 0).sum()) == min(num_kept, int((before != 0).sum()))
    if changed.any() and num_kept < len(before):
        assert before[changed].abs().max() <= before.abs().topk(num_kept).values.min()


def test_top_k_is_magnitude_pruning_counted_from_the_other_end():
    assert torch.equal(flatten(apply(TopK(share=0.3))), flatten(apply(MagnitudePruning(share=0.7))))
    assert int((flatten(apply(TopK(share=1e-9))) != 0).sum()) == 1


def test_sign_keeps_every_sign_and_the_l1_norm_of_every_tensor():
    signs = apply(Sign())
    for name, tensor in UPDATE.items():
        assert torch.equal(signs[name].sign(), tensor.sign())
        assert signs[name].abs().sum().item() == pytest.approx(tensor.abs().sum().item(), rel=1e-5)
        assert len(signs[name].abs().unique()) == 1
    assert apply(Sign(), {"a": torch.tensor([0.0, 3.0, -1.0, 0.0])})["a"].tolist() == [0.0, 1.0, -1.0, 0.0]


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    bits=st.integers(2, 16),
    seed=st.integers(0, 100),
)
def test_quantised_entries_are_neighbouring_levels(values, bits, seed):
    update = {"a": torch.tensor(values)}
    quantised = apply(Quantisation(bits=bits), update, client=seed)["a"].double()
    largest, levels = update["a"].abs().max().double(), 2 ** (bits - 1) - 1
    if largest < 1e-30:  # below, quotients leave the range of normal numbers
        return
    assert quantised.abs().max() <= largest * (1 + 1e-6)
    numbers = quantised / largest * levels
    assert (numbers - numbers.round()).abs().max() < 1e-2
    assert (quantised - update["a"]).abs().max() <= largest / levels * (1 + 1e-2)


def test_quantisation_is_unbiased_and_spares_zero_and_the_largest():
    row = torch.tensor([0.0, 0.1, -0.35, 0.77, -1.0])
    draws = apply(Quantisation(bits=2), {"a": row.repeat(20_000, 1)})["a"]
    assert sorted(draws.unique().tolist()) == [-1.0, 0.0, 1.0]
    assert torch.allclose(draws.mean(0), row, atol=0.015)
    assert (draws[:, 0] == 0).all()
    assert (draws[:, 4] == -1).all()
    assert torch.equal(apply(Quantisation(bits=2), {"a": torch.zeros(3)})["a"], torch.zeros(3))


def test_pruning_keeps_the_stated_share():
    assert (flatten(apply(RandomPruning(probability=0.3))) == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert int((flatten(apply(MagnitudePruning(share=0.3))) == 0).sum()) == round(0.3 * flatten(UPDATE).numel())


def test_magnitude_pruning_takes_the_smallest_and_handles_ties():
    pruned = apply(MagnitudePruning(share=0.5), {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([[2.0, -0.5]])})
    assert flatten(pruned).tolist() == [0.0, -3.0, 2.0, 0.0]
    tied = apply(MagnitudePruning(share=0.5), {"a": torch.ones(10)})
    assert int((tied["a"] == 0).sum()) == 5


@pytest.mark.parametrize("defense", DRAWING, ids=lambda defense: type(defense).__name__)
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
        (lambda: GaussianNoise(stddev=float("nan")), "stddev must be a number >= 0, got nan"),
        (lambda: TopK(share=0.0), r"share must be in \(0, 1\], got 0.0"),
        (lambda: Quantisation(bits=1), "bits must be from 2 to 16, or 32 for no quantisation, got 1"),
    ],
)
def test_wrong_strengths_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
