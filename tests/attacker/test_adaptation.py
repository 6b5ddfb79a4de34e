"""The attacker who knows the defenses: exact at the truth, and further than the one who does not."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from small_problems import cnn, observe, pictures, spec
from torch import Tensor

from attacker.inversion_problem import inversion_problem
from attacker.observation import Observation
from attacker.recipes.inverting_gradients import InvertingGradients
from attacker.scoring import score
from attacker.threat_models import THREAT_MODELS
from clients.defenses import DEFENSES
from fl_sim.parameters import scale, subtract
from fl_sim.records import DeclaredDefense, LocalTraining

DATASET = spec(num_classes=4)
IMAGES, LABELS = pictures(2), torch.tensor([1, 3])
RECIPE = LocalTraining(epochs=2, learning_rate=0.05)
KNOWING = THREAT_MODELS["known_defenses_and_label_counts"]


def defended(*defenses: DeclaredDefense, recipe: LocalTraining | None = RECIPE) -> Observation:
    """Return what a server sees that knows the defenses."""
    plain = observe(cnn(DATASET), DATASET, IMAGES, LABELS, recipe=recipe, threat_model=KNOWING)
    # A FedSGD client defends its gradient, and the delta is minus eta times that.
    eta = 0.1
    update: Mapping[str, Tensor] = scale(plain.delta, -1 / eta) if recipe is None else plain.delta
    for defense in defenses:
        options = {name: value for name, value in defense.options.items() if name != "where"}
        defend = DEFENSES[defense.name](**options)
        update = defend(update, num_examples=2, generator=torch.Generator().manual_seed(5))
    delta = scale(update, -eta) if recipe is None else update
    return replace(plain, delta=delta, knowledge=replace(plain.knowledge, defenses=defenses))


def naive(observation: Observation) -> Observation:
    return replace(observation, knowledge=replace(observation.knowledge, defenses=None))


def matching_at_truth(observation: Observation) -> float:
    problem = inversion_problem(observation, "automatic", torch.Generator().manual_seed(0))
    ordered = IMAGES[[LABELS.tolist().index(int(label)) for label in problem.labels]]
    residual = subtract(problem.simulate(ordered, "full"), problem.observed)
    length = torch.stack([tensor.square().sum() for tensor in problem.observed.values()]).sum()
    return float(torch.stack([tensor.square().sum() for tensor in residual.values()]).sum() / length)


PRUNING = DeclaredDefense(name="random_pruning", options={"probability": 0.5})
CLIPPING = DeclaredDefense(name="clipping", options={"clip_norm": 0.05})


@pytest.mark.parametrize("recipe", [None, RECIPE], ids=["fedsgd", "fedavg"])
@pytest.mark.parametrize(
    "defenses",
    [
        (PRUNING,),
        (DeclaredDefense(name="magnitude_pruning", options={"share": 0.7}),),
        (DeclaredDefense(name="top_k", options={"share": 0.2, "where": "update"}),),
        (CLIPPING,),
        (CLIPPING, PRUNING),
    ],
    ids=lambda defenses: "+".join(defense.name for defense in defenses),
)
def test_the_truth_matches_what_was_sent(defenses, recipe) -> None:
    observation = defended(*defenses, recipe=recipe)
    assert matching_at_truth(observation) < 1e-8
    assert matching_at_truth(naive(observation)) > 0.01


def test_a_step_of_fedsgd_is_what_is_sent_and_one_of_many_is_not() -> None:
    inside = replace(CLIPPING, options={**CLIPPING.options, "where": "step"})
    assert matching_at_truth(defended(inside, recipe=None)) < 1e-8
    problem = inversion_problem(defended(inside), "automatic", torch.Generator().manual_seed(0))
    assert problem.adaptation is None
    for name in ("gaussian_noise", "sign"):
        unknown = replace(defended().knowledge, defenses=(DeclaredDefense(name=name, options={}),))
        observation = replace(defended(), knowledge=unknown)
        assert inversion_problem(observation, "automatic", torch.Generator().manual_seed(0)).adaptation is None


def test_what_follows_a_defense_is_differentiated() -> None:
    problem = inversion_problem(defended(CLIPPING, PRUNING), "automatic", torch.Generator().manual_seed(0))
    problem = replace(
        problem,
        model=problem.model.double(),
        parameters={name: tensor.double() for name, tensor in problem.parameters.items()},
        buffers={name: tensor.double() for name, tensor in problem.buffers.items()},
    )

    def update(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[:3] for tensor in problem.simulate(images, "full").values())

    assert torch.autograd.gradcheck(update, pictures(2, seed=3)[:, :, :, :].double().requires_grad_(), fast_mode=True)


def test_knowing_the_pruning_recovers_more() -> None:
    observation = defended(DeclaredDefense(name="random_pruning", options={"probability": 0.6}), recipe=None)
    attack = InvertingGradients(steps=300, total_variation=1e-4)

    def quality(seen: Observation) -> float:
        found = attack(seen, generator=torch.Generator().manual_seed(1))
        scored = score(
            images=found.images, labels=found.labels, private_images=IMAGES, private_labels=LABELS, num_classes=4
        )
        assert scored.mean_psnr_db is not None
        return scored.mean_psnr_db

    assert quality(observation) > quality(naive(observation)) + 3
