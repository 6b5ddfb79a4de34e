"""Defenses inside training: on each example, on each local step, and in the order in which a client can apply them."""

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from clients.build_defenses import build_defenses
from clients.defenses import ClientDefenses, arrange
from clients.defenses.clipping import Clipping
from clients.defenses.dp_sgd import DpSgd
from clients.defenses.gaussian_noise import GaussianNoise
from clients.defenses.laplace_noise import LaplaceNoise
from clients.defenses.pruning import MagnitudePruning, RandomPruning
from clients.defenses.soteria import Soteria
from clients.local_training import gradient_on, train_locally
from fl_sim.config import parse_experiment
from fl_sim.errors import ConfigError
from fl_sim.models import MODELS
from fl_sim.parameters import flatten, l2_norm, subtract
from fl_sim.records import DatasetSpec, LocalTraining
from fl_sim.seeds import generator

IMAGES = torch.rand(6, 1, 12, 12, generator=generator(0, "images"))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SPEC = DatasetSpec(image_shape=(1, 12, 12), num_classes=3, mean=(0.5,), std=(0.3,), class_names=("a", "b", "c"))


def make_model(name="mlp", **options):
    return MODELS[name](dataset=SPEC, generator=generator(0, "model"), **options).train()


def defended(defenses: ClientDefenses, model=None, seed=0):
    gradient, _ = defenses.gradient(
        model or make_model(), IMAGES, LABELS, batch_size=len(LABELS), generator=generator(seed, "step")
    )
    return gradient


@pytest.mark.parametrize("place", ["example", "step"])
@pytest.mark.parametrize("noise", [GaussianNoise(stddev=0.1), LaplaceNoise(scale=0.1 / math.sqrt(2))])
def test_noise_in_training_has_the_stated_spread(place, noise):
    # Independent noise on each of N examples shrinks in their mean, noise on the step does not.
    added = flatten(subtract(defended(arrange([(place, noise)])), gradient_on(make_model(), IMAGES, LABELS)))
    expected = 0.1 / math.sqrt(len(LABELS)) if place == "example" else 0.1
    assert added.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(added.mean().item()) < 4 * expected / math.sqrt(added.numel())


def test_clipping_examples_bounds_each_and_clipping_the_step_bounds_their_mean():
    model = make_model()
    examples = [gradient_on(model, IMAGES[n : n + 1], LABELS[n : n + 1]) for n in range(6)]
    bound = sorted(l2_norm(example) for example in examples)[2]
    found = defended(arrange([("example", Clipping(clip_norm=bound))]), model)
    expected = sum(flatten(example) * min(1.0, bound / l2_norm(example)) for example in examples) / 6
    assert torch.allclose(flatten(found), expected, atol=1e-6)
    step = defended(arrange([("step", Clipping(clip_norm=bound / 3))]), model)
    assert l2_norm(step) == pytest.approx(bound / 3, rel=1e-5)


def test_pruning_examples_keeps_an_entry_that_any_example_keeps():
    zeros = {}
    for place in ("example", "step"):
        pruned = flatten(defended(arrange([(place, RandomPruning(probability=0.5))]), make_model("lenet")))
        zeros[place] = (pruned == 0).float().mean().item()
    assert zeros["step"] == pytest.approx(0.5, abs=0.03)
    assert zeros["example"] == pytest.approx(0.5**6, abs=0.01)


@pytest.mark.parametrize("algorithm", ["gradient", "training"])
@pytest.mark.parametrize(
    "defenses",
    [
        *(
            arrange([(place, defense)])
            for place in ("example", "step")
            for defense in (GaussianNoise(stddev=0.0), Clipping(clip_norm=math.inf), MagnitudePruning(share=0.0))
        ),
        arrange([DpSgd(noise_multiplier=0.0)]),
        arrange([Soteria(pruned_percent=0.0)]),
    ],
)
def test_strength_zero_is_bit_identical_to_none(defenses, algorithm):
    if algorithm == "gradient":
        assert torch.equal(flatten(defended(defenses)), flatten(gradient_on(make_model(), IMAGES, LABELS)))
        return
    plain, other = make_model(), make_model()
    recipe = LocalTraining(epochs=2, batch_size=4, learning_rate=0.1, momentum=0.9)
    train_locally(plain, IMAGES, LABELS, recipe, generator=generator(0, "order"))
    train_locally(
        other,
        IMAGES,
        LABELS,
        recipe,
        generator=generator(0, "order"),
        step_gradient=lambda model, images, labels, step: defenses.gradient(
            model, images, labels, batch_size=len(labels), generator=generator(0, "step", step)
        ),
    )
    assert torch.equal(flatten(dict(plain.named_parameters())), flatten(dict(other.named_parameters())))


