"""GradInversion: layerwise gradient matching, BatchNorm statistics, noise on the pixels, and a group of seeds.

minimise over z   alpha_G sum_layers ||S_l - O_l|| + alpha_tv TV(z) + alpha_l2 ||z||
                  + alpha_BN sum_layers (||mean_l - mean^_l|| + ||var_l - var^_l||) + alpha_group ||z - consensus||
after each step   z <- z + rate(t) alpha_n N(0, 1)
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import OnStep, Reconstruction, ignore_progress
from attacker.batch_norm import recorded_statistics
from attacker.distances import layerwise_l2
from attacker.gradient_matching import Search, minimise
from attacker.group import Consensus, agreed_images, group_targets
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.local_steps import Simulation
from attacker.observation import Observation
from attacker.placement import in_place_of_update
from attacker.priors.group_consistency import group_consistency
from attacker.priors.l2_norm import l2_norm
from attacker.priors.total_variation import total_variation
from attacker.recipes.batch_norm_target import BatchNormMode, BatchNormTarget, batch_norm_target
from attacker.recipes.ranges import check_at_least_one, check_not_negative, check_positive
from attacker.recipes.reconstruction import reconstruction
from attacker.schedules import Constant, WarmUpCosine
from attacker.wrappers import BestOf


@dataclass(frozen=True, slots=True, kw_only=True)
class GradInversion:
    """Several reconstructions of one batch at once, which agree on the gradient, on BatchNorm and with each other.

    The defaults are the paper's constants, chosen there for ImageNet and a trained ResNet-50; 20 000 steps of eight
    seeds are hours to days on a CPU. Convention: images normalised with the data set's mean and standard deviation,
    gradients of the *mean* loss, Euclidean norms not squared. Norms of images are averaged over the batch, and total
    variation over pixels too; how the authors average is not known to us. On a small network and for hundreds of steps,
    alpha_BN and alpha_group were too strong where we measured (docs/reproducing.md).

    Attributes:
        steps: Adam steps.
        learning_rate: Of Adam after the warm-up, in normalised units; it falls to 0 along half a cosine.
        warm_up: Steps over which the rate rises linearly, >= 0.
        matching: alpha_G.
        total_variation: alpha_tv.
        l2_norm: alpha_l2.
        batch_norm_statistics: alpha_BN.
        batch_norm: Which statistics are to be met, see `attacker.recipes.batch_norm_target`.
        pixel_noise: alpha_n: noise of standard deviation rate x alpha_n is added to the normalised images after each
            step; Adam does not see it.
        group_size: Seeds that are optimised side by side.
        group_weight: alpha_group.
        group_start: The step from which on the seeds are drawn to their consensus; one after ``steps`` never comes.
        group_refresh: Steps between two consensuses.
        consensus: The pixel mean of the seeds, or the mean of the seeds ``"registered"`` to it.
        result: The seed of lowest matching loss, or the ``"consensus"``.
        simulation: How the local steps are followed, see `attacker.local_update`.
        label_recovery: A name of LABEL_RECOVERIES, used where the threat model does not grant label counts.
        restarts: Runs of the whole group, of which the lowest matching loss is kept.

    References:
        Yin et al., See through Gradients: Image Batch Recovery via GradInversion, CVPR 2021. The constants are taken
        from configurations of others that quote it.
    """

    steps: int = 20_000
    learning_rate: float = 0.1
    warm_up: int = 50
    matching: float = 1e-3
    total_variation: float = 1e-4
    l2_norm: float = 1e-6
    batch_norm_statistics: float = 0.1
    batch_norm: BatchNormMode = "auto"
    pixel_noise: float = 0.2
    group_size: int = 8
    group_weight: float = 0.01
    group_start: int = 5_000
    group_refresh: int = 100
    consensus: Consensus = "registered"
    result: Literal["best_seed", "consensus"] = "best_seed"
    simulation: Simulation = "full"
    label_recovery: str = "automatic"
    restarts: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the field, what was expected and what was got.
        """
        check_at_least_one(
            steps=self.steps, group_size=self.group_size, group_refresh=self.group_refresh, restarts=self.restarts
        )
        check_positive(learning_rate=self.learning_rate, matching=self.matching)
        check_not_negative(
            warm_up=self.warm_up,
            total_variation=self.total_variation,
            l2_norm=self.l2_norm,
            batch_norm_statistics=self.batch_norm_statistics,
            pixel_noise=self.pixel_noise,
            group_weight=self.group_weight,
            group_start=self.group_start,
        )

    def __call__(
        self, observation: Observation, *, generator: torch.Generator, on_step: OnStep = ignore_progress
    ) -> Reconstruction:
        """Reconstruct; arguments as for `Attack`.

        Raises:
            DoesNotApplyError: If ``batch_norm`` names statistics that the model or the update does not have.
        """
        if self.restarts > 1:
            once = BestOf(attack=replace(self, restarts=1), restarts=self.restarts)
            return once(observation, generator=generator, on_step=on_step)
        started = time.monotonic()
        problem = inversion_problem(observation, self.label_recovery, generator)
        group = _Group(
            attack=self, problem=problem, target=batch_norm_target(in_place_of_update(observation), self.batch_norm)
        )
        rate = WarmUpCosine(peak=self.learning_rate, warm_up=self.warm_up, num_steps=self.steps)

        def noise(step: int) -> Tensor:
            return rate(step) * self.pixel_noise * problem.noise(generator, num_sets=self.group_size)

        optimum = minimise(
            group,
            problem.noise(generator, num_sets=self.group_size),
            Search(
                steps=self.steps,
                learning_rate=rate,
                matching_factor=Constant(problem.trust * self.matching),
                noise=noise if self.pixel_noise else None,
            ),
            on_step=on_step,
            to_pixels=lambda variables: problem.to_pixels(variables[0]),  # one seed of the group: the others are alike
        )
        pixels = problem.to_pixels(optimum.variables)
        chosen = group.best(pixels) if self.result == "best_seed" else self._agreed(problem, pixels)
        return reconstruction(problem, chosen, optimum, group.matching_of_seed, started=started)

    def _agreed(self, problem: InversionProblem, pixels: Tensor) -> Tensor:
        return agreed_images(pixels, problem.labels, self.consensus)


