"""What a threat model withholds: an attack does without it, or says what it misses; nothing leaks past the grant."""

from dataclasses import fields, replace

import pytest
import torch
from small_problems import bn_cnn, observe, pictures, spec

from attacker.attack import DoesNotApplyError
from attacker.labels import LABEL_RECOVERIES
from attacker.observation import Knowledge, NotGrantedError, Observation, ThreatModel
from attacker.recipes import ATTACKS
from attacker.threat_models import THREAT_MODELS
from fl_sim.options import build
from fl_sim.records import LocalTraining

DATASET = spec()
RECIPE = LocalTraining(epochs=2, batch_size=2, learning_rate=0.05)
EVERYTHING = ThreatModel(
    name="everything",
    description="",
    realistic=False,
    local_steps=True,
    label_counts=True,
    batch_label_counts=True,
    batch_statistics=True,
    defenses=True,
)
PIECES = [field.name for field in fields(Knowledge) if field.name != "cohort"]
SHORT = {
    "gradinversion": {"steps": 2, "group_size": 1},
    "dlg": {"steps": 2, "iterations_per_step": 1},
    "idlg": {"steps": 2, "iterations_per_step": 1, "label_recovery": "automatic"},
    "analytic": {},
    "epoch_search": {"options": {"steps": 2}},
}


def observation(threat_model: ThreatModel = EVERYTHING) -> Observation:
    batches = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]] * 2)
    images, labels = pictures(3), torch.tensor([0, 1, 2])
    return observe(
        bn_cnn(DATASET), DATASET, images, labels, recipe=RECIPE, threat_model=threat_model, batch_label_counts=batches
    )


def attempt(run):
    """Return the result, or ``None`` and the clear error; any other error is a failure of the test."""
    try:
        return run(), ""
    except (NotGrantedError, DoesNotApplyError) as error:
        return None, f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_without_or_says_what_it_misses(name, piece):
    whole = observation()
    assert getattr(whole.knowledge, piece) is not None
    poorer = replace(whole, knowledge=replace(whole.knowledge, **{piece: None}))
    attack = build(ATTACKS[name], SHORT.get(name, {"steps": 2}), where="options")
    found, missing = attempt(lambda: attack(poorer, generator=torch.Generator().manual_seed(0)))
    if found is None:
        assert piece in missing or not missing.startswith("NotGrantedError")
    else:
        assert found.images.shape == (3, 1, 8, 8)
        assert bool(found.images.isfinite().all())


@pytest.mark.parametrize("piece", ["num_examples", "local_training"])
@pytest.mark.parametrize("name", LABEL_RECOVERIES)
def test_a_label_recovery_does_without_or_says_what_it_misses(name, piece):
    whole = observation(THREAT_MODELS["honest_but_curious"])
    poorer = replace(whole, knowledge=replace(whole.knowledge, **{piece: None}))
    counts, missing = attempt(lambda: LABEL_RECOVERIES[name](poorer, generator=torch.Generator().manual_seed(0)))
    assert piece in missing or not missing.startswith("NotGrantedError") if counts is None else int(counts.sum()) == 3


@pytest.mark.parametrize("threat_model", THREAT_MODELS.values(), ids=list(THREAT_MODELS))
def test_an_observation_holds_what_is_granted_and_no_more(threat_model):
    granted = set(threat_model.granted())
    knowledge = observation(threat_model).knowledge
    held = {field.name for field in fields(Knowledge) if getattr(knowledge, field.name) is not None}
    assert held == granted
