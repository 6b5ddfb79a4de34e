"""Clients whose training differs from what they declare, written here from scratch in plain PyTorch.

Nothing of the replay under test is used: a client here is a loop with `torch.optim.SGD` and switches.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacker.diagnosis.replay import random_visits
from attacker.diagnosis.verdict import Diagnosis, declared_training, diagnose
from fl_sim.records import Algorithm, DatasetSpec, LocalTraining, RoundRecord
from tests.attacker.small_problems import mlp, pictures, spec

RECIPE = LocalTraining(epochs=2, batch_size=4, learning_rate=0.25)
NUM_IMAGES = 6
Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a client really does; the defaults are what it declares."""

    recipe: LocalTraining = RECIPE
    weight_decay: float = 0.0
    nesterov: bool = False
    sums_loss: bool = False
    ascends: bool = False
    drops_last: bool = False
    static: bool = False
    order_seed: int = 0
    feed: Callable[[Tensor], Tensor] = lambda images: images
    evaluated: tuple[type[nn.Module], ...] = ()
    frozen: tuple[str, ...] = ()
    step_norm: float | None = None
    example_norm: float | None = None


def orders(num_images: int, epochs: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_images, generator=draw) for _ in range(epochs)])


def train(model: nn.Module, images: Tensor, labels: Tensor, client: Client) -> dict[str, Tensor]:
    """Return the weights after training, by name; the model is left as it is."""
    torch.manual_seed(1234)  # of dropout
    own, recipe = copy.deepcopy(model).train(), client.recipe
    for module in own.modules():
        if client.evaluated and isinstance(module, client.evaluated):
            module.eval()
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(name not in client.frozen)
    optimizer = torch.optim.SGD(
        [parameter for parameter in own.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=client.weight_decay,
        nesterov=client.nesterov,
        maximize=client.ascends,
    )
    size = recipe.batch_size or len(labels)
    for epoch_order in orders(len(labels), recipe.epochs, client.order_seed):
        order = torch.arange(len(labels)) if client.static else epoch_order
        for batch in order.split(size):
            if client.drops_last and len(batch) < size:
                continue
            optimizer.zero_grad()
            if client.example_norm is None:
                loss = functional.cross_entropy(own(client.feed(images[batch])), labels[batch])
                (loss * (len(batch) if client.sums_loss else 1)).backward()
            else:
                _clip_examples(own, client.feed(images[batch]), labels[batch], client.example_norm)
            if client.step_norm is not None:
                torch.nn.utils.clip_grad_norm_(own.parameters(), client.step_norm)
            optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in own.named_parameters()}


def _clip_examples(model: nn.Module, images: Tensor, labels: Tensor, norm: float) -> None:
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for image, label in zip(images, labels, strict=True):
        gradients = torch.autograd.grad(functional.cross_entropy(model(image[None]), label[None]), parameters)
        length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        for own, gradient in zip(total, gradients, strict=True):
            own += gradient * min(1.0, norm / length) / len(labels)
    for parameter, own in zip(parameters, total, strict=True):
        parameter.grad = own


def diagnosis_of(
    client: Client,
    *,
    build: Callable[[DatasetSpec], nn.Module] = mlp,
    channels: int = 1,
    algorithm: Algorithm = Algorithm.FEDAVG,
    declared: LocalTraining = RECIPE,
    change_update: Change = lambda update: update,
    change_sent: Change = lambda sent: sent,
    knows_order: bool = True,
) -> Diagnosis:
    """Train a client, and diagnose what it sends against what it declares.

    Args:
        client: What it really does.
        build: The model.
        channels: Of the images.
        algorithm: FedSGD sends the gradient of one step of the client's training.
        declared: The recipe that the server knows.
        change_update: What becomes of the update before it is sent.
        change_sent: What becomes of the tensors that are sent.
        knows_order: Whether the diagnosis is told the client's order.
    """
    dataset = spec(channels=channels)
    model, images = build(dataset).train(), pictures(NUM_IMAGES, channels)
    labels = torch.arange(NUM_IMAGES) % dataset.num_classes
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in start}
    if algorithm is Algorithm.FEDSGD:
        declared = LocalTraining(learning_rate=declared.learning_rate)
        client = replace(client, recipe=replace(client.recipe, epochs=1, batch_size=None))
    trained = train(model, images, labels, client)
    update = change_update({name: trained[name] - start[name] for name in start})
    if algorithm is Algorithm.FEDSGD:
        sent = {name: -tensor / client.recipe.learning_rate for name, tensor in update.items()}
    else:
        sent = {name: start[name] + tensor for name, tensor in update.items()}
    return diagnose(
        declared_training(
            model=model,
            dataset=dataset,
            record=RoundRecord(
                server_round=1, global_parameters=start, global_buffers=buffers, updates=(), failures=()
            ),
            recipe=declared,
            images=images,
            labels=labels,
            visits=(orders(NUM_IMAGES, 12),)
            if knows_order
            else random_visits(NUM_IMAGES, 12, torch.Generator().manual_seed(7)),
            knows_order=knows_order,
        ),
        change_sent(sent),
        algorithm,
    )
