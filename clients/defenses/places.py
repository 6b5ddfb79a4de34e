"""Where a defense acts: on each example's gradient, on each local step's, or on the update that is sent.

    example   g_i of each image of a batch, before the mean over the batch   (as in Dimitrov et al. 2022, released code)
    step      g_b of each batch, before the optimiser and its momentum see it
    update    w_c - w_t (FedAvg) or the gradient (FedSGD), once a round      (the default)

FedSGD computes one gradient on one batch: there ``step`` and ``update`` act on the same tensors. A `GradientDefense`
computes g_b itself, before anything else can act.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from clients.defenses.defense import AdditiveNoise, Defense, GradientDefense, PrivateGradientDefense, chain
from clients.local_training import gradient_and_loss
from fl_sim.errors import ConfigError
from fl_sim.parameters import weighted_mean

Place = Literal["example", "step", "update"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDefenses:
    """All defenses of a client, each where it acts, in the order of the experiment.

    Attributes:
        source: Computes the gradient of a local step; ``None`` takes the plain one.
        on_example: Act on the gradient of each example.
        on_step: Act on the gradient of each local step.
        on_update: Act on the update.
    """

    source: GradientDefense | None = None
    on_example: tuple[Defense, ...] = ()
    on_step: tuple[Defense, ...] = ()
    on_update: tuple[Defense, ...] = ()

    @property
    def needs_model(self) -> bool:
        """Whether `check_model` has anything to check."""
        return self.source is not None or bool(self.on_example)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that these defenses cannot work with.

        Raises:
            ConfigError: That says what to do about it.
        """
        if self.source is not None:
            self.source.check_model(model)
        if self.on_example:
            refuse_batch_norm(model, needed_by="a defense with where = 'example'")

    def gradient(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], float | None]:
        """Return the defended gradient of one local step, and the mean loss where it may be told.

        Args:
            model: The model in training mode, at the weights of this step.
            images: (N, C, H, W), pixels in [0, 1].
            labels: (N,), int64.
            batch_size: What the mean is taken over; see `GradientDefense.gradient`.
            generator: Differs by client, round and local step.

        Returns:
            The gradient by tensor name, and the loss, or ``None`` with a `GradientDefense`: the loss in clear would say
            what the gradient is made to hide.
        """
        if self.on_example:
            gradient, loss = self._mean_of_defended_examples(model, images, labels, generator=generator)
        else:
            gradient, loss = self._gradient(model, images, labels, batch_size=batch_size, generator=generator)
        return chain(self.on_step)(gradient, num_examples=batch_size, generator=generator), loss

    def _gradient(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], float | None]:
        if self.source is None:
            return gradient_and_loss(model, images, labels)
        return self.source.gradient(model, images, labels, batch_size=batch_size, generator=generator), None

    def _mean_of_defended_examples(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], float | None]:
        on_each, noises = _noise_last(self.on_example)
        if on_each:
            mean, loss = self._mean_of_examples(chain(on_each), model, images, labels, generator=generator)
        else:
            mean, loss = self._gradient(model, images, labels, batch_size=len(labels), generator=generator)
        noise = chain([noise.on_mean(len(labels)) for noise in noises])
        return noise(mean, num_examples=len(labels), generator=generator), loss

    def _mean_of_examples(
        self, defend: Defense, model: nn.Module, images: Tensor, labels: Tensor, *, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], float | None]:
        defended: list[Mapping[str, Tensor]] = []
        losses: list[float | None] = []
        untouched = True
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            gradient, loss = self._gradient(model, image, label, batch_size=1, generator=generator)
            defended.append(defend(gradient, num_examples=1, generator=generator))
            losses.append(loss)
            untouched = untouched and defended[-1] is gradient
        if untouched:  # the batch's own gradient, whose sum runs in another order: nothing changed is nothing changed
            return self._gradient(model, images, labels, batch_size=len(labels), generator=generator)
        known = [loss for loss in losses if loss is not None]
        mean = weighted_mean(defended, [1.0] * len(defended))
        return mean, sum(known) / len(known) if known else None


def _noise_last(defenses: Sequence[Defense]) -> tuple[tuple[Defense, ...], tuple[AdditiveNoise, ...]]:
    """Split a chain into what must see each example, and the noise at its end, which may be drawn for their mean."""
    noises: list[AdditiveNoise] = []
    for defense in reversed(defenses):
        if not isinstance(defense, AdditiveNoise):
            break
        noises.insert(0, defense)
    return tuple(defenses[: len(defenses) - len(noises)]), tuple(noises)


def arrange(links: Sequence[tuple[Place, Defense] | GradientDefense]) -> ClientDefenses:
    """Put each defense where it acts.

    Args:
        links: In the order of the experiment: what computes a gradient of its own, or a defense and its place.

    Raises:
        ConfigError: If the order is not the one in which a client can apply them.
    """
    source: GradientDefense | None = None
    placed: dict[Place, list[Defense]] = {place: [] for place in PLACES}
    latest: Place = "example"
    for position, link in enumerate(links):
        if isinstance(link, GradientDefense):
            if position > 0:
                raise ConfigError(
                    f"defenses.{position}: {type(link).__name__} computes the gradient itself and must stand first, "
                    "once; got it after another defense"
                )
            source = link
            continue
        place, defense = link
        if PLACES.index(place) < PLACES.index(latest):
            raise ConfigError(
                f"defenses.{position}: where = {place!r} cannot follow where = {latest!r}: a client defends examples, "
                "then steps, then the update; put it before"
            )
        latest = place
        placed[place].append(defense)
    if source is not None and placed["example"] and isinstance(source, PrivateGradientDefense):
        raise ConfigError(
            f"defenses: where = 'example' cannot follow {type(source).__name__}, whose noise is that of a whole batch; "
            "take where = 'step'"
        )
    return ClientDefenses(
        source=source,
        on_example=tuple(placed["example"]),
        on_step=tuple(placed["step"]),
        on_update=tuple(placed["update"]),
    )


def refuse_batch_norm(model: nn.Module, *, needed_by: str) -> None:
    """Refuse layers that mix the examples of a batch.

    Args:
        model: The model.
        needed_by: Who needs gradients of single examples, for the message.

    Raises:
        ConfigError: If there is such a layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{needed_by} needs the gradient of each example, which BatchNorm layer {name!r} makes depend on the "
                "others of its batch; take a model with GroupNorm or without normalisation layers (femnist_cnn, "
                "cifar_cnn, convnet, lenet, mlp)"
            )
