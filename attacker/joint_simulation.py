"""Simulations of attacks that run in lockstep, computed as one batch where that was measured to be cheaper.

    attack b:  u_b = simulate(x_b) ... loss_b(u_b) ... dloss_b/dx_b        b = 1..B, in lockstep
    together:  (u_1..u_B) = simulate_many(x_1..x_B),    (x_1_bar..x_B_bar) = its adjoint of (u_1_bar..u_B_bar)

An attack is written for one observation and knows nothing of it: `InversionProblem.simulate` looks whether its attack
has company. The first time that several ask for the same, a step is timed both ways; from then on the cheaper is taken.
"""

import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attacker.attack import OnStep, Progress, StopAttackError
from attacker.gradient_clipping import GradientClipping
from attacker.graph_memory import GraphPlan, memory_budget
from attacker.local_steps import Simulation
from attacker.local_update import simulate_local_update
from attacker.lockstep import Ask
from attacker.many_local_updates import simulate_many_local_updates
from fl_sim.parameters import Parameters
from fl_sim.records import LocalTraining

# A batch holds the graphs of all at once, and a smaller gain is within what two measurements of the same differ by.
_WORTH_IT = 0.8

_ENOUGH_SECONDS = 3.0
_MOST_ROUNDS = 10


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one kind of simulation was measured to cost.

    Attributes:
        clients: How many asked.
        seconds_together: A step of all of them as one batch, the derivative by the images included.
        seconds_alone: All of them one by one.
        plan: How the graph of the batch is held.
    """

    clients: int
    seconds_together: float
    seconds_alone: float
    plan: GraphPlan

    @property
    def is_together(self) -> bool:
        """Whether the batch is taken."""
        return self.seconds_together < _WORTH_IT * self.seconds_alone

    def __str__(self) -> str:
        """One line for a person."""
        share = f"measured at {self.seconds_together / self.seconds_alone:.2f} of the time of one by one"
        if self.is_together:
            return f"{self.clients} attacks computed as one batch, {share}"
        return f"{self.clients} attacks computed one by one: a batch was {share}"


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """Simulations that were computed together, until their derivatives have been taken.

    Attributes:
        images: (B, ...), the leaf of the graph.
        updates: (B, ...) each.
        waiting: Positions whose derivative has not been taken.
    """

    images: Tensor
    updates: dict[str, Tensor]
    waiting: set[int]


@dataclass(frozen=True, slots=True)
class _Place:
    """One client's part of a batch."""

    batch: _Batch
    position: int


@dataclass(frozen=True, slots=True)
class _Adjoint:
    """Asks for the derivative by the images, given that by each tensor of the update."""

    place: _Place
    outer: tuple[Tensor, ...]


_Question: TypeAlias = ClientSimulation | _Adjoint | Progress
_Answer: TypeAlias = _Place | Tensor | StopAttackError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSimulation:
    """Answers what attacks in lockstep ask, see `attacker.lockstep`.

    Attributes:
        on_step: Told about each step of each attack, in the thread of whoever runs them.
        choices: What was measured, by kind of simulation, in the order of measurement. The few simulations without a
            derivative follow the last choice that was made for those with one.
    """

    on_step: OnStep
    choices: dict[Hashable, Choice] = field(default_factory=dict[Hashable, Choice])

    @property
    def remarks(self) -> tuple[str, ...]:
        """How the steps of the optimisation were computed."""
        return tuple(str(choice) for choice in self.choices.values())

    def is_alone(self, own: ClientSimulation) -> bool:
        """Say whether it is known that such simulations are not worth waiting for one another."""
        if own.plan is None:
            return not (self.choices and list(self.choices.values())[-1].is_together)
        choice = self.choices.get(own.kind)
        return choice is not None and not choice.is_together

    def answer(self, questions: Mapping[int, _Question]) -> dict[int, _Answer]:
        """Answer all that needs no company first, so that those who are behind catch up; then the simulations."""
        steps = {index: own for index, own in questions.items() if isinstance(own, Progress)}
        if steps:
            return {index: self._told(own) for index, own in steps.items()}
        adjoints = {index: own for index, own in questions.items() if isinstance(own, _Adjoint)}
        if adjoints:
            return {index: found for group in _by_batch(adjoints) for index, found in _derivatives(group).items()}
        simulations = {index: own for index, own in questions.items() if isinstance(own, ClientSimulation)}
        return {index: place for group in _by_kind(simulations) for index, place in self._places(group).items()}

    def _told(self, progress: Progress) -> StopAttackError | None:
        try:
            self.on_step(progress)
        except StopAttackError as stop:
            return stop
        return None

    def _places(self, group: Mapping[int, ClientSimulation]) -> dict[int, _Answer]:
        """Return each client's place in one batch, or ``None`` for those that compute alone."""
        clients = list(group.values())
        first = clients[0]
        if first.plan is not None and first.kind not in self.choices and len(clients) > 1:
            self.choices[first.kind] = _measured(clients, first.plan)
        if len(clients) == 1 or self.is_alone(first):
            return dict.fromkeys(group)
        batch = _batch(clients, None if first.plan is None else self.choices[first.kind].plan)
        return {index: _Place(batch, position) for position, index in enumerate(group)}


