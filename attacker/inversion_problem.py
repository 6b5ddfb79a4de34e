"""An observed update as a problem to be solved: labels attributed, units and order of tensors settled.

observation -> labels (recovered or granted), w_t and observed mean gradient in the model's order, pixels <-> normalised
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attacker.adaptation import Adaptation, adaptation
from attacker.adaptation.link import Client
from attacker.client_simulation import ClientSimulation
from attacker.company import company
from attacker.distances import Distance, cosine_distance, relative_squared_l2
from attacker.graph_memory import GraphPlan, graph_bytes, memory_budget, plan_graph
from attacker.joint_terms import JointTerm
from attacker.labels import LABEL_RECOVERIES
from attacker.local_steps import Simulation, held_steps
from attacker.local_update import simulate_local_update
from attacker.observation import Observation, mean_gradient
from attacker.placement import device_of, dtype_of, in_place_of_update
from attacker.visiting_order import visiting_order
from fl_sim.parameters import Parameters, check_same_names, weighted_sum
from fl_sim.records import LocalTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionProblem:
    """What gradient matching works on; every tensor lies on the device of the update.

    Attributes:
        model: The architecture, in training mode.
        parameters: w_t, in the model's order.
        buffers: The buffers sent out with w_t.
        observed: The client's mean gradient, in the model's order; zero where a known defense leaves a tensor that
            says nothing.
        recipe: E, m, eta, momentum.
        members: Images of each client, which stand one client after the other; a single entry unless the update is a
            mean over several clients.
        labels: (N,), the class attributed to each image, or (N, K), its probabilities; in a random order within each
            client.
        order: (E, N), the order of visits that fits the label counts of every local step, where those are granted;
            ``None``: images are visited as they stand.
        mean: (C, 1, 1), public mean in pixel units.
        std: (C, 1, 1), public standard deviation in pixel units.
        image_shape: (C, H, W).
        num_rounds: Rounds over which the update is a mean.
        adaptation: What the clients' known defenses make of a simulated update; ``None`` where they are not known.
        graph_plans: How the graphs of the simulations are held, by simulation and number of images at once; filled
            when one is first differentiated, because what fits depends on it.
    """

    model: nn.Module
    parameters: Parameters
    buffers: Mapping[str, Tensor]
    observed: Parameters
    recipe: LocalTraining
    members: tuple[int, ...]
    labels: Tensor
    order: Tensor | None
    mean: Tensor
    std: Tensor
    image_shape: tuple[int, int, int]
    num_rounds: int = 1
    adaptation: Adaptation | None = None
    graph_plans: dict[tuple[Simulation, int | None], GraphPlan] = field(
        default_factory=dict[tuple[Simulation, int | None], GraphPlan], repr=False, compare=False
    )

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def num_steps(self) -> int:
        """U, the client's local steps; the largest of several clients."""
        return self.recipe.steps(max(self.members))

    @property
    def num_batches(self) -> int:
        """B_c, batches of an epoch; of all clients together."""
        return sum(map(self.recipe.batches_per_epoch, self.members))

    @property
    def trust(self) -> float:
        """What the matching term is multiplied by beside priors: less than 1 where known noise is on the update."""
        return 1.0 if self.adaptation is None else self.adaptation.trust

    @property
    def directional_distance(self) -> Distance:
        """Cosine distance, or half the relative squared L2 where known defenses tell lengths as well.

        For small angles between vectors of one length the two are the same.
        """
        if self.adaptation is None or not self.adaptation.knows_length:
            return cosine_distance
        return lambda simulated, observed: 0.5 * relative_squared_l2(simulated, observed)

    def noise_variance(self, name: str) -> float:
        """Return the variance of the known noise in an entry of a tensor of ``observed``; 0 where none is known."""
        return 0.0 if self.adaptation is None else self.adaptation.variance.get(name, 0.0)

    def is_muted(self, name: str) -> bool:
        """Say whether a known defense leaves a tensor of ``observed`` that says nothing."""
        return self.adaptation is not None and name in self.adaptation.muted

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know about how the problem is solved."""
        averaged = f"the update is the mean of {self.num_rounds} rounds, taken as replies with the same data"
        return (
            *((averaged,) if self.num_rounds > 1 else ()),
            *(() if self.adaptation is None else self.adaptation.remarks),
            *(str(plan) for plan in self.graph_plans.values() if plan.segment_length is not None),
        )

    def to_pixels(self, normalised: Tensor) -> Tensor:
        """Return ``mean + std * z``, shape (..., C, H, W)."""
        return self.mean + self.std * normalised

    def to_normalised(self, pixels: Tensor | float) -> Tensor:
        """Return ``(pixels - mean) / std``, broadcast to the channels."""
        return (pixels - self.mean) / self.std

    def simulate(
        self,
        pixels: Tensor,
        simulation: Simulation,
        *,
        labels: Tensor | None = None,
        orders: Sequence[Tensor] | None = None,
        images_at_once: int | None = None,
        whole_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Return the mean gradient of a client with these images, or of several clients.

        The graph of all local steps is kept where it fits into memory, else that of as many as fit.

        Args:
            pixels: (N, C, H, W), or (E, N, C, H, W).
            simulation: How faithfully the local steps are followed, see `simulate_local_update`.
            labels: (N,), or probabilities (N, K), in place of the problem's.
            orders: (E, N_c) for each client, positions among its own images, in place of the problem's.
            images_at_once: Holds memory down, see `simulate_local_update`.
            whole_graph: Calls the model for each gradient only once, for those who watch its layers.
        """
        simulations = self._simulations(pixels, simulation, labels, orders, images_at_once, whole_graph=whole_graph)
        others = None if whole_graph or len(self.members) > 1 else company()
        gradients = [own.alone() if others is None else others.simulate(own) for own in simulations]
        if len(gradients) == 1:
            return gradients[0] if self.adaptation is None else self.adaptation.follow(gradients[0])
        # Each is the mean over the client's own steps; the update adds up steps.
        weights = [size * self.recipe.steps(size) / (self.num_images * self.num_steps) for size in self.members]
        return weighted_sum(gradients, weights)

    def matching(
        self, pixels: Tensor, simulation: Simulation, distance: JointTerm, *, images_at_once: int | None = None
    ) -> Tensor:
        """Return the distance, shape (), of a client with these images, or of several clients, from what was observed.

        The same as the distance of what `simulate` returns; in company, both are computed with those of others.

        Args:
            pixels: (N, C, H, W), or (E, N, C, H, W).
            simulation: As for `simulate`.
            distance: Of mean gradients, by name, as variables.
            images_at_once: As for `simulate`.
        """
        others = company()
        is_wanted = pixels.requires_grad and torch.is_grad_enabled()
        if others is None or not is_wanted or len(self.members) > 1 or self.adaptation is not None:
            return distance.alone(self.simulate(pixels, simulation, images_at_once=images_at_once))
        (own,) = self._simulations(pixels, simulation, None, None, images_at_once)
        return others.matching(own, distance)

    def _simulations(
        self,
        pixels: Tensor,
        simulation: Simulation,
        labels: Tensor | None,
        orders: Sequence[Tensor] | None,
        images_at_once: int | None,
        *,
        whole_graph: bool = False,
    ) -> list[ClientSimulation]:
        """Return the local training of each client; arguments as for `simulate`."""
        plan = None
        if pixels.requires_grad and torch.is_grad_enabled() and not whole_graph:
            plan = self._graph_plan(pixels, simulation, images_at_once)
        own_images = pixels.split(self.members, dim=-4)
        own_labels = (self.labels if labels is None else labels).split(self.members)
        own_orders = [self.order] * len(self.members) if orders is None else orders
        return [
            ClientSimulation(
                model=self.model,
                parameters=self.parameters,
                buffers=self.buffers,
                images=images,
                labels=attributed,
                recipe=self.recipe,
                simulation=simulation,
                order=order,
                images_at_once=images_at_once,
                clipping=None if self.adaptation is None else self.adaptation.clipping,
                plan=plan,
            )
            for images, attributed, order in zip(own_images, own_labels, own_orders, strict=True)
        ]

    def _graph_plan(self, pixels: Tensor, simulation: Simulation, images_at_once: int | None) -> GraphPlan:
        """Return the plan for the largest client, measured on its first gradient."""
        key = (simulation, images_at_once)
        if key not in self.graph_plans:
            num_images = max(self.members)
            steps = held_steps(simulation, self.recipe, num_images, self.order)
            of_an_epoch = pixels.detach() if pixels.dim() == 4 else pixels.detach()[0]
            first = of_an_epoch[:num_images][steps[0].chosen].requires_grad_()
            step_bytes = graph_bytes(
                lambda: simulate_local_update(
                    self.model,
                    self.parameters,
                    self.buffers,
                    first,
                    self.labels[:num_images][steps[0].chosen],
                    replace(self.recipe, epochs=1, batch_size=None),
                    images_at_once=images_at_once,
                )
            )
            state_bytes = sum(tensor.nbytes for tensor in self.parameters.values())
            if self.adaptation is not None and self.adaptation.clipping is not None:
                # torch.func cannot be watched; it holds each example's gradient, plain and clipped, besides.
                step_bytes += 2 * len(first) * state_bytes
            self.graph_plans[key] = plan_graph(
                len(steps),
                step_bytes=step_bytes,
                state_bytes=state_bytes * (2 if self.recipe.momentum else 1),
                budget=memory_budget(pixels.device) // len(self.members),
            )
        return self.graph_plans[key]

    def noise(self, generator: torch.Generator, *, num_sets: int | None = None) -> Tensor:
        """Draw N(0, 1): (N, C, H, W), or (V, N, C, H, W) for ``num_sets`` V."""
        shape = (self.num_images, *self.image_shape)
        drawn = torch.randn(shape if num_sets is None else (num_sets, *shape), generator=generator)
        return drawn.to(self.mean)


