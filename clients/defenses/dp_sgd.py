"""DP-SGD: every example's gradient is clipped, and the noise is measured by the clipping.

    g = ( sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2) ) / m

Opacus computes the per-example gradients, clips them, adds the noise and keeps the account. Momentum and whatever else
follows works on the noised gradient and costs no privacy.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.defenses.places import refuse_batch_norm
from clients.defenses.privacy_accounting import Accountant, epsilon_of
from clients.local_training import gradient_on, sampling_rate
from fl_sim.errors import ConfigError
from fl_sim.records import LocalTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgd:
    """Clips the gradient of every example and adds noise in every local step, through Opacus; reports epsilon.

    Attributes:
        noise_multiplier: sigma, >= 0: the noise on the sum over a batch has standard deviation ``sigma * C`` in each
            entry. Zero gives no guarantee and no epsilon; zero without ``clip_norm`` is plain training.
        clip_norm: C, the largest L2 norm of one example's gradient over all tensors together, > 0; left out, nothing is
            clipped, which goes only without noise.
        delta: The probability with which the guarantee may fail, in (0, 1); well below 1 / N_c.
        accountant: ``"rdp"`` (Rényi divergences) or ``"prv"`` (numerical, tighter, slower).
        sampling: ``"epochs"`` trains on the same batches as an undefended client, and its epsilon counts each epoch as
            one release without sampling: an image is in exactly one batch of it. ``"poisson"`` draws each image into
            each batch with probability m / N_c, and its epsilon counts each local step as a release of which an image
            was part with that probability.

    References:
        Abadi et al., Deep Learning with Differential Privacy, CCS 2016, Algorithm 1.
        Yousefpour et al., Opacus: User-Friendly Differential Privacy Library in PyTorch, 2021.
        Chua et al., How Private are DP-SGD Implementations?, ICML 2024 (shuffled batches are not sampled ones).
    """

    noise_multiplier: float
    clip_norm: float = math.inf
    delta: float = 1e-5
    accountant: Accountant = "rdp"
    sampling: Literal["epochs", "poisson"] = "epochs"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be a number >= 0, got {self.noise_multiplier}")
        if self.noise_multiplier > 0 and self.clip_norm == math.inf:
            raise ValueError("noise_multiplier > 0 needs a finite clip_norm, by which the noise is measured; got inf")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")

    def check_model(self, model: nn.Module) -> None:
        """Refuse layers that mix the examples of a batch.

        Raises:
            ConfigError: If the model has BatchNorm, or layers that Opacus cannot differentiate example by example.
        """
        if self._is_plain:
            return
        from opacus import GradSampleModule  # seconds to import: only who uses it waits for it

        refuse_batch_norm(model, needed_by="dp_sgd")
        problems = GradSampleModule.validate(model, strict=False)
        if problems:
            raise ConfigError(f"dp_sgd: Opacus cannot take per-example gradients of this model: {problems[0]}")

    def gradient(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the sum of the clipped gradients plus noise, divided by the batch size."""
        if self._is_plain:
            return gradient_on(model, images, labels)
        from opacus.optimizers import DPOptimizer

        parameters = dict(model.named_parameters())
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        optimizer = DPOptimizer(
            torch.optim.SGD(trained, lr=1.0),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.clip_norm,
            expected_batch_size=batch_size,
            generator=generator,
        )
        optimizer.zero_grad()
        if len(labels) == 0:  # a sampled batch may be empty: then the noise is all there is
            for parameter in trained:
                setattr(parameter, "grad_sample", parameter.new_zeros(0, *parameter.shape))  # noqa: B010
        else:
            _keep_gradient_of_each_example(model, images, labels)
        optimizer.pre_step()
        gradient = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in parameters.items()
        }
        optimizer.zero_grad(set_to_none=True)
        return gradient

    def privacy(self, *, num_examples: int, training: LocalTraining, num_rounds: int) -> Mapping[str, float]:
        """Return the client's epsilon at ``delta`` after some rounds, composed over all of them.

        It holds for one image of the client (its presence against a gradient of zero in its place) and counts N_c, E
        and m as public. The guarantee is that of the noise, which here comes from the run seed: it protects against
        whoever does not know the seed.

        Args:
            num_examples: N_c.
            training: E and m.
            num_rounds: The rounds in which the client has taken part, this one included.

        Returns:
            ``epsilon``, which holds for batches as they are drawn; for ``sampling = "epochs"`` beside it
            ``epsilon-if-poisson``, the customary number that takes m / N_c as if batches had been sampled. Nothing
            without noise.
        """
        if self.noise_multiplier == 0:
            return {}
        num_steps = num_rounds * training.steps(num_examples)
        rate = sampling_rate(num_examples, training)
        sampled = self._epsilon(rate, num_steps)
        if self.sampling == "poisson":
            return {"epsilon": sampled}
        return {"epsilon": self._epsilon(1.0, num_rounds * training.epochs), "epsilon-if-poisson": sampled}

    @property
    def samples_batches(self) -> bool:
        """Whether each image goes into each batch with probability m / N_c; plain training keeps its batches."""
        return self.sampling == "poisson" and not self._is_plain

    @property
    def _is_plain(self) -> bool:
        return self.noise_multiplier == 0 and self.clip_norm == math.inf

    def _epsilon(self, rate: float, num_steps: int) -> float:
        return epsilon_of(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=rate,
            num_steps=num_steps,
            delta=self.delta,
            accountant=self.accountant,
        )


def _keep_gradient_of_each_example(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    from opacus import GradSampleModule

    watched = GradSampleModule(model, loss_reduction="sum", force_functorch=_pads_in_circles(model))
    try:
        loss = functional.cross_entropy(watched(images), labels, reduction="sum")
        with warnings.catch_warnings():
            # About the first layer: images need no gradient, and the hook does not use theirs.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        watched.remove_hooks()


def _pads_in_circles(model: nn.Module) -> bool:
    # Opacus' own rule for convolutions pads with zeros whatever the layer says; functorch asks the layer itself.
    return any(getattr(module, "padding_mode", "zeros") != "zeros" for module in model.modules())
