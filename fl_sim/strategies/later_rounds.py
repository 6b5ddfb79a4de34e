"""A strategy that goes on after some rounds: Flower's loop always counts from 1."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_sim.delegation import WrappedStrategy


class LaterRounds(WrappedStrategy):
    """Wraps any strategy, outermost, and tells it the number of the round in the whole run."""

    def __init__(self, strategy: Strategy, *, num_done: int) -> None:
        """Wrap a strategy.

        Args:
            strategy: The strategy.
            num_done: Rounds that were done before; 0 changes nothing.
        """
        super().__init__(strategy)
        self.num_done = num_done

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return super().configure_train(server_round + self.num_done, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate."""
        return super().aggregate_train(server_round + self.num_done, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return super().configure_evaluate(server_round + self.num_done, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate."""
        return super().aggregate_evaluate(server_round + self.num_done, replies)
