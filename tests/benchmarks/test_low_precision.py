"""``benchmarks/low_precision.py``: numbers are rounded as a GPU rounds them, wherever products are taken."""

import pytest
import torch
from low_precision import PRECISIONS, Rounding, rounded_to_tf32

# 1 + 2^-10 is the next TF32 number after 1; what lies half-way goes to the even one.
STEP = 2.0**-10


def test_rounding_to_tf32() -> None:
    given = torch.tensor([1.0, 1 + STEP / 4, 1 + STEP / 2, 1 + STEP * 3 / 4, 1 + STEP * 3 / 2, 0.0])
    expected = [1.0, 1.0, 1.0, 1 + STEP, 1 + 2 * STEP, 0.0]
    assert rounded_to_tf32(given).tolist() == expected
    assert rounded_to_tf32(-given).tolist() == [-number for number in expected]


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_products_are_rounded_in_all_derivatives_and_nothing_else(precision: str) -> None:
    rounded = PRECISIONS[precision]
    assert rounded is not None
    weight, vector = torch.full((1, 2), 1 + 2.0**-12, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    with Rounding(rounded):
        (first,) = torch.autograd.grad((weight @ vector).sum(), vector, create_graph=True)
        assert first.tolist() == [[1.0], [1.0]]  # the weight, rounded
        (second,) = torch.autograd.grad((first * first).sum(), weight)
        assert second.tolist() == [[2.0, 2.0]]
        assert (weight + weight)[0, 0].item() == 2 * (1 + 2.0**-12)
        assert (weight.double() @ vector.double()).item() == 2 * (1 + 2.0**-12)
