"""What a defense is: a pure function of named tensors, or, where that is not enough, a gradient of its own.

A `Defense` maps the update to the update that leaves. Being a function of tensors only, it acts as well on the gradient
of a local step or of one example (see `clients.defenses.places`); `AdditiveNoise` can be drawn for the mean of several
at once. A `GradientDefense` needs the images and the model: it computes the gradient of a local step itself.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fl_sim.records import LocalTraining


class Defense(Protocol):
    """A frozen dataclass that holds its hyper-parameters and is called with the update."""

    def __call__(
        self, update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the defended update.

        Args:
            update: ``w_c - w_t`` (FedAvg) or the gradient (FedSGD), by tensor name; the gradient of one local step or
                of one example where the experiment puts the defense there. Not changed.
            num_examples: The images that the update was computed on: N_c, those of the batch, or one.
            generator: The only source of randomness; differs by client, round and local step.

        Returns:
            Tensors of the same names, shapes and dtypes. A defense of strength zero returns ``update`` itself.
        """
        ...


@runtime_checkable
class AdditiveNoise(Defense, Protocol):
    """A `Defense` that adds noise whatever it is added to, so that the noise of a mean can be drawn at once."""

    def on_mean(self, count: int) -> Defense:
        """Return what adds the mean of ``count`` independent draws: as drawing for each of them, then taking the mean.

        Args:
            count: How many are averaged, >= 1.
        """
        ...


@runtime_checkable
class GradientDefense(Protocol):
    """A frozen dataclass that holds its hyper-parameters and computes the gradient of a local step in its own way."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that the defense cannot work with, before anything is run.

        Raises:
            ConfigError: That says what to do about it.
        """
        ...

    def gradient(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the defended gradient of the mean loss over a batch.

        Args:
            model: The model in training mode, at the weights of this step. Its weights are not changed.
            images: (N, C, H, W), pixels in [0, 1].
            labels: (N,), int64.
            batch_size: What the mean is taken over: N, or the expected number where batches are sampled and N is
                secret.
            generator: The only source of randomness; differs by client, round and local step.

        Returns:
            One gradient for each trainable tensor, by name. A defense of strength zero returns the plain gradient.
        """
        ...


@runtime_checkable
class PrivateGradientDefense(GradientDefense, Protocol):
    """A `GradientDefense` with a guarantee of differential privacy that depends on how batches are drawn."""

    @property
    def samples_batches(self) -> bool:
        """Whether each image goes into each batch with probability m / N_c, instead of once in an epoch."""
        ...

    def privacy(self, *, num_examples: int, training: LocalTraining, num_rounds: int) -> Mapping[str, float]:
        """Return what the client has spent, by name of the metric under which it reports it.

        Args:
            num_examples: N_c.
            training: E, m and thereby the number of local steps.
            num_rounds: The rounds in which the client has taken part, this one included.
        """
        ...


def chain(defenses: Sequence[Defense]) -> Defense:
    """Return the defense that applies several in order, the first one first."""

    def apply_all(
        update: Mapping[str, Tensor], *, num_examples: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        for defense in defenses:
            update = defense(update, num_examples=num_examples, generator=generator)
        return update

    return apply_all
