"""Arithmetic on named tensors against numbers worked out by hand."""

import pytest
import torch

from fl_sim import parameters

FIRST = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
SECOND = {"b": torch.tensor([1.0]), "w": torch.tensor([[0.5, 0.5]])}


def test_subtract_and_add_go_by_name_and_keep_the_first_order():
    assert list(parameters.subtract(FIRST, SECOND)) == ["w", "b"]
    assert parameters.flatten(parameters.subtract(FIRST, SECOND)).tolist() == [0.5, 1.5, 2.0]
    assert parameters.flatten(parameters.add(FIRST, SECOND)).tolist() == [1.5, 2.5, 4.0]


def test_norm_scale_and_size():
    assert parameters.l2_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0
    assert parameters.flatten(parameters.scale(FIRST, 2.0)).tolist() == [2.0, 4.0, 6.0]
    assert parameters.num_scalars(FIRST) == 3


def test_other_names_are_refused_with_both_lists():
    with pytest.raises(ValueError, match=r"missing \['b'\], unexpected \['c'\]"):
        parameters.add(FIRST, {"w": FIRST["w"], "c": FIRST["b"]})
