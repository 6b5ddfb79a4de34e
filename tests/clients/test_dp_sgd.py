"""DP-SGD against a loop over examples, and epsilon against published numbers and a closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from clients.defenses.dp_sgd import DpSgd
from clients.defenses.privacy_accounting import epsilon_of
from clients.local_training import gradient_on, poisson_batches, train_locally
from fl_sim.errors import ConfigError
from fl_sim.models import MODELS
from fl_sim.parameters import flatten, l2_norm, subtract
from fl_sim.records import DatasetSpec, LocalTraining
from fl_sim.seeds import generator

SPEC = DatasetSpec(image_shape=(1, 12, 12), num_classes=3, mean=(0.5,), std=(0.3,), class_names=("a", "b", "c"))
MODEL_OPTIONS = {
    "mlp": {"hidden": (16,)},
    "lenet": {},
    "convnet": {"width": 4},
    "convnet in circles": {"width": 4, "padding_mode": "circular"},
    "femnist_cnn": {},
}


def make_model(name):
    return MODELS[name.split()[0]](dataset=SPEC, generator=generator(0, "model"), **MODEL_OPTIONS[name]).train()


def draw_batch(num_images, seed=0):
    draw = generator(seed, "batch")
    return torch.rand(num_images, 1, 12, 12, generator=draw), torch.randint(3, (num_images,), generator=draw)


def naive(model, images, labels, *, clip_norm):
    """Return the mean of the clipped gradients, one example at a time."""
    total = 0
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        gradient = gradient_on(model, image, label)
        total = total + flatten(gradient) * min(1.0, clip_norm / l2_norm(gradient))
    return total / len(labels)


@pytest.mark.parametrize("name", MODEL_OPTIONS)
@pytest.mark.parametrize("clip_norm", [0.5, 2.0, 100.0])
def test_it_equals_a_loop_over_examples(name, clip_norm):
    model, (images, labels) = make_model(name), draw_batch(5)
    defense = DpSgd(clip_norm=clip_norm, noise_multiplier=0.0)
    found = defense.gradient(model, images, labels, batch_size=5, generator=generator(0, "noise"))
    assert list(found) == [parameter for parameter, _ in model.named_parameters()]
    assert torch.allclose(flatten(found), naive(model, images, labels, clip_norm=clip_norm), atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(num_images=st.integers(1, 8), log_norm=st.floats(-3, 3), seed=st.integers(0, 50))
def test_it_equals_the_loop_for_any_batch_and_is_never_longer_than_the_norm(num_images, log_norm, seed):
    model, (images, labels) = make_model("mlp"), draw_batch(num_images, seed)
    clip_norm = math.exp(log_norm)
    found = DpSgd(clip_norm=clip_norm, noise_multiplier=0.0).gradient(
        model, images, labels, batch_size=num_images, generator=generator(0, "noise")
    )
    assert torch.allclose(flatten(found), naive(model, images, labels, clip_norm=clip_norm), atol=1e-5, rtol=1e-4)
    assert l2_norm(found) <= clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("num_images", [0, 1, 6])
def test_noise_is_measured_by_the_norm_and_divided_by_the_expected_batch_size(num_images):
    model, (images, labels) = make_model("mlp"), draw_batch(num_images)

    def gradient(noise_multiplier):
        return DpSgd(clip_norm=0.5, noise_multiplier=noise_multiplier).gradient(
            model, images, labels, batch_size=4, generator=generator(0, "noise")
        )

    noise = flatten(subtract(gradient(3.0), gradient(0.0)))
    assert noise.std().item() == pytest.approx(3.0 * 0.5 / 4, rel=0.05)


def test_a_step_leaves_nothing_behind():
    model, (images, labels) = make_model("lenet"), draw_batch(4)
    plain = gradient_on(model, images, labels)
    defense = DpSgd(clip_norm=0.5, noise_multiplier=1.0)
    first = defense.gradient(model, images, labels, batch_size=4, generator=generator(0, "noise"))
    again = defense.gradient(model, images, labels, batch_size=4, generator=generator(0, "noise"))
    assert torch.equal(flatten(first), flatten(again))
    assert torch.equal(flatten(gradient_on(model, images, labels)), flatten(plain))
    assert all(parameter.grad is None and parameter.grad_sample is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_momentum_comes_after_the_noise():
    images, labels = draw_batch(4)
    defense = DpSgd(clip_norm=0.5, noise_multiplier=1.0)
    gradients = []

    def noised(model, images, labels, step):
        gradients.append(
            flatten(defense.gradient(model, images, labels, batch_size=4, generator=generator(0, "noise", step)))
        )
        return defense.gradient(model, images, labels, batch_size=4, generator=generator(0, "noise", step)), None

    model = make_model("mlp")
    before = flatten(dict(model.named_parameters())).detach().clone()
    recipe = LocalTraining(epochs=2, learning_rate=0.1, momentum=0.5)
    train_locally(model, images, labels, recipe, generator=generator(0, "order"), step_gradient=noised)
    after = flatten(dict(model.named_parameters())).detach()
    assert torch.allclose(after - before, -0.1 * (1.5 * gradients[0] + gradients[1]), atol=1e-6)


def test_sampled_batches_have_the_stated_rate_and_number():
    recipe = LocalTraining(epochs=200, batch_size=4)
    batches = list(poisson_batches(10, recipe, generator(0, "batches")))
    assert len(batches) == recipe.steps(10) == 600
    counts = torch.bincount(torch.cat(batches), minlength=10) / 600
    assert torch.allclose(counts, torch.full((10,), 0.4), atol=0.08)
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert sizes.var().item() == pytest.approx(10 * 0.4 * 0.6, rel=0.2)  # binomial: drawn independently
    assert [len(batch) for batch in poisson_batches(3, LocalTraining(batch_size=4), generator(0, "b"))] == [3]


# (sigma, q, steps, accountant, epsilon at delta = 1e-5): Opacus 1.6.0, tests/accountants_test.py.
GOLDEN_OPACUS = [(1.5, 0.04, 2250, "rdp", 7.32911117143), (1.5, 0.04, 2249, "prv", 6.777395712150674)]
# TensorFlow Privacy, tutorials/README.md, "Select Parameters": MNIST, batches of 256 of 60 000, delta = 1e-5.
GOLDEN_TENSORFLOW = [(1.12, 60, 2.92), (1.2, 10, 1.20)]


@pytest.mark.parametrize(("sigma", "rate", "num_steps", "accountant", "epsilon"), GOLDEN_OPACUS)
def test_epsilon_is_that_of_the_accountants_own_tests(sigma, rate, num_steps, accountant, epsilon):
    found = epsilon_of(
        noise_multiplier=sigma, sampling_rate=rate, num_steps=num_steps, delta=1e-5, accountant=accountant
    )
    assert found == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize(("sigma", "epochs", "epsilon"), GOLDEN_TENSORFLOW)
def test_epsilon_agrees_with_another_library(sigma, epochs, epsilon):
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    rate, num_steps = 256 / 60_000, epochs * 60_000 // 256
    orders = np.array(RDPAccountant.DEFAULT_ALPHAS)
    divergences = compute_rdp(q=rate, noise_multiplier=sigma, steps=num_steps, orders=list(orders))
    # The published numbers come from the classical conversion (Mironov 2017, Proposition 3); ours from a tighter one.
    assert (divergences + math.log(1e5) / (orders - 1)).min() == pytest.approx(epsilon, abs=0.005)
    ours = [
        epsilon_of(noise_multiplier=sigma, sampling_rate=rate, num_steps=num_steps, delta=1e-5, accountant=accountant)
        for accountant in ("prv", "rdp")
    ]
    assert 0.6 * epsilon < ours[0] < ours[1] < epsilon


@pytest.mark.parametrize(("sigma", "num_steps"), [(1.5, 1), (1.0, 10), (4.0, 30)])
def test_without_sampling_epsilon_is_that_of_the_gaussian_mechanism(sigma, num_steps):
    # T releases with noise sigma are one with sigma / sqrt(T). Balle and Wang, Improving the Gaussian Mechanism for
    # Differential Privacy, ICML 2018, Theorem 8, solved for epsilon.
    one = sigma / math.sqrt(num_steps)

    def excess(epsilon):
        first, second = norm.cdf(0.5 / one - epsilon * one), norm.cdf(-0.5 / one - epsilon * one)
        return first - math.exp(epsilon) * second - 1e-5

    exact = brentq(excess, 0, 100)
    prv, rdp = (
        epsilon_of(noise_multiplier=sigma, sampling_rate=1.0, num_steps=num_steps, delta=1e-5, accountant=accountant)
        for accountant in ("prv", "rdp")
    )
    assert exact <= prv <= exact + 0.02
    assert prv < rdp < 1.1 * exact


@pytest.mark.filterwarnings("error")
def test_epsilon_is_defined_for_hardly_any_noise_and_for_a_lot_of_it():
    def epsilons(sigma, rate, num_steps):
        return [
            epsilon_of(
                noise_multiplier=sigma, sampling_rate=rate, num_steps=num_steps, delta=1e-5, accountant=accountant
            )
            for accountant in ("prv", "rdp")
        ]

    weak, strong = epsilons(0.01, 1.0, 100), epsilons(1000.0, 0.01, 1)
    assert weak[0] == weak[1] > 100_000  # where the numerical accountant's grid would fill the memory
    assert 0 < strong[0] < strong[1] < 0.2


def test_a_client_reports_what_its_sampling_allows():
    training = LocalTraining(epochs=3, batch_size=5)
    arguments = {"num_examples": 50, "training": training, "num_rounds": 2}

    def epsilon(rate, num_steps):
        return epsilon_of(noise_multiplier=1.3, sampling_rate=rate, num_steps=num_steps, delta=1e-5, accountant="rdp")

    sampled = DpSgd(clip_norm=1.0, noise_multiplier=1.3, sampling="poisson").privacy(**arguments)
    dealt = DpSgd(clip_norm=1.0, noise_multiplier=1.3).privacy(**arguments)
    assert sampled == {"epsilon": epsilon(0.1, 60)}  # m / N_c, rounds x epochs x ten batches
    assert dealt == {"epsilon": epsilon(1.0, 6), "epsilon-if-poisson": epsilon(0.1, 60)}
    assert dealt["epsilon"] > sampled["epsilon"]
    assert DpSgd(clip_norm=1.0, noise_multiplier=0.0).privacy(**arguments) == {}


def test_a_full_batch_is_one_release_a_round_however_it_is_drawn():
    arguments = {"num_examples": 7, "training": LocalTraining(), "num_rounds": 3}
    sampled = DpSgd(clip_norm=1.0, noise_multiplier=2.0, sampling="poisson").privacy(**arguments)
    dealt = DpSgd(clip_norm=1.0, noise_multiplier=2.0).privacy(**arguments)
    assert sampled["epsilon"] == dealt["epsilon"] == dealt["epsilon-if-poisson"]


class _Running(nn.Module):
    """A trainable layer that keeps a statistic of its inputs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs):
        return inputs * self.scale


def test_other_layers_that_remember_the_batch_are_refused_too():
    with pytest.raises(ConfigError, match="Opacus cannot take per-example gradients"):
        DpSgd(clip_norm=1.0, noise_multiplier=1.0).check_model(nn.Sequential(_Running(), nn.Linear(3, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be > 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be a number >= 0"),
        ({"clip_norm": math.inf}, "needs a finite clip_norm"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\), got 0.0"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DpSgd(**{"clip_norm": 1.0, "noise_multiplier": 1.0, **changes})
