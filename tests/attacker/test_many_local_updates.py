"""Local updates of several clients at once: equal to one after the other, gradients too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import bn_cnn, cnn, mlp, pictures, spec
from torch import Tensor, nn

from attacker.gradient_clipping import GradientClipping
from attacker.local_steps import Simulation
from attacker.local_update import simulate_local_update
from attacker.many_local_updates import simulate_many_local_updates
from fl_sim.records import LocalTraining

TINY = spec(num_classes=3, side=4)


def weights_and_buffers(model: nn.Module, clients: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return those of clients who start from different weights, stacked."""
    draw, names = torch.Generator().manual_seed(5), dict(model.named_parameters())

    def stacked(tensor: Tensor) -> Tensor:
        several = tensor.detach().expand(clients, *tensor.shape).clone()
        if several.is_floating_point():
            several += 0.05 * torch.rand(several.shape, generator=draw, dtype=several.dtype)
        return several

    state = {name: stacked(tensor) for name, tensor in model.state_dict().items()}
    return (
        {name: tensor for name, tensor in state.items() if name in names},
        {name: tensor for name, tensor in state.items() if name not in names},
    )


def both(model: nn.Module, images: Tensor, labels: Tensor, recipe: LocalTraining, *, orders=None, **options):
    """Return values and derivatives by the images, (B, ...), of the batch and of one client after the other."""
    parameters, buffers = weights_and_buffers(model, len(images))
    cotangents = {
        name: torch.linspace(-1, 1, tensor[0].numel()).reshape(tensor[0].shape).to(tensor)
        for name, tensor in parameters.items()
    }

    def differentiated(update: dict[str, Tensor], own: Tensor) -> tuple[list[Tensor], Tensor]:
        dot = torch.stack([(cotangents[name] * tensor).sum() for name, tensor in update.items()]).sum()
        return [tensor.detach() for tensor in update.values()], torch.autograd.grad(dot, own)[0]

    own = images.clone().requires_grad_()
    together = simulate_many_local_updates(model, parameters, buffers, own, labels, recipe, orders=orders, **options)
    values, derivative = differentiated(together, own)
    alone: list[list[Tensor]] = []
    derivatives: list[Tensor] = []
    for client in range(len(images)):
        single = images[client].clone().requires_grad_()
        update = simulate_local_update(
            model,
            {name: tensor[client] for name, tensor in parameters.items()},
            {name: tensor[client] for name, tensor in buffers.items()},
            single,
            labels[client],
            recipe,
            order=None if orders is None else orders[client],
            **options,
        )
        value, one = differentiated(update, single)
        alone.append(value)
        derivatives.append(one)
    stacked = [torch.stack(tensors) for tensors in zip(*alone, strict=True)]
    return [*values, derivative], [*stacked, torch.stack(derivatives)]


def clients_pictures(clients: int, num_images: int, **options) -> Tensor:
    return torch.stack([pictures(num_images, seed=client, **options).double() for client in range(clients)])


def drawn_labels(clients: int, num_images: int) -> Tensor:
    return torch.randint(3, (clients, num_images), generator=torch.Generator().manual_seed(4))


def random_orders(clients: int, epochs: int, num_images: int) -> Tensor:
    draw = torch.Generator().manual_seed(8)
    orders = [torch.randperm(num_images, generator=draw) for _ in range(clients * epochs)]
    return torch.stack(orders).reshape(clients, epochs, num_images)


