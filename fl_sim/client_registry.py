"""Who is behind a node: Flower's node ids are random, clients have numbers.

The server asks every node once, before the first round, and keeps the answer: a number that a client puts into a later
reply is never believed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl_sim.errors import FederationError
from fl_sim.messages import BadReplyError, unpack_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistry:
    """The mapping between client ids and Flower's node ids.

    Attributes:
        nodes: Node id of each client, by rising client id.
        clients: Client id of each node.
    """

    nodes: Mapping[int, int]
    clients: Mapping[int, int]


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
    questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in node_ids]
    replies = grid.send_and_receive(questions, timeout=timeout)
    nodes: dict[int, int] = {}
    for reply in replies:
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
