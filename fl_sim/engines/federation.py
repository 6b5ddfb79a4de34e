"""What an engine is given: which run, which clients, and where a SuperLink is already up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fl_sim.deployment.address import SuperLinkAddress
from fl_sim.run_store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """A federation to run.

    Attributes:
        run: Made by `fl_sim.run_store.create_run`.
        client_app: ``package.module:function`` that makes the ClientApp of an experiment.
        superlink: A SuperLink to join, for the deployment; ``None`` starts one.
    """

    run: RunStore
    client_app: str
    superlink: SuperLinkAddress | None = None


Engine: TypeAlias = Callable[[Federation], None]