@settings(max_examples=40, deadline=None)
@given(
    epochs=st.integers(1, 3),
    batch_size=st.one_of(st.none(), st.integers(1, 5)),
    momentum=st.sampled_from([0.0, 0.9]),
    simulation=st.sampled_from(["full", "fedsgd_epoch", "fedsgd", 2]),
    num_images=st.integers(1, 5),
    clients=st.integers(1, 3),
    ordered=st.booleans(),
    by_epoch=st.booleans(),
    segment_length=st.sampled_from([None, 1, 2]),
)
def test_equals_one_after_the_other(
    epochs: int,
    batch_size: int | None,
    momentum: float,
    simulation: Simulation,
    num_images: int,
    clients: int,
    ordered: bool,
    by_epoch: bool,
    segment_length: int | None,
) -> None:
    recipe = LocalTraining(epochs=epochs, batch_size=batch_size, learning_rate=0.3, momentum=momentum)
    images = clients_pictures(clients, num_images, side=4)
    if by_epoch and simulation in ("full", "fedsgd_epoch"):
        images = torch.stack([images * (1 - 0.1 * epoch) for epoch in range(epochs)], dim=1)
    together, alone = both(
        mlp(TINY, hidden=5).double(),
        images,
        drawn_labels(clients, num_images),
        recipe,
        orders=random_orders(clients, epochs, num_images) if ordered else None,
        simulation=simulation,
        segment_length=segment_length,
    )
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clipping", [GradientClipping(example=0.7), GradientClipping(step=0.3)])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_clipping_is_each_clients_own(clipping: GradientClipping, momentum: float) -> None:
    recipe = LocalTraining(epochs=2, batch_size=2, learning_rate=0.1, momentum=momentum)
    model, images, labels = cnn(TINY).double(), clients_pictures(2, 3, side=4), drawn_labels(2, 3)
    images[1] *= 0.1
    clip, orders = {"clipping": clipping}, random_orders(2, 2, 3)
    together, alone = both(model, images, labels, recipe, orders=orders, **clip)
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    plain, _ = both(model, images, labels, recipe, orders=orders)
    assert not torch.allclose(plain[0], together[0])  # the norms are small enough to bite


def test_batch_norm_mixes_no_two_clients_and_leaves_the_buffers_alone() -> None:
    dataset = spec(num_classes=3, side=8)
    model, recipe = bn_cnn(dataset).double(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.1)
    images = clients_pictures(2, 4)
    images[1] = 0.2 * images[1] + 0.5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    together, alone = both(model, images, drawn_labels(2, 4), recipe)
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_gradients_by_probabilities_of_labels() -> None:
    model, recipe = mlp(TINY, hidden=3).double(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.5)
    parameters, buffers = weights_and_buffers(model, 2)
    images = clients_pictures(2, 3, side=4)

    def update(labels: Tensor) -> tuple[Tensor, ...]:
        return tuple(simulate_many_local_updates(model, parameters, buffers, images, labels, recipe).values())

    probabilities = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)).double().softmax(dim=2)
    assert torch.autograd.gradcheck(update, probabilities.requires_grad_())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.rand(3, 1, 4, 4)}, r"images must be \(B, N, C, H, W\)"),
        ({"labels": torch.zeros(2, 4, dtype=torch.int64)}, r"labels must have shape \(2, 3\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must have shape \(2, 3\)"),
        ({"orders": torch.zeros(2, 3, dtype=torch.int64)}, r"orders must have shape \(2, 2, 3\), got \(2, 3\)"),
        ({"images": torch.rand(2, 3, 3, 1, 4, 4)}, "one set for each of 2 epochs, got 3 sets"),
        ({"images": torch.rand(2, 2, 3, 1, 4, 4), "simulation": 2}, "takes gradients of shared images"),
        ({"parameters": dict(mlp(TINY).named_parameters())}, "2.weight must be stacked for 2 clients"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    parameters, buffers = weights_and_buffers(mlp(TINY), 2)
    fitting = {
        "parameters": parameters,
        "buffers": buffers,
        "images": torch.rand(2, 3, 1, 4, 4),
        "labels": torch.zeros(2, 3, dtype=torch.int64),
        "recipe": LocalTraining(epochs=2, learning_rate=0.1),
    }
    with pytest.raises(ValueError, match=message):
        simulate_many_local_updates(mlp(TINY), **{**fitting, **changes})


def test_clipping_of_examples_is_refused_where_images_are_coupled() -> None:
    model = bn_cnn(spec(num_classes=3, side=8))
    parameters, buffers = weights_and_buffers(model, 2)
    images, labels = clients_pictures(2, 3).float(), drawn_labels(2, 3)
    recipe, clipping = LocalTraining(learning_rate=0.1), GradientClipping(example=1.0)
    with pytest.raises(ValueError, match="clipping of examples needs a model that treats each image by itself"):
        simulate_many_local_updates(model, parameters, buffers, images, labels, recipe, clipping=clipping)
