"""How many local steps' graphs fit into memory, so that no more is recomputed than must be.

Keeping the whole graph costs the least time: segments took 1.2 to 1.9 times as long wherever both were measured
(benchmarks/results/local_update.md), so that memory decides and nothing is timed. Where it does not fit, the longest
segment that fits is taken: see `attacker.segments`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

# What the optimiser, the priors and the allocator's gaps need beside the graph.
_USABLE_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """How the graph of a simulation is held.

    Attributes:
        num_steps: Gradients of the simulation.
        segment_length: Of them whose graph is held at a time; ``None``: of all.
        bytes_at_once: Estimate of what that takes.
        bytes_of_whole: Estimate of what the whole graph would take.
        step_bytes: Graph of one gradient.
        state_bytes: Stored state before a segment.
    """

    num_steps: int
    segment_length: int | None
    bytes_at_once: int
    bytes_of_whole: int
    step_bytes: int
    state_bytes: int

    def of_several(self, clients: int, budget: int) -> "GraphPlan":
        """Return the plan for so many such simulations at once."""
        return plan_graph(
            self.num_steps,
            step_bytes=clients * self.step_bytes,
            state_bytes=clients * self.state_bytes,
            budget=budget,
        )

    def __str__(self) -> str:
        """One line for a person."""
        if self.segment_length is None:
            return f"graph of {self.num_steps} local gradients kept whole ({_gigabytes(self.bytes_of_whole)})"
        return (
            f"graph of {self.num_steps} local gradients in segments of {self.segment_length} "
            f"({_gigabytes(self.bytes_at_once)} instead of {_gigabytes(self.bytes_of_whole)})"
        )


def plan_graph(num_steps: int, *, step_bytes: int, state_bytes: int, budget: int) -> GraphPlan:
    """Return the plan with the longest segments that fit, or the smallest possible one where none fits.

    Args:
        num_steps: Gradients of the simulation, >= 1.
        step_bytes: Graph of one of them.
        state_bytes: Stored state before a segment: weights and velocity.
        budget: Bytes that may be used.
    """
    whole = num_steps * step_bytes

    def needed(length: int) -> int:
        return length * step_bytes + math.ceil(num_steps / length) * state_bytes

    length: int | None = None
    if whole > budget:
        lengths = range(1, num_steps + 1)
        fitting = [length for length in lengths if needed(length) <= budget]
        length = max(fitting) if fitting else min(lengths, key=needed)
    return GraphPlan(
        num_steps=num_steps,
        segment_length=length,
        bytes_at_once=whole if length is None else needed(length),
        bytes_of_whole=whole,
        step_bytes=step_bytes,
        state_bytes=state_bytes,
    )


def graph_bytes(compute: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps alive for a computation; tensors that share storage count once."""
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # a freed storage's address would be given away again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
    del result
    return sum(storages.values())


def memory_budget(device: torch.device) -> int:
    """Return the bytes that one attack may fill on a device.

    On a CPU attacks run side by side, one on each core, and each gets its share of what is free now.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_USABLE_SHARE * free)
    return int(_USABLE_SHARE * psutil.virtual_memory().available / (os.cpu_count() or 1))


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.0f} MB"
