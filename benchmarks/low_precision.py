"""Does the attack bear the precision of tensor cores: products of rounded numbers, sums in single precision?

    python benchmarks/low_precision.py --clients 100 101 --output benchmarks/results/low_precision.md

    float32     as it is
    tf32        what enters a convolution or a matrix product is rounded to 10 bits behind the point, as a GPU does for
                float32 where it may (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    bfloat16    to 7 bits, as under torch.autocast with bfloat16, but sums and results stay in single precision

Rounded on a CPU, below autograd, so that all derivatives are computed in this way too: what is measured is what the
result bears, not what it would gain in speed. The client trains in single precision. FEMNIST look-alikes, label counts
known (an upper bound), one attack seed and one thread:

    feature span    `femnist_cnn`, E = 10, m = 5, N_c = 50
    dlg             `lenet` with its sigmoids, one step on the client's first image, eta = 0.1

Needs ../shared/data, see `paper_clients`.
"""

import argparse
import datetime
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from paper_clients import FEMNIST, NUM_IMAGES
from reference_recipe import BATCH_SIZE, DATA, measure, setting_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attacker.attack import Attack, OnStep, Reconstruction, ignore_progress
from attacker.metrics.psnr import psnr_db
from attacker.observation import Observation
from attacker.recipes import DeepLeakage, FeatureSpan
from attacker.threat_models import KNOWN_LABEL_COUNTS
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator

EPOCHS = 10
_ON_TENSOR_CORES = {"addmm", "baddbmm", "bmm", "convolution", "convolution_backward", "mm"}


def rounded_to_tf32(tensor: Tensor) -> Tensor:
    """Return float32 numbers rounded to 10 bits behind the point, to even."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


PRECISIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "float32": None,
    "tf32": rounded_to_tf32,
    "bfloat16": lambda tensor: tensor.bfloat16().float(),
}


class Rounding(TorchDispatchMode):
    """Rounds what enters convolutions and matrix products of single precision."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]) -> None:
        """Round by this function."""
        super().__init__()
        self._rounded = rounded

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.utils._python_dispatch`."""
        if func.overloadpacket.__name__ in _ON_TENSOR_CORES:
            args = tuple(
                self._rounded(own) if isinstance(own, Tensor) and own.dtype is torch.float32 else own for own in args
            )
        return func(*args, **(kwargs or {}))


def in_precision(attack: Attack, precision: str) -> Attack:
    """Return the attack, computed in a precision."""
    rounded = PRECISIONS[precision]
    if rounded is None:
        return attack

    def computed(
        observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        with Rounding(rounded):
            return attack(observation, generator=generator, on_step=on_step)

    return computed


def single_image_psnr_db(client: int, precision: str) -> float:
    """Return what `DeepLeakage` makes of one image in one gradient."""
    own = replace(FEMNIST, model="lenet")
    images, labels = own.private_batch(DATA, client, 1)
    recipe = LocalTraining(epochs=1, batch_size=1, learning_rate=0.1)
    observation = own.observe(images, labels, client, recipe, KNOWN_LABEL_COUNTS)
    found = in_precision(DeepLeakage(), precision)(observation, generator=generator(0, "attack"))
    return psnr_db(found.images, images).item()


def main() -> None:
    """Attack each client in each precision, and write the table as results come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    setting = setting_of("femnist_like")
    torch.set_num_threads(1)
    lines = [
        f"`femnist_like_10k`, E = {EPOCHS}, m = {BATCH_SIZE}, N_c = {NUM_IMAGES}, untrained network; for dlg one image",
        f"and one step; label counts known (an upper bound), one seed; {datetime.date.today()}.",
        "PSNR in dB / share above 20 dB.",
        "",
        "| client | precision of products | feature span | guess: mean image | dlg |",
        "|---|---|---|---|---|",
    ]
    for client in arguments.clients:
        for precision in arguments.precisions:
            found = measure(in_precision(FeatureSpan(), precision), client, EPOCHS, setting)
            lines.append(
                f"| {client} | {precision} | {found['clipped_psnr_db']:.1f} / {found['clipped_recovered_share']:.0%} "
                f"| {found['mean_image_psnr_db']:.1f} / {found['mean_image_recovered_share']:.0%} "
                f"| {single_image_psnr_db(client, precision):.1f} |"
            )
            print(lines[-1], flush=True)
            if arguments.output:
                arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
