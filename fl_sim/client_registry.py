"""Who is behind a node: Flower's node ids are random, clients have numbers.

The server asks every node once, when it first sees it, and keeps the answer: a number that a client puts into a later
reply is never believed. A SuperNode that was killed and started again is a new node to Flower; it is asked before the
next round, and its client is back.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl_sim.errors import FederationError
from fl_sim.messages import BadReplyError, unpack_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistry:
    """The mapping between client ids and Flower's node ids; `readmit_clients` keeps it true.

    Attributes:
        nodes: Node id of each client, by rising client id.
        clients: Client id of each node, of those that are gone as well.
        asked: Nodes that came later and were asked who they are.
    """

    nodes: dict[int, int]
    clients: dict[int, int]
    asked: set[int] = field(default_factory=set[int])


def register_clients(grid: Grid, num_clients: int, *, timeout: float) -> ClientRegistry:
    """Wait until all clients are there and ask each for its number.

    Args:
        grid: The grid.
        num_clients: Clients to wait for.
        timeout: Seconds to wait for them to appear, and again for their answers.

    Raises:
        FederationError: If clients are missing, fail, or two of them hold the same partition.
    """
    deadline = time.monotonic() + timeout
    while len(node_ids := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() > deadline:
            raise FederationError(
                f"expected {num_clients} clients, got {len(node_ids)} after {timeout:.0f} s; "
                "start the missing ones or lower data.num_clients"
            )
        time.sleep(0.05)
    nodes: dict[int, int] = {}
    for reply in _ask(grid, node_ids, timeout):
        try:
            client_id = unpack_identity(reply)
        except BadReplyError as error:
            raise FederationError(
                f"node {reply.metadata.src_node_id} did not say which client it is: {error}"
            ) from error
        if client_id in nodes:
            raise FederationError(
                f"two nodes hold partition {client_id}; give each SuperNode a partition-id of its own"
            )
        nodes[client_id] = reply.metadata.src_node_id
    if len(nodes) < num_clients:
        raise FederationError(
            f"expected {num_clients} clients to say who they are, got {len(nodes)} in {timeout:.0f} s"
        )
    return ClientRegistry(
        nodes=dict(sorted(nodes.items())),
        clients={node_id: client_id for client_id, node_id in nodes.items()},
    )


def readmit_clients(
    registry: ClientRegistry, grid: Grid, *, timeout: float, on_return: Callable[[int], None] = lambda client_id: None
) -> None:
    """Ask the nodes that have come since, and let each take the place of its client's former node.

    A node is asked once. One that fails, does not answer or names an unknown client is left alone.

    Args:
        registry: Changed in place.
        grid: The grid.
        timeout: Seconds to wait for the answers, where there is anybody to ask.
        on_return: Called with each client that is back.
    """
    strangers = [node for node in grid.get_node_ids() if node not in registry.clients and node not in registry.asked]
    if not strangers:
        return
    registry.asked.update(strangers)
    for reply in _ask(grid, strangers, timeout):
        try:
            client_id = unpack_identity(reply)
        except BadReplyError:
            continue
        if client_id in registry.nodes:
            registry.nodes[client_id] = reply.metadata.src_node_id
            registry.clients[reply.metadata.src_node_id] = client_id
            on_return(client_id)


def _ask(grid: Grid, node_ids: Iterable[int], timeout: float) -> Iterable[Message]:
    questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in node_ids]
    return grid.send_and_receive(questions, timeout=timeout)
