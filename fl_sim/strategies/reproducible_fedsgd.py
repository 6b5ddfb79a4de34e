"""FedSGD: clients send gradients, the server takes the step.

w_{t+1} = w_t - eta * sum_c (N_c / N) * g_c
"""

from collections.abc import Callable

from flwr.app import Array, ArrayRecord

from fl_sim.client_registry import ClientRegistry
from fl_sim.messages import ModelLayout
from fl_sim.records import Algorithm
from fl_sim.strategies.reproducible_fedavg import ReproducibleFedAvg


class ReproducibleFedSGD(ReproducibleFedAvg):
    """One step of gradient descent on the weighted average of client gradients (McMahan et al. 2017, Section 2).

    Buffers are not gradients: they are averaged as in FedAvg.
    """

    algorithm = Algorithm.FEDSGD

    def __init__(
        self,
        *,
        registry: ClientRegistry,
        layout: ModelLayout,
        seed: int,
        learning_rate: float,
        clients_per_round: int | None = None,
        min_replies: int = 1,
        before_round: Callable[[], None] = lambda: None,
    ) -> None:
        """Configure the strategy; ``learning_rate`` is eta, the others are as in FedAvg."""
        super().__init__(
            registry=registry,
            layout=layout,
            seed=seed,
            clients_per_round=clients_per_round,
            min_replies=min_replies,
            before_round=before_round,
        )
        self.learning_rate = learning_rate

    def next_global(self, average: ArrayRecord) -> ArrayRecord:
        """Take the step."""
        following = super().next_global(average)
        for name in self.layout.parameters:
            gradient = following[name].numpy()
            following[name] = Array(self._sent[name].numpy() - gradient.dtype.type(self.learning_rate) * gradient)
        return following