@dataclass(slots=True, kw_only=True)
class _Group:
    """The objective of all seeds, computed seed by seed: with the memory of one, and BatchNorm mixes no two seeds.

    Attributes:
        attack: The weights.
        problem: What is solved, the same for all seeds: index n has the same label in each.
        target: BatchNorm statistics to be met.
        targets: (S, N, C, H, W), normalised: what the seeds are drawn to, once the group has started.
    """

    attack: GradInversion
    problem: InversionProblem
    target: BatchNormTarget | None
    targets: Tensor | None = field(default=None)

    def matching_of_seed(self, pixels: Tensor, *, watched: bool = False) -> Tensor:
        """Return the matching loss of pixels (N, C, H, W), shape ()."""
        simulated = self.problem.simulate(pixels, self.attack.simulation, whole_graph=watched)
        return layerwise_l2(simulated, self.problem.observed)

    def matching(self, variables: Tensor) -> Tensor:
        """Return the mean matching loss of the seeds (S, N, C, H, W), shape (); see `Minimised`."""
        return torch.stack([self.matching_of_seed(self.problem.to_pixels(seed)) for seed in variables]).mean()

    def gradient(self, variables: Tensor, *, factor: float, step: int) -> tuple[Tensor, Tensor]:
        """Return the mean matching loss and each seed's gradient, (S, N, C, H, W); see `Minimised`."""
        self._meet(variables.detach(), step)
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for seed, images in enumerate(variables.detach()):
            images.requires_grad_()
            matching, fidelity = self._terms(images)
            loss = factor * matching + fidelity
            if self.targets is not None:
                loss = loss + self.attack.group_weight * group_consistency(images, consensus=self.targets[seed])
            gradients.append(torch.autograd.grad(loss, images)[0])
            losses.append(matching.detach())
        return torch.stack(losses).mean(), torch.stack(gradients)

    def best(self, pixels: Tensor) -> Tensor:
        """Return the seed (N, C, H, W) of lowest matching loss, as it will be shown: clipped."""
        with torch.no_grad():
            losses = torch.stack([self.matching_of_seed(seed.clamp(0.0, 1.0)) for seed in pixels])
        return pixels[int(losses.nan_to_num(torch.inf).argmin())]

    def _meet(self, variables: Tensor, step: int) -> None:
        """Settle a new consensus where one is due."""
        attack, since_start = self.attack, step - self.attack.group_start
        if (
            attack.group_size > 1
            and attack.group_weight
            and since_start >= 0
            and not since_start % attack.group_refresh
        ):
            pixels = self.problem.to_pixels(variables)
            self.targets = self.problem.to_normalised(group_targets(pixels, self.problem.labels, attack.consensus))

    def _terms(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matching loss and the weighted fidelity of normalised images (N, C, H, W)."""
        pixels = self.problem.to_pixels(images)
        target = self.target if self.attack.batch_norm_statistics else None
        with nullcontext() if target is None else recorded_statistics(self.problem.model) as recorded:
            matching = self.matching_of_seed(pixels, watched=target is not None)
        fidelity = self.attack.total_variation * total_variation(images) + self.attack.l2_norm * l2_norm(images)
        if target is not None and recorded is not None:
            fidelity = fidelity + self.attack.batch_norm_statistics * target.distance(self.problem, pixels, recorded)
        return matching, fidelity
