"""What the tests of adaptive attacks share: what a server sees of a client that defends itself as a real one does."""

from dataclasses import replace

import torch
from small_problems import cnn, observe, pictures, spec
from torch import Tensor, nn

from attacker.attack import Attack
from attacker.observation import Observation
from attacker.scoring import score
from attacker.threat_models import THREAT_MODELS
from clients.defenses import DEFENSES, GradientDefense, arrange, chain
from clients.local_training import train_locally
from fl_sim.parameters import scale, subtract
from fl_sim.records import Algorithm, DeclaredDefense, LocalTraining

DATASET = spec(num_classes=4)
LABELS = torch.tensor([1, 3])
KNOWING = THREAT_MODELS["known_defenses_and_label_counts"]
ETA = 0.1  # of FedSGD, whose delta is minus eta times the gradient


def declared(name: str, **options: object) -> DeclaredDefense:
    return DeclaredDefense(name=name, options=options)


def defended(
    *defenses: DeclaredDefense,
    recipe: LocalTraining | None = None,
    images: Tensor | None = None,
    labels: Tensor = LABELS,
    model: nn.Module | None = None,
    seed: int = 5,
) -> Observation:
    """Return what a server sees that knows the defenses: FedSGD without a recipe, else FedAvg."""
    model = model or cnn(DATASET)
    images = pictures(len(labels)) if images is None else images
    plain = observe(model, DATASET, images, labels, recipe=recipe, threat_model=KNOWING)
    arranged = arrange([_link(defense) for defense in defenses])
    stream = torch.Generator().manual_seed(seed)
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def step_gradient(model: nn.Module, images: Tensor, labels: Tensor, step: int):
        return arranged.gradient(model, images, labels, batch_size=len(labels), generator=stream)

    if recipe is None:
        update, _ = step_gradient(model, images, labels, 0)
    else:
        order = torch.Generator().manual_seed(99)
        train_locally(model, images, labels, recipe, generator=order, step_gradient=step_gradient)
        update = subtract({name: tensor.detach().clone() for name, tensor in model.named_parameters()}, start)
        model.load_state_dict({**model.state_dict(), **start})
    update = chain(arranged.on_update)(update, num_examples=len(labels), generator=stream)
    delta = scale(update, -ETA) if plain.algorithm is Algorithm.FEDSGD else update
    return replace(plain, delta=delta, knowledge=replace(plain.knowledge, defenses=defenses))


def naive(observation: Observation) -> Observation:
    """Return the same without the grant."""
    return replace(observation, knowledge=replace(observation.knowledge, defenses=None))


def quality(
    attack: Attack, observation: Observation, *, images: Tensor | None = None, labels: Tensor = LABELS, seed: int = 1
) -> float:
    """Return the mean PSNR in dB that an attack reaches."""
    found = attack(observation, generator=torch.Generator().manual_seed(seed))
    private = pictures(len(labels)) if images is None else images
    scored = score(
        images=found.images, labels=found.labels, private_images=private, private_labels=labels, num_classes=4
    )
    assert scored.mean_psnr_db is not None
    return scored.mean_psnr_db


def _link(defense: DeclaredDefense):
    options = {name: value for name, value in defense.options.items() if name != "where"}
    built = DEFENSES[defense.name](**options)
    return built if isinstance(built, GradientDefense) else (defense.where, built)
