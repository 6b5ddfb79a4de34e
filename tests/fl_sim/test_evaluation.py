"""Central evaluation: hand-computed numbers, and a model that is left as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_sim.datasets import pixels
from fl_sim.evaluation import Evaluation, evaluate


def batch(num_images=7):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 1, 2, 2), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (num_images,), generator=generator)


def model_with_statistics():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[2].eval()
    return model


def split(model):
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return parameters, {name: t.clone() for name, t in model.state_dict().items() if name not in parameters}


def test_a_constant_answer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    parameters = {"1.weight": torch.zeros(3, 4), "1.bias": torch.tensor([0.0, 2.0, 1.0])}
    images, _ = batch(4)
    labels = torch.tensor([1, 1, 0, 1])
    expected_loss = functional.cross_entropy(parameters["1.bias"].expand(4, 3), labels)
    found = evaluate(model, parameters, {}, images, labels)
    assert found == Evaluation(accuracy=0.75, loss=pytest.approx(float(expected_loss)))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_given_weights_count_and_the_batch_size_does_not(batch_size):
    torch.manual_seed(0)
    model, other = model_with_statistics(), model_with_statistics()
    images, labels = batch()
    parameters, buffers = split(other)
    other.eval()
    logits = other(pixels(images))
    found = evaluate(model, parameters, buffers, images, labels, batch_size=batch_size)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, labels)))


def test_the_model_is_left_as_it_was():
    model = model_with_statistics()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters, buffers = split(model)
    given = {name: tensor.clone() for name, tensor in buffers.items()}
    evaluate(model, parameters, buffers, *batch())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, given[name]) for name, tensor in buffers.items())
    with pytest.raises(RuntimeError):
        evaluate(model, {**parameters, "1.weight": torch.zeros(3, 5)}, buffers, *batch())
    assert [module.training for module in model.modules()] == modes


def test_nothing_to_test_on_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    parameters, _ = split(model)
    with pytest.raises(ValueError, match="expected at least one test image, got none"):
        evaluate(model, parameters, {}, *batch(0))
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        evaluate(model, parameters, {}, *batch(), batch_size=0)
