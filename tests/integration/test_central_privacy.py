"""Central differential privacy: what is clipped, how much noise there is, and what the eavesdropper still sees."""

import math
import random

import numpy as np
import pytest
import torch
from flwr.app import Message
from scipy.optimize import brentq
from scipy.stats import norm

from fl_sim.central_accounting import central_epsilon, central_guarantee
from fl_sim.errors import ConfigError
from fl_sim.global_randomness import seeded_global_randomness
from fl_sim.messages import ARRAYS, pack_reply
from fl_sim.parameters import flatten, l2_norm, scale
from fl_sim.server_privacy import CentralPrivacy

UNEQUAL = (
    "data.num_clients=30",
    "data.examples_per_client=30",
    "data.partition=dirichlet",
    "data.partition_options={alpha=0.1}",
    "federation.clients_per_round=5",
)
FEDSGD = ("federation.algorithm=fedsgd", "training={learning_rate=0.5}")


def private(clip_norm, noise_multiplier):
    return f"federation.central_privacy={{clip_norm={clip_norm}, noise_multiplier={noise_multiplier}}}"


@pytest.mark.parametrize("changes", [(), FEDSGD], ids=["fedavg", "fedsgd"])
def test_the_recording_is_raw_and_the_model_is_made_of_clipped_updates_with_equal_weights(run_tiny, changes):
    plain = run_tiny(*UNEQUAL, *changes).recording.read_round(1)
    run = run_tiny(*UNEQUAL, *changes, private(0.3, 0.0))
    record, following = run.recording.read_round(1), run.recording.read_round(2)
    assert len({update.num_examples for update in record.updates}) > 1
    for ours, theirs in zip(record.updates, plain.updates, strict=True):
        assert torch.equal(flatten(ours.tensors), flatten(theirs.tensors))
    # FedSGD: the gradient is clipped, and the step follows; so delta counts with a learning rate of 1.
    deltas = [update.delta(record.global_parameters, 1.0) for update in record.updates]
    assert min(map(l2_norm, deltas)) > 0.3
    mean = sum(flatten(scale(delta, 0.3 / l2_norm(delta))) for delta in deltas) / 5
    step = 0.5 if changes else 1.0
    expected = flatten(record.global_parameters) + step * mean
    assert torch.allclose(flatten(following.global_parameters), expected, atol=1e-6)


@pytest.mark.parametrize("changes", [(), FEDSGD], ids=["fedavg", "fedsgd"])
def test_strength_zero_is_none(run_tiny, changes):
    without, with_it = (_final(run_tiny(*changes, *privacy)) for privacy in ((), (private(1e6, 0.0),)))
    assert torch.allclose(without, with_it, atol=1e-6)


@pytest.mark.parametrize(("changes", "factor"), [((), 1.0), (FEDSGD, 0.5)], ids=["fedavg", "fedsgd"])
def test_the_noise_has_the_stated_standard_deviation(run_tiny, changes, factor):
    quiet, noisy = (run_tiny(*changes, private(0.2, z)).recording for z in (0.0, 1.5))
    noise = flatten(noisy.read_round(2).global_parameters) - flatten(quiet.read_round(2).global_parameters)
    assert noise.std().item() == pytest.approx(factor * 1.5 * 0.2 / 3, rel=5 / math.sqrt(2 * len(noise)))
    assert abs(noise.mean().item()) < 5 * noise.std().item() / math.sqrt(len(noise))


def test_the_noise_repeats_by_seed_and_differs_by_round(run_tiny):
    changes = ("training.learning_rate=1e-9", "federation.num_rounds=3", private(0.2, 1.0))  # nothing but noise
    first, second, other = (run_tiny(*changes, f"seed={seed}") for seed in (0, 0, 1))
    assert torch.equal(_final(first), _final(second))
    assert not torch.equal(_final(first), _final(other))
    models = [flatten(first.recording.read_round(t).global_parameters) for t in (1, 2, 3)]
    assert abs(torch.corrcoef(torch.stack([models[1] - models[0], models[2] - models[1]]))[0, 1]) < 0.1


