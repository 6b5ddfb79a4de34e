"""Low-bit quantisation of the communicated update, rounded at random so that its mean is right.

q(x) = M / s * floor(s x / M + u),   M = max |x| of the tensor,   s = 2^(bits - 1) - 1,   u ~ U[0, 1)

The levels of a tensor lie M / s apart: the coarser they are, the more of what leaves is the draw of u.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_FULL_PRECISION = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """Rounds each entry at random to one of ``2^bits - 1`` even levels between plus and minus the tensor's maximum.

    Unbiased: E q(x) = x. Zero stays zero, and the largest magnitude of each tensor stays as it is. Two bits are the
    ternary values -M, 0, M.

    Attributes:
        bits: From 2 to 16 bits an entry; 32 is the update's own precision and changes nothing.

    References:
        Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, NeurIPS 2017.
        Wen et al., TernGrad: Ternary Gradients to Reduce Communication, NeurIPS 2017 (two bits, scale by the maximum).
    """

    bits: int

    def __post_init__(self) -> None:
        """Check the range."""
        if not (2 <= self.bits <= 16 or self.bits == _FULL_PRECISION):
            raise ValueError(f"bits must be from 2 to 16, or 32 for no quantisation, got {self.bits}")

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the update on its levels."""
        if self.bits == _FULL_PRECISION:
            return update
        return {name: self._quantise(tensor, generator) for name, tensor in update.items()}

    def _quantise(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        levels = 2 ** (self.bits - 1) - 1
        draw = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        largest = tensor.abs().amax()
        if largest == 0:
            return tensor
        # u just below 1 may round up to 1 in the sum: no entry leaves the range.
        return (tensor / largest * levels + draw).floor().clamp(-levels, levels) / levels * largest
