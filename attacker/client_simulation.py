"""The local training of one client, as it is asked for: alone, or to be computed with that of others."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from attacker.gradient_clipping import GradientClipping
from attacker.graph_memory import GraphPlan
from attacker.local_steps import Simulation
from attacker.local_update import simulate_local_update
from fl_sim.parameters import Parameters
from fl_sim.records import LocalTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSimulation:
    """What `simulate_local_update` is to compute for one client; the attributes are its arguments.

    Attributes:
        plan: How the graph is held; ``None`` where none by the images is wanted.
    """

    model: nn.Module
    parameters: Parameters
    buffers: Mapping[str, Tensor]
    images: Tensor
    labels: Tensor
    recipe: LocalTraining
    simulation: Simulation
    order: Tensor | None
    images_at_once: int | None
    clipping: GradientClipping | None
    plan: GraphPlan | None

    @property
    def has_place_in_batch(self) -> bool:
        """Whether a batch could compute it: as a whole, and with constant labels."""
        return self.images_at_once is None and not self.labels.requires_grad

    @property
    def kind(self) -> Hashable:
        """What must agree for one batch; the architecture agrees by `attacker.together`."""
        return (
            self.recipe,
            self.simulation,
            self.clipping,
            self.order is None,
            self.plan is None,
            *((tensor.shape, tensor.dtype, tensor.device) for tensor in (self.images, self.labels)),
        )

    def alone(self) -> dict[str, Tensor]:
        """Return the mean gradient, of this client alone."""
        return simulate_local_update(
            self.model,
            self.parameters,
            self.buffers,
            self.images,
            self.labels,
            self.recipe,
            simulation=self.simulation,
            order=self.order,
            images_at_once=self.images_at_once,
            segment_length=None if self.plan is None else self.plan.segment_length,
            clipping=self.clipping,
        )