def inversion_problem(observation: Observation, label_recovery: str, generator: torch.Generator) -> InversionProblem:
    """Settle everything about an observation that does not depend on the images.

    The client's order is unknown: labels stand in a random order, which also is the guess of the split into batches.
    Sorted ones would make nearly class-pure batches, which cost quality when measured.

    Args:
        observation: What the attack sees.
        label_recovery: A name of LABEL_RECOVERIES, used where label counts are not granted.
        generator: Draws dummy images and the order.

    Raises:
        ConfigError: If the label recovery is unknown.
        DoesNotApplyError: If the label recovery does not apply to the model or the update.
        NotGrantedError: If N_c or the recipe of local training is not granted.
        ValueError: If the update's names are not those of the model's trainable tensors, or granted counts do not fit
            each other.
    """
    local = in_place_of_update(observation)
    counts = label_counts(local, label_recovery, generator)
    # Recovered counts are those of all clients together: who holds what remains a guess.
    labels = torch.cat([_in_random_order(own, generator) for own in (counts if counts.dim() == 2 else [counts])])
    return _problem(local, labels)


def problem_with_labels(observation: Observation, labels: Tensor) -> InversionProblem:
    """Settle everything about an observation but the labels, which are given.

    Args:
        observation: What the attack sees.
        labels: (N,), int64, or (N, K), probabilities.

    Raises:
        NotGrantedError: If N_c or the recipe of local training is not granted.
        ValueError: If the update's names are not those of the model's trainable tensors.
    """
    return _problem(in_place_of_update(observation), labels)


