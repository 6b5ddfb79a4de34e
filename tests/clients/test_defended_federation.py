"""Every defense in a federation, FedSGD and FedAvg: it runs, acts where it should, and differs by client and step."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from clients.client_app import build_defense
from clients.defenses import DEFENSES, GradientDefense
from clients.defenses.privacy_accounting import epsilon_of
from fl_sim.errors import ConfigError
from fl_sim.parameters import flatten

ALGORITHMS = {
    "fedavg": (),
    "fedsgd": ("federation.algorithm=fedsgd", "training={learning_rate=0.1}"),
}
# Name and options; the second options leave everything as it is, where that can be said.
STRENGTHS: Mapping[str, tuple[str, str | None]] = {
    "clipping": ("clip_norm=0.01", "clip_norm=1e30"),
    "gaussian_noise": ("stddev=0.1", "stddev=0.0"),
    "laplace_noise": ("scale=0.1", "scale=0.0"),
    "magnitude_pruning": ("share=0.5", "share=0.0"),
    "random_pruning": ("probability=0.5", "probability=0.0"),
    "top_k": ("share=0.1", "share=1.0"),
    "sign": ("", None),
    "quantisation": ("bits=3", "bits=32"),
    "dp_sgd": ("clip_norm=0.1, noise_multiplier=1.0", "noise_multiplier=0.0"),
    "soteria": ("pruned_percent=30.0", "pruned_percent=0.0"),
}
PLACED = [
    (name, place)
    for name, defense in DEFENSES.items()
    for place in ([None] if isinstance(defense, GradientDefense) else ["update", "step", "example"])
]


def link(name, options="", where=None):
    place = [] if where is None else [f"where='{where}'"]
    return f"{{name='{name}', options={{{', '.join([options] * bool(options) + place)}}}}}"


def chain_of(*links):
    return f"defenses=[{', '.join(links)}]"


def sent(run):
    """Return all that the clients sent, round by round and client by client."""
    return [flatten(update.tensors) for t in run.recording.rounds() for update in run.recording.read_round(t).updates]


@pytest.fixture(scope="module")
def undefended(run_tiny):
    return {algorithm: sent(run_tiny(*changes)) for algorithm, changes in ALGORITHMS.items()}


def test_every_defense_is_here():
    assert set(STRENGTHS) == set(DEFENSES)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("name", "place"), PLACED)
def test_every_defense_runs_and_changes_what_is_sent(run_tiny, undefended, name, place, algorithm):
    run = run_tiny(chain_of(link(name, STRENGTHS[name][0], place)), *ALGORITHMS[algorithm])
    found = sent(run)
    assert all(not run.recording.read_failures(t) for t in run.recording.rounds())
    assert len(found) == len(undefended[algorithm]) == 6
    assert not any(torch.equal(first, second) for first, second in zip(found, undefended[algorithm], strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("name", "place"), [(name, place) for name, place in PLACED if STRENGTHS[name][1] is not None])
def test_strength_zero_sends_what_no_defense_sends_to_the_last_bit(run_tiny, undefended, name, place, algorithm):
    run = run_tiny(chain_of(link(name, STRENGTHS[name][1], place)), *ALGORITHMS[algorithm])
    assert all(torch.equal(first, second) for first, second in zip(sent(run), undefended[algorithm], strict=True))


def test_plain_training_by_dp_sgd_keeps_its_batches(run_tiny, undefended):
    run = run_tiny(chain_of(link("dp_sgd", "noise_multiplier=0.0, sampling='poisson'")))
    assert all(torch.equal(first, second) for first, second in zip(sent(run), undefended["fedavg"], strict=True))


def test_links_are_applied_in_the_order_of_the_file(run_tiny):
    clip, noise = link("clipping", "clip_norm=0.01"), link("gaussian_noise", "stddev=0.1")

    def length(*links):
        record = run_tiny(chain_of(*links)).recording.read_round(1)
        return flatten(record.updates[0].delta(record.global_parameters, 0.1)).norm().item()

    assert length(noise, clip) == pytest.approx(0.01, rel=1e-3)
    assert length(clip, noise) > 1


def test_noise_in_every_step_is_drawn_anew_in_every_epoch(run_tiny):
    # Independent noise in U = E B steps sums up to eta sigma sqrt(U), noise that repeats in each epoch to
    # eta sigma E sqrt(B).
    def delta(*changes):
        run = run_tiny("training.epochs=8", "training.batch_size=3", "data.num_clients=1", *changes)
        record = run.recording.read_round(1)
        return flatten(record.updates[0].delta(record.global_parameters, 0.1))

    # Weak noise hardly moves the path of training, so that the difference is the noise itself.
    step = delta(chain_of(link("gaussian_noise", "stddev=1e-4", "step"))) - delta()
    assert step.std().item() == pytest.approx(0.1 * 1e-4 * 16**0.5, rel=0.1)
    example = delta(chain_of(link("gaussian_noise", "stddev=1e-4", "example"))) - delta()
    assert example.std().item() == pytest.approx(0.1 * 1e-4 * (16 / 3) ** 0.5, rel=0.1)


DRAWS: list[tuple[int, int]] = []


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Writes down its first draw and changes nothing: also the test that a user's own defense is found by its name."""

    digits: int = 9

    def __call__(self, update, *, num_examples, generator):
        DRAWS.append((num_examples, int(torch.randint(10**self.digits, (), generator=generator))))
        return update