@dataclass(frozen=True, slots=True)
class Company:
    """What an attack that runs in lockstep has: others to be computed with."""

    ask: Ask[_Question, _Answer]
    joint: JointSimulation

    def simulate(self, own: ClientSimulation) -> dict[str, Tensor]:
        """Return the mean gradient, differentiable once by the images."""
        place = None
        if own.has_place_in_batch and not self.joint.is_alone(own):
            place = self.ask(replace(own, images=own.images.detach()))
        if not isinstance(place, _Place):
            return own.alone()
        if own.plan is None:
            return {name: tensor[place.position] for name, tensor in place.batch.updates.items()}
        updates = cast(tuple[Tensor, ...], _OfBatch.apply(self.ask, place, own.images))  # type: ignore[no-untyped-call]
        return dict(zip(place.batch.updates, updates, strict=True))

    def on_step(self, progress: Progress) -> None:
        """Hand a step to whoever watches, in their thread."""
        answer = self.ask(progress)
        if isinstance(answer, StopAttackError):
            raise answer


_COMPANY: ContextVar[Company | None] = ContextVar("company", default=None)


def company() -> Company | None:
    """Return whom the running attack can be computed with; ``None`` for an attack on its own."""
    return _COMPANY.get()


@contextmanager
def in_company(own: Company) -> Generator[None]:
    """Let simulations inside be computed with those of others."""
    token = _COMPANY.set(own)
    # OpenMP counts by thread, and a new one would take all cores.
    torch.set_num_threads(torch.get_num_threads())
    try:
        # An adjoint waits for those of the others, which the one thread that autograd has for a GPU could not.
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _COMPANY.reset(token)


class _OfBatch(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, ask: Ask[_Question, _Answer], place: _Place, images: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ask, ctx.place = ask, place
        return tuple(tensor[place.position].detach() for tensor in place.batch.updates.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, ctx.ask(_Adjoint(ctx.place, outer))


def _batch(clients: Sequence[ClientSimulation], plan: GraphPlan | None) -> _Batch:
    first = clients[0]
    images = torch.stack([own.images for own in clients]).requires_grad_(plan is not None)
    orders = [own.order for own in clients if own.order is not None]
    with torch.set_grad_enabled(plan is not None):
        updates = simulate_many_local_updates(
            first.model,
            {name: torch.stack([own.parameters[name] for own in clients]) for name in first.parameters},
            {name: torch.stack([own.buffers[name] for own in clients]) for name in first.buffers},
            images,
            torch.stack([own.labels for own in clients]),
            first.recipe,
            simulation=first.simulation,
            orders=torch.stack(orders) if orders else None,
            segment_length=None if plan is None else plan.segment_length,
            clipping=first.clipping,
        )
    return _Batch(images=images, updates=updates, waiting=set(range(len(clients))))


def _derivatives(group: Mapping[int, _Adjoint]) -> dict[int, _Answer]:
    """Return the derivatives by the images of those who ask; the others of their batch may ask later."""
    adjoints = list(group.values())
    batch = adjoints[0].place.batch
    outer = [torch.zeros_like(tensor) for tensor in batch.updates.values()]
    for own in adjoints:
        batch.waiting.discard(own.place.position)
        for stacked, one in zip(outer, own.outer, strict=True):
            stacked[own.place.position] = one
    updates = list(batch.updates.values())
    (found,) = torch.autograd.grad(updates, batch.images, outer, retain_graph=bool(batch.waiting))
    return {index: found[own.place.position] for index, own in group.items()}


def _by_kind(simulations: Mapping[int, ClientSimulation]) -> list[dict[int, ClientSimulation]]:
    groups: dict[Hashable, dict[int, ClientSimulation]] = {}
    for index, own in simulations.items():
        groups.setdefault(own.kind, {})[index] = own
    return list(groups.values())


def _by_batch(adjoints: Mapping[int, _Adjoint]) -> list[dict[int, _Adjoint]]:
    groups: dict[int, dict[int, _Adjoint]] = {}
    for index, own in adjoints.items():
        groups.setdefault(id(own.place.batch), {})[index] = own
    return list(groups.values())


def _measured(clients: Sequence[ClientSimulation], plan: GraphPlan) -> Choice:
    """Time a step of all clients as one batch, and of the first one alone, whose plan is given."""
    device = clients[0].images.device
    plan = plan.of_several(len(clients), memory_budget(device))

    def together() -> None:
        batch = _batch(clients, plan)
        updates = list(batch.updates.values())
        torch.autograd.grad(updates, batch.images, updates)

    def alone() -> None:
        images = clients[0].images.clone().requires_grad_()
        update = list(replace(clients[0], images=images).alone().values())
        torch.autograd.grad(update, images, update)

    of_all, of_one = _fastest((together, alone), device)
    return Choice(
        clients=len(clients),
        seconds_together=of_all,
        seconds_alone=len(clients) * of_one,
        plan=plan,
    )


def _fastest(steps: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """Return the lowest time of each step in seconds: in turns, after one that prepares, the short ones more often."""
    # A thread's own time is hardly disturbed by what else runs on the machine, but does not see torch's other threads.
    is_own = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if is_own else time.perf_counter
    found: list[list[float]] = []
    began = time.perf_counter()
    while len(found) < 3 or (len(found) < _MOST_ROUNDS and time.perf_counter() - began < _ENOUGH_SECONDS):
        found.append([_seconds(step, device, clock) for step in steps])
    return [min(times) for times in zip(*found[1:], strict=True)]


def _seconds(step: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    _wait_for(device)
    started = clock()
    step()
    _wait_for(device)
    return clock() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
