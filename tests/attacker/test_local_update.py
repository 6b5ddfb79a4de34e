"""The differentiable local update: equal to the client's training, and rightly differentiated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import cnn, mlp, pictures, seeded, spec
from torch import Tensor, nn

from attacker.held_sgd import held_factors
from attacker.local_steps import SIMULATIONS, held_steps
from attacker.local_update import gradient_gain, simulate_local_update
from clients.local_training import train_locally
from fl_sim.batch_order import epoch_order
from fl_sim.models import Normalisation
from fl_sim.records import LocalTraining

TINY = spec(num_classes=3, side=4)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in parameters}


def batch_norm_model() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            Normalisation(TINY.mean, TINY.std),
            nn.Conv2d(1, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 3),
        )
    ).double()


def simulate(model: nn.Module, images: Tensor, labels: Tensor, recipe: LocalTraining, **options) -> dict[str, Tensor]:
    return simulate_local_update(model, weights(model), buffers_of(model), images, labels, recipe, **options)


def client_mean_gradient(model: nn.Module, images: Tensor, labels: Tensor, recipe: LocalTraining) -> dict[str, Tensor]:
    """Return the mean gradient of the client's own training, drawing its order from seed 7."""
    start, state = weights(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_locally(model, images, labels, recipe, generator=torch.Generator().manual_seed(7))
    scale = recipe.learning_rate * recipe.steps(len(labels))
    gradient = {name: (start[name] - tensor.detach()) / scale for name, tensor in model.named_parameters()}
    model.load_state_dict(state)
    return gradient


recipes = st.builds(
    LocalTraining,
    epochs=st.integers(1, 3),
    batch_size=st.one_of(st.none(), st.integers(1, 6)),
    learning_rate=st.sampled_from([0.01, 0.3]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    order=st.sampled_from(["random", "static"]),
)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes, num_images=st.integers(1, 5), by_epoch=st.booleans())
def test_equals_the_training_of_the_client(recipe: LocalTraining, num_images: int, by_epoch: bool) -> None:
    model = mlp(TINY, hidden=6).double()
    images, labels = pictures(num_images, side=4).double(), torch.arange(num_images) % 3
    generator = torch.Generator().manual_seed(7)
    order = torch.stack([epoch_order(num_images, recipe.order, generator) for _ in range(recipe.epochs)])
    given_images = images.expand(recipe.epochs, -1, -1, -1, -1) if by_epoch else images
    simulated = simulate(model, given_images, labels, recipe, order=order)
    for name, expected in client_mean_gradient(model, images, labels, recipe).items():
        torch.testing.assert_close(simulated[name], expected, rtol=1e-9, atol=1e-12)


def test_equals_the_training_of_a_client_with_batch_norm_and_leaves_the_buffers_alone() -> None:
    model, recipe = batch_norm_model(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.1, order="static")
    images, labels = pictures(4, side=4).double(), torch.arange(4) % 3
    parameters, buffers = weights(model), buffers_of(model)
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    simulated = simulate_local_update(model, parameters, buffers, images, labels, recipe)
    for name, expected in client_mean_gradient(model, images, labels, recipe).items():
        torch.testing.assert_close(simulated[name], expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(buffers[name], before[name]) for name in before)
    assert all(not tensor.requires_grad for tensor in (*parameters.values(), *simulated.values()))


def test_each_epoch_takes_its_own_images() -> None:
    model, recipe = mlp(TINY).double(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.1, order="static")
    first, second, labels = pictures(3, side=4).double(), pictures(3, side=4, seed=1).double(), torch.arange(3)
    one = LocalTraining(epochs=1, batch_size=2, learning_rate=0.1, order="static")
    early = simulate(model, first, labels, one)
    middle = {name: tensor - 0.2 * early[name] for name, tensor in weights(model).items()}
    later = simulate_local_update(model, middle, {}, second, labels, one)
    both = simulate(model, torch.stack([first, second]), labels, recipe)
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (early[name] + later[name]) / 2)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_variants_agree_where_nothing_is_held(momentum: float) -> None:
    model, images, labels = cnn(TINY).double(), pictures(3, side=4).double(), torch.arange(3)
    one_step = LocalTraining(learning_rate=0.1, momentum=momentum)
    epochs = LocalTraining(epochs=3, learning_rate=0.1, momentum=momentum)
    for recipe, cheap in ((one_step, "fedsgd"), (one_step, "fedsgd_epoch"), (epochs, "fedsgd_epoch")):
        expected = simulate(model, images, labels, recipe)
        for name, tensor in simulate(model, images, labels, recipe, simulation=cheap).items():
            torch.testing.assert_close(tensor, expected[name])