@pytest.mark.parametrize(
    ("where", "algorithm", "sizes"),
    [
        ("update", "fedavg", [6] * 6),
        ("update", "fedsgd", [6] * 6),
        ("step", "fedavg", [4, 2, 4, 2] * 6),
        ("step", "fedsgd", [6] * 6),
        ("example", "fedavg", [1] * 72),
        ("example", "fedsgd", [1] * 36),
    ],
)
def test_draws_differ_by_client_round_and_step_and_repeat_with_the_seed(run_tiny, where, algorithm, sizes):
    def draws(*changes):
        DRAWS.clear()
        own = link("test_defended_federation:Draw", "digits=12", where)
        run_tiny(chain_of(own), *ALGORITHMS[algorithm], *changes)
        return list(DRAWS)

    first = draws()
    assert [size for size, _ in first] == sizes  # three clients, two rounds, two epochs of two batches
    assert len({value for _, value in first}) == len(first)
    assert draws() == first
    assert not {value for _, value in draws("seed=1")} & {value for _, value in first}


@dataclass(frozen=True, kw_only=True)
class OwnGradient:
    """A user's own way to compute a gradient."""

    value: float = 0.5

    def check_model(self, model):
        if not isinstance(model, torch.nn.Sequential):
            raise ConfigError("OwnGradient needs a Sequential")

    def gradient(self, model, images, labels, *, batch_size, generator):
        return {name: torch.full_like(tensor, self.value) for name, tensor in model.named_parameters()}


def test_a_users_own_gradient_defense_is_found_by_its_name(run_tiny):
    own = chain_of(link("test_defended_federation:OwnGradient", "value=2.0"))
    assert all(
        torch.equal(tensor, torch.full_like(tensor, 2.0)) for tensor in sent(run_tiny(own, *ALGORITHMS["fedsgd"]))
    )
    record = run_tiny(own).recording.read_round(1)
    delta = flatten(record.updates[0].delta(record.global_parameters, 0.1))
    assert torch.allclose(delta, torch.full_like(delta, -0.1 * 4 * 2.0), atol=1e-5)  # four local steps


