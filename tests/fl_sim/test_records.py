"""The sign convention and the number of local steps."""

import pytest
import torch

from fl_sim.records import Algorithm, ClientUpdate, LocalTraining


@pytest.mark.parametrize(
    ("epochs", "batch_size", "num_examples", "steps"),
    [(10, 5, 50, 100), (10, 1, 50, 500), (1, None, 50, 1), (3, 8, 17, 9), (2, 100, 50, 2)],
)
def test_steps(epochs, batch_size, num_examples, steps):
    assert LocalTraining(epochs=epochs, batch_size=batch_size).steps(num_examples) == steps


def test_delta_of_weights_is_client_minus_global():
    update = _update(Algorithm.FEDAVG, torch.tensor([3.0]))
    assert update.delta({"w": torch.tensor([1.0])}, learning_rate=0.1)["w"].item() == 2.0


def test_delta_of_a_gradient_goes_against_it():
    update = _update(Algorithm.FEDSGD, torch.tensor([3.0]))
    assert update.delta({"w": torch.tensor([1.0])}, learning_rate=0.5)["w"].item() == -1.5


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"learning_rate": -1.0}]
)
def test_wrong_recipes_name_the_field_and_the_value(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} .*got {value}"):
        LocalTraining(**wrong)


def _update(algorithm: Algorithm, tensor: torch.Tensor) -> ClientUpdate:
    return ClientUpdate(server_round=1, client_id=0, num_examples=1, algorithm=algorithm, tensors={"w": tensor})