@settings(deadline=None)
@given(recipe=recipes, num_images=st.integers(1, 5))
def test_held_gradient_equals_many_steps_with_a_constant_gradient(recipe: LocalTraining, num_images: int) -> None:
    num_steps, velocity, position = recipe.steps(num_images), 0.7, 0.0
    kept, from_velocity, from_gradient, to_velocity = held_factors(recipe.momentum, num_steps)
    expected = (kept * velocity + to_velocity * 2.0, -(from_velocity * velocity + from_gradient * 2.0))
    for _ in range(num_steps):
        velocity = recipe.momentum * velocity + 2.0
        position -= velocity
    assert (velocity, position) == pytest.approx(expected)
    model, labels = mlp(TINY).double(), torch.arange(num_images) % 3
    held = simulate(model, pictures(num_images, side=4).double(), labels, recipe, simulation="fedsgd")
    plain = LocalTraining(learning_rate=recipe.learning_rate)
    gradient = simulate(model, pictures(num_images, side=4).double(), labels, plain)
    for name, tensor in held.items():
        torch.testing.assert_close(tensor, gradient_gain(recipe, num_images) * gradient[name])


@given(recipe=recipes, num_images=st.integers(1, 30), merged=st.sampled_from([2, 5, 10]), seed=st.integers(0, 9))
def test_merged_batches_are_those_of_the_order_and_take_all_steps(
    recipe: LocalTraining, num_images: int, merged: int, seed: int
) -> None:
    randomness = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(num_images, generator=randomness) for _ in range(recipe.epochs)])
    full, found = (held_steps(name, recipe, num_images, order) for name in ("full", f"merged_{merged}"))
    assert sum(step.num_steps for step in found) == len(full) == recipe.steps(num_images)
    assert max(step.num_steps for step in found) <= merged
    for epoch in range(recipe.epochs):
        visits = [
            torch.cat([order[epoch][:0], *(s.chosen for s in steps if s.epoch == epoch)]) for steps in (full, found)
        ]
        assert torch.equal(*visits)


def test_merged_batches_are_larger_batches_at_a_larger_rate() -> None:
    model, labels, images = mlp(TINY).double(), torch.arange(4) % 3, pictures(4, side=4).double()
    small = LocalTraining(epochs=2, batch_size=1, learning_rate=0.1)
    large = LocalTraining(epochs=2, batch_size=2, learning_rate=0.2)
    for name, tensor in simulate(model, images, labels, small, simulation="merged_2").items():
        torch.testing.assert_close(tensor, simulate(model, images, labels, large)[name])