def test_a_failed_client_does_not_stop_the_round_and_the_mean_of_fewer_gets_more_noise(run_tiny):
    def without_client_1(client_app):
        def answer(message, context):
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
                raise ValueError("no data today")
            return client_app(message, context)

        return answer

    runs = [run_tiny(private(0.2, z), wrap=without_client_1) for z in (0.0, 1.5)]
    models = [flatten(run.recording.read_round(2).global_parameters) for run in runs]
    noise = models[1] - models[0]
    assert [failure.client_id for failure in runs[1].recording.read_failures(1)] == [1]
    assert noise.std().item() == pytest.approx(1.5 * 0.2 / 2, rel=5 / math.sqrt(2 * len(noise)))


def test_an_update_of_zero_is_no_problem(run_tiny):
    def lazy(client_app):
        def answer(message: Message, context) -> Message:
            if message.metadata.message_type != "train":
                return client_app(message, context)
            received = {name: torch.from_numpy(a.numpy()) for name, a in message.content[ARRAYS].items()}
            return pack_reply(received, {}, num_examples=6, metrics={}, reply_to=message)

        return answer

    run = run_tiny(private(0.2, 0.0), wrap=lazy)
    assert torch.equal(_final(run), flatten(run.recording.read_round(1).global_parameters))


def test_a_model_with_batchnorm_is_refused(run_tiny):
    with pytest.raises(ConfigError, match=r"without buffers, got '.*running_mean'.*without BatchNorm"):
        run_tiny("model={name='resnet18', options={stem='cifar'}}", "data.options={size=8}", private(1.0, 1.0))


def test_the_guarantee_stands_in_the_recording(run_tiny):
    run = run_tiny(private(0.2, 1.5))
    guarantee = run.recording.read_guarantee()
    assert (guarantee["num_releases"], guarantee["delta"], guarantee["noise_multiplier"]) == (2, 1e-5, 1.5)
    assert run.recording.read_manifest().central_privacy == CentralPrivacy(clip_norm=0.2, noise_multiplier=1.5)
    assert guarantee["epsilon"] is not None or "install it" in guarantee["notice"]
    assert run_tiny().recording.read_guarantee() is None


@pytest.mark.parametrize(("noise_multiplier", "num_releases"), [(1.0, 1), (4.0, 10), (2.0, 100)])
def test_epsilon_is_a_tight_bound_of_the_exact_one(noise_multiplier, num_releases):
    pytest.importorskip("opacus")
    found = central_epsilon(CentralPrivacy(clip_norm=1.0, noise_multiplier=noise_multiplier), num_releases)
    exact = _exact_epsilon(math.sqrt(num_releases) / noise_multiplier, 1e-5)
    assert exact <= found < 1.15 * exact


def test_the_exact_epsilon_is_that_of_the_literature():
    # Dong, Roth, Su, Gaussian Differential Privacy, JRSS-B 2022, Corollary 1: mu = 1 at epsilon = 1 gives this delta.
    assert _exact_epsilon(1.0, norm.cdf(-0.5) - math.e * norm.cdf(-1.5)) == pytest.approx(1.0)


def test_without_noise_there_is_no_guarantee():
    privacy = CentralPrivacy(clip_norm=1.0, noise_multiplier=0.0)
    assert central_epsilon(privacy, 3) is None
    assert central_epsilon(privacy, 0) == 0.0
    assert central_guarantee(privacy, 3)["notice"] == "no noise, no guarantee"


def test_the_process_wide_generators_go_on_where_they_were():
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    draws = []
    for ids in ((1,), (1,), (2,)):
        with seeded_global_randomness(0, "test", *ids):
            draws.append((random.random(), np.random.rand()))
    assert (random.random(), np.random.rand()) == expected
    assert draws[0] == draws[1] != draws[2]


def _exact_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism of sensitivity over standard deviation mu (Balle, Wang, ICML 2018, Theorem 8)."""
    return brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 1e-6, 60.0)


def _final(run):
    return flatten(run.recording.read_final()[0])
