"""Knowing a defense recovers more than not knowing it, defense by defense, on problems of a second."""

from dataclasses import replace

import pytest
import torch
from defended_clients import DATASET, ETA, KNOWING, LABELS, declared, defended, naive, quality
from small_problems import cnn, pictures

from attacker.image_span import ImageSpan, image_span
from attacker.inversion_problem import inversion_problem
from attacker.observation import Observation
from attacker.recipes.automatic import Automatic, Choice
from attacker.recipes.feature_span import FeatureSpan
from attacker.recipes.fedavg_leakage import FedAvgLeakage
from attacker.recipes.inverting_gradients import InvertingGradients
from clients.defenses import GaussianNoise
from clients.local_training import gradient_on
from fl_sim.parameters import add, scale
from fl_sim.records import Algorithm, ClientUpdate, DeclaredDefense, LocalTraining, RoundRecord

ATTACK = InvertingGradients(steps=120)
NOISE = declared("gaussian_noise", stddev=0.02)


@pytest.mark.parametrize(
    ("defense", "margin_db"),
    [
        (NOISE, 3.0),
        (declared("laplace_noise", scale=0.015), 3.0),
        (declared("random_pruning", probability=0.6), 8.0),
        (declared("magnitude_pruning", share=0.9), 3.0),
        (declared("top_k", share=0.05), 3.0),
        (declared("quantisation", bits=2), 2.0),
        (declared("sign"), 3.0),
        (declared("soteria", pruned_percent=90), 5.0),
        (declared("clipping", clip_norm=0.1, where="example"), 4.0),
        (declared("dp_sgd", clip_norm=0.1, noise_multiplier=0.02), 3.0),
    ],
    ids=lambda value: value.name if isinstance(value, DeclaredDefense) else "",
)
def test_knowing_the_defense_recovers_more(defense, margin_db) -> None:
    observation = defended(defense)
    assert quality(ATTACK, observation) > quality(ATTACK, naive(observation)) + margin_db


def test_the_noise_level_weights_tensors_where_batches_are_unknown() -> None:
    recipe, labels = LocalTraining(epochs=2, batch_size=2, learning_rate=0.05), torch.tensor([0, 1, 2, 3])
    observation = defended(declared("gaussian_noise", stddev=1e-3), recipe=recipe, labels=labels)
    problem = inversion_problem(observation, "automatic", torch.Generator())
    assert problem.adaptation is not None
    assert len(problem.adaptation.steps) == 1
    knowing, not_knowing = (quality(ATTACK, seen, labels=labels) for seen in (observation, naive(observation)))
    assert knowing > not_knowing + 1


def several_rounds(num_rounds: int, *, stddev: float, server_rate: float) -> Observation:
    """Return the last reply of a client with the same two images in every round, and those before it as one mean."""
    model, images = cnn(DATASET), pictures(2)
    records: list[RoundRecord] = []
    for server_round in range(1, num_rounds + 1):
        weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        gradient = gradient_on(model, images, LABELS)
        stream = torch.Generator().manual_seed(server_round)
        update = ClientUpdate(
            server_round=server_round,
            client_id=0,
            num_examples=2,
            algorithm=Algorithm.FEDSGD,
            tensors=GaussianNoise(stddev=stddev)(gradient, num_examples=2, generator=stream),
            buffers={},
        )
        records.append(
            RoundRecord(
                server_round=server_round, global_parameters=weights, global_buffers={}, updates=(update,), failures=()
            )
        )
        model.load_state_dict({**model.state_dict(), **add(weights, scale(gradient, -server_rate))})
    return KNOWING.observe(
        model=model,
        dataset=DATASET,
        record=records[-1],
        update=records[-1].updates[0],
        earlier=[(record, record.updates[0]) for record in records[:-1]],
        local_training=LocalTraining(learning_rate=ETA),
        label_counts=torch.bincount(LABELS, minlength=4),
        defenses=[declared("gaussian_noise", stddev=stddev)],
    )


def test_noise_averages_out_over_rounds() -> None:
    one, many = (several_rounds(number, stddev=0.1, server_rate=1e-3) for number in (1, 16))
    problems = [inversion_problem(seen, "automatic", torch.Generator()) for seen in (one, many)]
    assert problems[1].noise_variance("5.weight") == pytest.approx(problems[0].noise_variance("5.weight") / 16)
    assert problems[1].trust > 5 * problems[0].trust
    assert quality(ATTACK, many) > quality(ATTACK, one) + 3
    # Averaging is one thing, knowing the level of what is left another: both help.
    assert quality(ATTACK, many) > quality(ATTACK, naive(many)) + 1
    found = ATTACK(many, generator=torch.Generator())
    assert "the update is the mean of 16 rounds, taken as replies with the same data" in found.remarks


def test_a_mean_over_rounds_must_be_of_one_client() -> None:
    seen = several_rounds(1, stddev=0.1, server_rate=1e-3)
    update = ClientUpdate(
        server_round=1, client_id=0, num_examples=2, algorithm=Algorithm.FEDSGD, tensors=seen.delta, buffers={}
    )
    record = RoundRecord(
        server_round=2,
        global_parameters=seen.global_parameters,
        global_buffers={},
        updates=(update,),
        failures=(),
    )
    for other in (replace(update, client_id=1), replace(update, num_examples=3)):
        with pytest.raises(ValueError, match=r"expected client, N_c and algorithm \(0, 2, .*in round 1"):
            KNOWING.observe(
                model=seen.model,
                dataset=DATASET,
                record=record,
                update=replace(update, server_round=2),
                earlier=[(record, other)],
                local_training=LocalTraining(),
                label_counts=torch.bincount(LABELS, minlength=4),
            )


def test_the_span_is_left_out_where_noise_or_soteria_spoils_it() -> None:
    attack = FeatureSpan(steps=80, rounds=1, round_steps=10)
    labels = torch.tensor([0, 1, 2, 3])

    def has_span(defense: DeclaredDefense) -> bool:
        problem = inversion_problem(defended(defense, labels=labels), "automatic", torch.Generator())
        return isinstance(image_span(problem), ImageSpan)

    assert has_span(declared("gaussian_noise", stddev=1e-6))
    assert not has_span(declared("gaussian_noise", stddev=0.1))
    assert not has_span(declared("soteria", pruned_percent=90))
    for defense, margin_db in (
        (declared("soteria", pruned_percent=90), 1),
        (declared("gaussian_noise", stddev=0.05), 2),
    ):
        observation = defended(defense, labels=labels)
        knowing, not_knowing = (quality(attack, seen, labels=labels) for seen in (observation, naive(observation)))
        assert knowing > not_knowing + margin_db


def test_the_automatic_attack_does_without_a_span_that_a_known_defense_hides() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    recipe = LocalTraining(epochs=2, batch_size=2, learning_rate=0.05)

    def chosen(defense: DeclaredDefense) -> Choice:
        return Automatic().choose(defended(defense, labels=labels, recipe=recipe))

    assert isinstance(chosen(declared("gaussian_noise", stddev=1e-7)).attack, FeatureSpan)
    hidden, drowned = chosen(declared("soteria", pruned_percent=90)), chosen(declared("gaussian_noise", stddev=0.1))
    assert hidden.attack == drowned.attack == FedAvgLeakage(loss="cosine")
    assert "no span, a known defense spoils" in hidden.remark
    assert "no span, known noise leaves 0 directions" in drowned.remark
    # Who does not know of it cannot tell.
    not_knowing = naive(defended(declared("soteria", pruned_percent=90), labels=labels, recipe=recipe))
    assert isinstance(Automatic().choose(not_knowing).attack, FeatureSpan)
