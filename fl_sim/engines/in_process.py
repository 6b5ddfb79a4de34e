"""One process, one client after the other: the engine for tests and for a debugger.

The same ServerApp and ClientApp run on a `flwr.serverapp.Grid` that hands messages over directly. Private pieces of
Flower that stand here, and nowhere else: `TaskIdentity` (messages cannot be made without it), `Run.create_empty`, and
the message id, which the SuperLink sets otherwise.
"""

import contextlib
import copy
from collections.abc import Generator, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.messages import PARTITION_ID

_CLIENT_APP_RAISED_EXCEPTION = 2
_SERVER_NODE_ID = 1
_FIRST_CLIENT_NODE_ID = 1000


def run_in_process(
    server_app: ServerApp, client_app: ClientApp, num_clients: int, *, run_config: UserConfig | None = None
) -> None:
    """Run a federation to its end.

    Args:
        server_app: Called once.
        client_app: Called once for each message.
        num_clients: Number of clients.
        run_config: What an app that is not ours reads from its pyproject.toml.

    Raises:
        Exception: Whatever the ServerApp raised. Failures of clients are error replies and do not end the run.
    """
    with task_identity():
        grid = InProcessGrid(client_app, num_clients, run_config=run_config)
        config = dict(run_config or {})
        context = Context(run_id=1, node_id=_SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=config)
        server_app(grid, context)


class InProcessGrid(Grid):
    """Runs a ClientApp at the moment when its reply is asked for.

    Messages are copied both ways, as on a network: Flower sends one shared record to all clients, and mods change it.
    """

    def __init__(self, client_app: ClientApp, num_clients: int, *, run_config: UserConfig | None = None) -> None:
        """Make one node for each client; node ids are unlike client ids on purpose."""
        self._client_app = client_app
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            _FIRST_CLIENT_NODE_ID + client_id: Context(
                run_id=1,
                node_id=_FIRST_CLIENT_NODE_ID + client_id,
                node_config={PARTITION_ID: client_id, "num-partitions": num_clients},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for client_id in range(num_clients)
        }
        self._pending: dict[str, Message] = {}
        self._num_messages = 0

    def set_run(self, run: Run) -> None:
        """Replace the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run's description."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message, as the deprecated part of Flower's interface does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Give each message an id and keep a copy of it until its reply is pulled."""
        ids: list[str] = []
        for message in messages:
            self._num_messages += 1
            message.metadata.__dict__["_message_id"] = str(self._num_messages)
            self._pending[message.metadata.message_id] = copy.deepcopy(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run one client, the first that was asked, and return its reply."""
        wanted = set(message_ids)
        waiting = next((message_id for message_id in self._pending if message_id in wanted), None)
        return [] if waiting is None else [self._answer(self._pending.pop(waiting))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the clients one after the other; nobody is ever late."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        try:
            reply = copy.deepcopy(self._client_app(message, self._contexts[node_id]))
        except Exception as error:  # noqa: BLE001 - a client may raise anything; the engines answer with an error reply
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(code=_CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)
        return reply


@contextlib.contextmanager
def task_identity() -> Generator[None]:
    """Give this process the identity of a server task, without which Flower makes no messages."""
    names = ("_task_id", "_run_id", "_node_id")
    previous = [getattr(TaskIdentity, name) for name in names]
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, _SERVER_NODE_ID
    try:
        yield
    finally:
        for name, value in zip(names, previous, strict=True):
            setattr(TaskIdentity, name, value)
