"""A Flower Grid that tells of each reply as it arrives.

Flower's own ``send_and_receive`` is silent until the last reply; a person in front of a progress bar, and later a
listener below secure aggregation, want to know at once. Everything else is delegated to the engine's grid.
"""

import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class StreamingGrid(Grid):
    """Wraps any grid; ``on_reply`` is called with each reply, errors included."""

    def __init__(self, grid: Grid, on_reply: Callable[[Message], None], *, pull_interval: float = 0.05) -> None:
        """Wrap a grid.

        Args:
            grid: The engine's grid.
            on_reply: Called once for each reply, in order of arrival.
            pull_interval: Seconds between two questions for replies.
        """
        self._grid = grid
        self._on_reply = on_reply
        self._pull_interval = pull_interval

    def set_run(self, run: Run) -> None:
        """Delegate."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Delegate."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Delegate."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Delegate."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for the replies, at most ``timeout`` seconds; late ones are left out."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            arrived = list(self.pull_messages(waiting))
            for reply in arrived:
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
                self._on_reply(reply)
            if deadline is not None and time.monotonic() > deadline:
                break
            if waiting and not arrived:
                time.sleep(self._pull_interval)
        return replies