def test_the_loss_is_told_unless_the_gradient_is_made_by_a_defense():
    def loss(defenses):
        return defenses.gradient(make_model(), IMAGES, LABELS, batch_size=6, generator=generator(0, "step"))[1]

    plain = nn.functional.cross_entropy(make_model()(IMAGES), LABELS).item()
    assert loss(ClientDefenses()) == loss(arrange([("step", GaussianNoise(stddev=1.0))])) == pytest.approx(plain)
    assert loss(arrange([("example", GaussianNoise(stddev=1.0))])) == pytest.approx(plain, rel=1e-5)
    assert loss(arrange([DpSgd(clip_norm=1.0, noise_multiplier=1.0)])) is None
    assert loss(arrange([Soteria(pruned_percent=10.0)])) is None


def test_links_act_in_the_order_of_the_experiment():
    clip, noise = Clipping(clip_norm=1e-6), GaussianNoise(stddev=1.0)
    assert l2_norm(defended(arrange([("step", clip), ("step", noise)]))) > 10
    assert l2_norm(defended(arrange([("step", noise), ("step", clip)]))) == pytest.approx(1e-6, rel=1e-4)
    assert arrange([("step", clip), ("update", noise)]) == ClientDefenses(on_step=(clip,), on_update=(noise,))


def experiment_with(*defenses, **sections):
    return parse_experiment({"defenses": list(defenses), **sections})


def test_where_is_read_from_the_options_and_update_is_the_default():
    built = build_defenses(
        experiment_with(
            {"name": "clipping", "options": {"clip_norm": 1.0, "where": "example"}},
            {"name": "gaussian_noise", "options": {"stddev": 0.1, "where": "step"}},
            {"name": "sign"},
        )
    )
    assert built.on_example == (Clipping(clip_norm=1.0),)
    assert built.on_step == (GaussianNoise(stddev=0.1),)
    assert len(built.on_update) == 1


DP_SGD = {"name": "dp_sgd", "options": {"clip_norm": 1.0, "noise_multiplier": 1.0}}


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        (
            [{"name": "sign"}, {"name": "sign", "options": {"where": "step"}}],
            "defenses.1: where = 'step' cannot follow where = 'update'",
        ),
        ([{"name": "sign"}, DP_SGD], "defenses.1: DpSgd computes the gradient itself and must stand first"),
        ([DP_SGD, DP_SGD], "must stand first, once"),
        ([DP_SGD, {"name": "sign", "options": {"where": "example"}}], "where = 'example' cannot follow DpSgd"),
        (
            [{"name": "sign", "options": {"where": "epoch"}}],
            "defenses.0.options.where: expected one of example, step, update; got 'epoch'",
        ),
        (
            [{"name": "soteria", "options": {"pruned_percent": 1.0, "where": "step"}}],
            "defenses.0.options: soteria computes the gradient of each local step: leave out 'where'",
        ),
        ([{"name": "fractions:Fraction"}], "fractions:Fraction is no defense: expected a class whose"),
    ],
)
def test_what_cannot_be_applied_is_refused(defenses, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build_defenses(experiment_with(*defenses))


def test_a_strength_that_the_recording_cannot_announce_is_refused():
    with pytest.raises(ConfigError, match=r"defenses\.0: options\.clip_norm must be a finite number, got inf"):
        experiment_with({"name": "clipping", "options": {"clip_norm": math.inf}})


def test_sampled_batches_and_a_static_order_contradict_each_other():
    sampled = {"name": "dp_sgd", "options": {**DP_SGD["options"], "sampling": "poisson"}}
    with pytest.raises(ConfigError, match="leave out one of the two"):
        build_defenses(experiment_with(sampled, training={"order": "static"}))


def test_batch_norm_is_refused_where_single_examples_are_needed():
    model = MODELS["resnet18"](dataset=SPEC, generator=generator(0, "model"), stem="cifar")
    for defenses in (
        arrange([("example", GaussianNoise(stddev=0.1))]),
        arrange([DpSgd(clip_norm=1, noise_multiplier=1)]),
    ):
        with pytest.raises(ConfigError, match="take a model with GroupNorm or without normalisation layers"):
            defenses.check_model(model)
    arrange([("step", GaussianNoise(stddev=0.1))]).check_model(model)


@pytest.mark.parametrize("noise", [GaussianNoise(stddev=0.1), LaplaceNoise(scale=0.1)])
def test_noise_drawn_for_a_mean_has_the_law_of_the_mean_of_noises(noise):
    nothing = {"a": torch.zeros(20_000)}
    draws = generator(0, "draws")
    at_once = flatten(noise.on_mean(3)(nothing, num_examples=3, generator=draws))
    singly = torch.stack([flatten(noise(nothing, num_examples=1, generator=draws)) for _ in range(3)]).mean(dim=0)
    assert ks_2samp(at_once, singly).pvalue > 0.01
    assert ks_2samp(at_once, 1.03 * singly.mul(singly.abs())).pvalue < 0.01  # the test can tell laws apart


def test_noise_before_something_else_is_drawn_for_each_example():
    noise, prune = GaussianNoise(stddev=0.1), RandomPruning(probability=0.5)
    first, last = (
        flatten(defended(arrange([("example", own) for own in order]), make_model("lenet")))
        for order in ((noise, prune), (prune, noise))
    )
    assert (first == 0).float().mean().item() == pytest.approx(0.5**6, abs=0.01)
    assert (last == 0).float().mean().item() < 1e-3