@pytest.mark.parametrize("simulation", [*SIMULATIONS, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adjoint(simulation, momentum: float) -> None:
    model = mlp(TINY, hidden=3).double()
    recipe = LocalTraining(epochs=2, batch_size=2, learning_rate=0.5, momentum=momentum)
    labels, order = torch.arange(3), torch.tensor([[2, 0, 1], [1, 2, 0]])

    def update(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(simulate(model, images, labels, recipe, simulation=simulation, order=order).values())

    assert torch.autograd.gradcheck(update, pictures(3, side=4).double().requires_grad_())


def test_certain_soft_labels_are_labels() -> None:
    model, recipe = mlp(TINY).double(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.3)
    images, labels, order = pictures(3, side=4).double(), torch.arange(3), torch.tensor([[2, 0, 1], [1, 2, 0]])
    hard = simulate(model, images, labels, recipe, order=order)
    soft = simulate(model, images, nn.functional.one_hot(labels).double(), recipe, order=order)
    uniform = simulate(model, images, torch.full((3, 3), 1 / 3).double(), recipe, order=order)
    for name, expected in hard.items():
        torch.testing.assert_close(soft[name], expected)
        assert not torch.allclose(uniform[name], expected)


@settings(max_examples=30, deadline=None)
@given(
    recipe=recipes,
    num_images=st.integers(1, 5),
    by_epoch=st.booleans(),
    length=st.integers(1, 4),
    simulation=st.sampled_from(["full", "fedsgd_epoch", 2]),
)
def test_segments_change_neither_value_nor_adjoint(
    recipe, num_images: int, by_epoch: bool, length: int, simulation
) -> None:
    model, generator = mlp(TINY, hidden=4).double(), torch.Generator().manual_seed(3)
    by_epoch = by_epoch and not isinstance(simulation, int)
    images, labels = pictures(num_images, side=4).double(), torch.arange(num_images) % 3
    images = images.repeat(recipe.epochs, 1, 1, 1, 1) if by_epoch else images
    order = torch.stack([torch.randperm(num_images, generator=generator) for _ in range(recipe.epochs)])
    found = []
    for segment_length in (None, length):
        own = images.clone().requires_grad_()
        options = {"simulation": simulation, "order": order, "segment_length": segment_length}
        update = simulate(model, own, labels, recipe, **options)
        sum(tensor.square().sum() for tensor in update.values()).backward()
        found.append((update, own.grad))
    (whole, expected), (parts, gradient) = found
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adjoint_of_segments(momentum: float) -> None:
    model, recipe = (
        mlp(TINY, hidden=3).double(),
        LocalTraining(epochs=2, batch_size=1, learning_rate=0.5, momentum=momentum),
    )
    images, logits = pictures(3, side=4).double(), torch.eye(3).double()

    def update(images: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        return tuple(simulate(model, images, logits.softmax(dim=1), recipe, segment_length=2).values())

    assert torch.autograd.gradcheck(update, (images.requires_grad_(), logits.requires_grad_()))


def test_segments_of_batch_norm_leave_the_buffers_alone_and_count_no_batch_twice() -> None:
    model, recipe = batch_norm_model(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.1)
    model[2].momentum = None  # a cumulative average: the buffers would show a batch that was seen twice
    buffers, labels = buffers_of(model), torch.arange(4) % 3
    gradients = []
    for segment_length in (None, 1, 3):
        images = pictures(4, side=4).double().requires_grad_()
        update = simulate_local_update(
            model, weights(model), buffers, images, labels, recipe, segment_length=segment_length
        )
        sum(tensor.square().sum() for tensor in update.values()).backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])
    assert all(torch.equal(buffers[name], tensor) for name, tensor in buffers_of(model).items())


def test_euler_steps_share_the_local_steps() -> None:
    recipe = LocalTraining(epochs=4, batch_size=2, learning_rate=0.1)
    assert [step.num_steps for step in held_steps(3, recipe, 5, None)] == [4, 4, 4]
    assert [step.num_steps for step in held_steps(5, recipe, 5, None)] == [2, 3, 2, 3, 2]
    assert len(held_steps(100, recipe, 5, None)) == 12
    model, images, labels = mlp(TINY).double(), pictures(5, side=4).double(), torch.arange(5) % 3
    for name, tensor in simulate(model, images, labels, recipe, simulation="fedsgd_epoch").items():
        torch.testing.assert_close(simulate(model, images, labels, recipe, simulation=4)[name], tensor)
    with pytest.raises(ValueError, match="at least 1 full-batch gradient, got 0"):
        simulate(model, images, labels, recipe, simulation=0)
    with pytest.raises(ValueError, match="segment_length must be >= 1, got 0"):
        simulate(model, images.requires_grad_(), labels, recipe, segment_length=0)


@pytest.mark.parametrize("simulation", SIMULATIONS)
def test_adjoint_of_soft_labels(simulation) -> None:
    model, recipe = mlp(TINY, hidden=3).double(), LocalTraining(epochs=2, batch_size=2, learning_rate=0.5)
    images = pictures(3, side=4).double()

    def update(logits: Tensor) -> tuple[Tensor, ...]:
        return tuple(simulate(model, images, logits.softmax(dim=1), recipe, simulation=simulation).values())

    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(update, logits.requires_grad_())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parts_of_a_batch_change_neither_value_nor_adjoint(momentum: float) -> None:
    model = mlp(TINY, hidden=3).double()
    recipe = LocalTraining(epochs=2, learning_rate=0.5, momentum=momentum)
    labels, outer = torch.arange(5) % 3, torch.randn(3, 16, generator=torch.Generator().manual_seed(2)).double()
    whole, parts = (pictures(5, side=4).double().requires_grad_() for _ in range(2))
    expected = simulate(model, whole, labels, recipe)
    found = simulate(model, parts, labels, recipe, images_at_once=2)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    for images, update in ((whole, expected), (parts, found)):
        (update["2.weight"] * outer).sum().square().backward()
        assert images.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad)
    plain = simulate(model, parts.detach(), labels, recipe, images_at_once=2)
    torch.testing.assert_close(plain["2.weight"], expected["2.weight"])


def test_parts_hold_no_more_than_their_images() -> None:
    sizes: list[int] = []
    model = mlp(TINY).double()
    model.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    images = pictures(5, side=4).double().requires_grad_()
    update = simulate(model, images, torch.arange(5) % 3, LocalTraining(learning_rate=0.5), images_at_once=2)
    update["2.weight"].square().sum().backward()
    assert sizes == [2, 2, 1, 2, 2, 1]


def test_where_parts_are_refused() -> None:
    images, labels, recipe = pictures(3, side=4).double(), torch.arange(3), LocalTraining(learning_rate=0.5)
    with pytest.raises(ValueError, match="treats each image by itself, got Sequential with BatchNorm"):
        simulate(batch_norm_model(), images, labels, recipe, images_at_once=2)
    with pytest.raises(ValueError, match="images_at_once must be >= 1, got 0"):
        simulate(mlp(TINY).double(), images, labels, recipe, images_at_once=0)
    soft = torch.full((3, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="constant labels"):
        simulate(mlp(TINY).double(), images, soft, recipe, images_at_once=2)


def test_shapes_are_checked() -> None:
    model, recipe = mlp(TINY), LocalTraining(epochs=2, batch_size=2)
    images, labels = pictures(3, side=4), torch.arange(3)
    with pytest.raises(ValueError, match="one set for each of 2 epochs, got 3"):
        simulate(model, images.expand(3, -1, -1, -1, -1), labels, recipe)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        simulate(model, images, labels[:2], recipe)
    with pytest.raises(ValueError, match=r"\(3, K\) for probabilities, with N >= 1, got \(3, 3\) of torch.int64"):
        simulate(model, images, labels.expand(3, 3), recipe)
    with pytest.raises(ValueError, match=r"got \(3,\) of torch.float32"):
        simulate(model, images, labels.float(), recipe)
    with pytest.raises(ValueError, match="images must be"):
        simulate(model, images[0], labels, recipe)
    with pytest.raises(ValueError, match=r"order must have shape \(2, 3\)"):
        simulate(model, images, labels, recipe, order=torch.arange(3).unsqueeze(0))
    with pytest.raises(ValueError, match="shared images"):
        simulate(model, images.expand(2, -1, -1, -1, -1), labels, recipe, simulation="fedsgd")