def _problem(local: Observation, labels: Tensor) -> InversionProblem:
    """Return the problem of an observation that lies on one device."""
    names = {name: tensor.detach() for name, tensor in local.model.named_parameters()}
    batch_counts, order = local.knowledge.batch_label_counts, None
    if batch_counts is not None and labels.dim() == 1:  # probabilities of labels fit any order
        order = visiting_order(labels, batch_counts.cpu(), local.require_local_training())
    gradient = mean_gradient(local)
    check_same_names(names, gradient)
    device, dtype = device_of(local), dtype_of(local)
    observed = {name: gradient[name] for name in names}
    adapted = _adaptation(local, observed)
    muted = () if adapted is None else adapted.muted
    return InversionProblem(
        model=local.model,
        # The order of the model: distances weight layers by it, and files do not keep one.
        parameters={name: local.global_parameters[name] for name in names},
        buffers=local.global_buffers,
        observed={name: torch.zeros_like(tensor) if name in muted else tensor for name, tensor in observed.items()},
        recipe=local.require_local_training(),
        members=local.require_cohort(),
        order=None if order is None else order.to(device),
        labels=labels.to(device, dtype) if labels.is_floating_point() else labels.to(device),
        mean=torch.tensor(local.dataset.mean, device=device, dtype=dtype).reshape(-1, 1, 1),
        std=torch.tensor(local.dataset.std, device=device, dtype=dtype).reshape(-1, 1, 1),
        image_shape=local.dataset.image_shape,
        num_rounds=local.num_rounds,
        adaptation=adapted,
    )


def _adaptation(local: Observation, observed: Parameters) -> Adaptation | None:
    """Return how known defenses are followed; ``None`` without any, or where they are not known."""
    defenses, cohort = local.knowledge.defenses, local.require_cohort()
    if not defenses:
        return None
    if len(cohort) > 1:
        names = ", ".join(defense.name for defense in defenses)
        return Adaptation(remarks=(f"does not follow {names}: the mean of defended updates is not a defended mean",))
    client = Client(
        model=local.model,
        algorithm=local.algorithm,
        recipe=local.require_local_training(),
        num_examples=local.require_num_examples(),
        image_shape=local.dataset.image_shape,
        num_rounds=local.num_rounds,
    )
    return adaptation(defenses, observed, client)


def _in_random_order(counts: Tensor, generator: torch.Generator) -> Tensor:
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    return labels[torch.randperm(len(labels), generator=generator)]


def label_counts(observation: Observation, label_recovery: str, generator: torch.Generator) -> Tensor:
    """Return the granted label counts, or recover them: (K,), or (clients, K) as granted; int64, on the CPU.

    Raises:
        ValueError: If granted counts do not sum to N_c.
    """
    granted, by_batch = observation.knowledge.label_counts, observation.knowledge.batch_label_counts
    if granted is None and by_batch is not None:
        granted = by_batch.sum(dim=0) // observation.require_local_training().epochs  # each image once in every epoch
    if granted is None:
        return LABEL_RECOVERIES[label_recovery](observation, generator=generator)
    cohort, found = observation.require_cohort(), granted.reshape(-1, granted.shape[-1]).sum(dim=1).tolist()
    if found != list(cohort):
        expected, got = ", ".join(map(str, cohort)), ", ".join(map(str, found))
        raise ValueError(f"label_counts must sum to num_examples = {expected}, got {got}")
    return granted.cpu().long()