@pytest.mark.parametrize("sampling", ["epochs", "poisson"])
def test_epsilon_is_composed_over_the_rounds_in_which_a_client_took_part(run_tiny, sampling):
    run = run_tiny(
        chain_of(link("dp_sgd", f"clip_norm=0.5, noise_multiplier=2.0, sampling='{sampling}'")),
        "data.num_clients=4",
        "federation.clients_per_round=2",
        "federation.num_rounds=4",
    )
    rounds = dict.fromkeys(range(4), 0)
    for server_round in run.recording.rounds():
        for update in run.recording.read_round(server_round).updates:
            rounds[update.client_id] += 1
            taken = rounds[update.client_id]

            def epsilon(rate, num_steps):
                return epsilon_of(
                    noise_multiplier=2.0, sampling_rate=rate, num_steps=num_steps, delta=1e-5, accountant="rdp"
                )

            sampled = epsilon(4 / 6, taken * 4)
            expected = (
                {"epsilon": sampled}
                if sampling == "poisson"
                else {"epsilon": epsilon(1.0, taken * 2), "epsilon-if-poisson": sampled}
            )
            assert update.metrics == pytest.approx(expected)  # and no loss, which would be in clear
    assert sum(rounds.values()) == 8
    assert len(set(rounds.values())) > 1


def test_epsilon_of_fedsgd_counts_one_full_batch_a_round(run_tiny):
    run = run_tiny(chain_of(link("dp_sgd", "clip_norm=0.5, noise_multiplier=4.0")), *ALGORITHMS["fedsgd"])
    expected = epsilon_of(noise_multiplier=4.0, sampling_rate=1.0, num_steps=2, delta=1e-5, accountant="rdp")
    assert run.recording.read_round(2).updates[0].metrics["epsilon"] == pytest.approx(expected)


def test_fedsgd_under_dp_sgd_is_one_clipped_and_noised_gradient(run_tiny):
    quiet = sent(run_tiny(chain_of(link("dp_sgd", "clip_norm=0.5, noise_multiplier=0.0")), *ALGORITHMS["fedsgd"]))
    noisy = sent(run_tiny(chain_of(link("dp_sgd", "clip_norm=0.5, noise_multiplier=3.0")), *ALGORITHMS["fedsgd"]))
    assert all(gradient.norm() <= 0.5 * (1 + 1e-5) for gradient in quiet)
    # Round 1: the same weights. The noise on the mean of six images is sigma C / 6.
    noise = torch.stack([second - first for first, second in zip(quiet[:3], noisy[:3], strict=True)])
    assert noise.std().item() == pytest.approx(3.0 * 0.5 / 6, rel=0.05)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.1


def test_what_follows_dp_sgd_leaves_its_epsilon_as_it_is(run_tiny):
    private = link("dp_sgd", "clip_norm=0.5, noise_multiplier=2.0")
    alone = run_tiny(chain_of(private)).recording.read_round(2).updates[0]
    followed = run_tiny(chain_of(private, link("sign", where="step"), link("top_k", "share=0.5")))
    update = followed.recording.read_round(2).updates[0]
    assert update.metrics == alone.metrics
    assert not torch.equal(flatten(update.tensors), flatten(alone.tensors))


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (link("dp_sgd", "clip_norm=1.0, noise_multiplier=1.0"), "dp_sgd needs the gradient of each example"),
        (link("sign", where="example"), "where = 'example' needs the gradient of each example"),
    ],
)
def test_a_model_that_a_defense_cannot_work_with_is_refused_before_the_run(tiny, defense, message):
    experiment = tiny(chain_of(defense), "model={name='resnet18', options={stem='cifar'}}", "data.options={size=8}")
    with pytest.raises(ConfigError, match=message):
        build_defense(experiment)


def test_consistent_batches_are_a_setting_of_training(run_tiny):
    # Dimitrov et al. 2022, Appendix C.3: the same batches in each epoch leak a little less.
    def first_client(*changes):
        record = run_tiny("training.epochs=3", *changes).recording.read_round(1)
        return flatten(record.updates[0].tensors)

    static = first_client("training.order=static")
    assert torch.equal(static, first_client("training.order=static"))
    assert not torch.equal(static, first_client())
