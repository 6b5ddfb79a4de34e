"""A Flower Grid that tells of each reply as it arrives.

Flower's own ``send_and_receive`` is silent until the last reply; a person in front of a progress bar, and later a
listener below secure aggregation, want to know at once. Everything else is delegated to the engine's grid.
"""

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fl_sim.delegation import WrappedGrid


class StreamingGrid(WrappedGrid):
    """Wraps any grid; ``on_reply`` is called with each reply, errors included."""

    def __init__(self, grid: Grid, on_reply: Callable[[Message], None], *, pull_interval: float = 0.05) -> None:
        """Wrap a grid.

        Args:
            grid: The engine's grid.
            on_reply: Called once for each reply, in order of arrival.
            pull_interval: Seconds between two questions for replies.
        """
        super().__init__(grid)
        self._on_reply = on_reply
        self._pull_interval = pull_interval

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
