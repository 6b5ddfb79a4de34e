"""Is a step of the attack worth compiling? `torch.compile` beside the engine as it is, on this machine's CPU.

    python benchmarks/compiled_step.py --gradients 3

A step: simulate the update of N_c images of `femnist_cnn` by k full-batch gradients, take its squared length, and
differentiate by the images. A second derivative is beyond what `torch.compile` traces by itself, so that all of it is
traced as one graph of plain operations (`torch.fx.experimental.proxy_tensor.make_fx`) and that is compiled.

eager      CPU seconds of a step, the lowest of the repeats, one thread
compiled   likewise, after the wait
wait       seconds until the first compiled step is done, the tracing included
wrong by   the largest difference of the derivative, as a multiple of its largest entry
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from paper_clients import FEMNIST
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from attacker.local_update import simulate_local_update
from fl_sim.models import MODELS
from fl_sim.records import LocalTraining
from fl_sim.seeds import generator


def step_of(num_images: int, gradients: int) -> Callable[[Tensor], Tensor]:
    """Return what makes of images (N, 1, 28, 28) the derivative by them."""
    model = MODELS["femnist_cnn"](dataset=FEMNIST.spec, generator=generator(0, "model")).train()
    parameters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    labels = torch.arange(num_images) % FEMNIST.spec.num_classes
    recipe = LocalTraining(epochs=10, batch_size=5, learning_rate=0.004)

    def step(images: Tensor) -> Tensor:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            update = simulate_local_update(model, parameters, buffers, leaf, labels, recipe, simulation=gradients)
            energy = torch.stack([tensor.square().sum() for tensor in update.values()]).sum()
            (derivative,) = torch.autograd.grad(energy, leaf)
        return derivative

    return step


def cpu_seconds(step: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> float:
    """Return the lowest CPU time of a step, after one that prepares."""
    found: list[float] = []
    for _ in range(repeats + 1):
        started = time.thread_time()
        step(images)
        found.append(time.thread_time() - started)
    return min(found[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each number of gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradients", type=int, nargs="+", default=[1, 3], metavar="k")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = torch.rand(options.images, *FEMNIST.spec.image_shape, generator=generator(0, "images"))
    print(f"torch {torch.__version__}, `femnist_cnn`, N_c = {options.images}, backend {options.backend}\n")
    print("| k | eager, s | compiled, s | ratio | wait, s | wrong by |\n|---|---|---|---|---|---|")
    for gradients in options.gradients:
        step = step_of(options.images, gradients)
        eager = cpu_seconds(step, images, options.repeats)
        started = time.perf_counter()
        compiled = torch.compile(make_fx(step)(images), backend=options.backend)
        found = compiled(images)
        wait = time.perf_counter() - started
        expected = step(images)
        wrong = ((found - expected).abs().amax() / expected.abs().amax()).item()
        seconds = cpu_seconds(compiled, images, options.repeats)
        print(
            f"| {gradients} | {eager:.3f} | {seconds:.3f} | {seconds / eager:.2f} | {wait:.0f} | {wrong:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
