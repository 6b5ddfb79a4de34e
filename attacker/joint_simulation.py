"""Simulations of attacks that run in lockstep, computed as one batch where that was measured to be cheaper.

    attack b:  u_b = simulate(x_b) ... loss_b(u_b) ... dloss_b/dx_b        b = 1..B, in lockstep
    together:  (u_1..u_B) = simulate_many(x_1..x_B),    (x_1_bar..x_B_bar) = its adjoint of (u_1_bar..u_B_bar)

Where the losses are of one kind, they are in the batch too. The first time that several ask for the same, a step is
timed both ways; from then on the cheaper is taken, for the terms beside the simulation as well. The attacks' side of it
is `attacker.company`.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from attacker.attack import OnStep, Progress, StopAttackError
from attacker.client_simulation import ClientSimulation
from attacker.graph_memory import GraphPlan, memory_budget
from attacker.joint_terms import JointTerm, Stacks, TermAt, Valued, valued, values_and_gradients, values_of
from attacker.many_local_updates import simulate_many_local_updates

# A batch holds the graphs of all at once, and a smaller gain is within what two measurements of the same differ by.
_WORTH_IT = 0.8

_ENOUGH_SECONDS = 3.0
_MOST_ROUNDS = 10


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
class Place:
    """One client's part of a batch."""

    batch: _Batch
    position: int


@dataclass(frozen=True, slots=True)
class Adjoint:
    """Asks for the derivative by the images, given that by each tensor of the update."""

    place: Place
    outer: tuple[Tensor, ...]

    @property
    def kind(self) -> Hashable:
        """What must agree to be answered together."""
        return id(self.place.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Asks for the distance of a simulated update and its derivative by the images."""

    simulation: ClientSimulation
    distance: JointTerm

    @property
    def kind(self) -> Hashable:
        """What must agree for one batch."""
        return self.simulation.kind, self.distance.kind


Question: TypeAlias = Progress | Adjoint | TermAt | Matching | ClientSimulation
Answer: TypeAlias = Place | Tensor | Valued | StopAttackError | None


class _OfKind(Protocol):
    @property
    def kind(self) -> Hashable: ...


Asked = TypeVar("Asked", bound=_OfKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSimulation:
    """Answers what attacks in lockstep ask, see `attacker.lockstep`.

    Attributes:
        on_step: Told about each step of each attack, in the thread of whoever runs them.
        choices: What was measured, by kind of simulation, in the order of measurement. The few simulations without a
            derivative, and the terms beside them, follow the last choice that was made for those with one.
        stacks: What the attacks do not change from step to step.
    """

    on_step: OnStep
    choices: dict[Hashable, Choice] = field(default_factory=dict[Hashable, Choice])
    stacks: Stacks = field(default_factory=Stacks, repr=False)

    @property
    def remarks(self) -> tuple[str, ...]:
        """How the steps of the optimisation were computed."""
        return tuple(str(choice) for choice in self.choices.values())

    @property
    def is_together(self) -> bool:
        """Whether what is not measured by itself is computed together."""
        return bool(self.choices) and list(self.choices.values())[-1].is_together

    def is_alone(self, own: ClientSimulation) -> bool:
        """Say whether it is known that such simulations are not worth waiting for one another."""
        if own.plan is None:
            return not self.is_together
        choice = self.choices.get(own.kind)
        return choice is not None and not choice.is_together

    def answer(self, questions: Mapping[int, Question]) -> dict[int, Answer]:
        """Answer all that needs no company first, so that those who are behind catch up; then what is least work."""
        steps = {index: own for index, own in questions.items() if isinstance(own, Progress)}
        if steps:
            return {index: self._told(own) for index, own in steps.items()}
        found: dict[int, Answer] = {}
        for adjoints in _grouped(questions, Adjoint):
            found |= _derivatives(adjoints)
        if not found:
            for terms in _grouped(questions, TermAt):
                found |= self._terms(terms)
        if not found:
            for matchings in _grouped(questions, Matching):
                found |= self._matchings(matchings)
            for simulations in _grouped(questions, ClientSimulation):
                found |= self._places(simulations)
        return found

    def _told(self, progress: Progress) -> StopAttackError | None:
        try:
            self.on_step(progress)
        except StopAttackError as stop:
            return stop
        return None

    def _terms(self, group: Mapping[int, TermAt]) -> dict[int, Answer]:
        """Return each attack's term and its gradient, or ``None`` for the only one of its kind."""
        if len(group) == 1:
            return dict.fromkeys(group)
        return dict(zip(group, values_and_gradients(list(group.values()), self.stacks), strict=True))

    def _matchings(self, group: Mapping[int, Matching]) -> dict[int, Answer]:
        """Return each client's distance and its gradient, or ``None`` for those that compute alone."""
        clients = [own.simulation for own in group.values()]
        plan = self._joint_plan(clients)
        if plan is None:
            return dict.fromkeys(group)
        batch = self._batch(clients, plan)
        with torch.enable_grad():
            distances = values_of([own.distance for own in group.values()], batch.updates, self.stacks)
        (gradients,) = torch.autograd.grad(distances.sum(), batch.images)
        return dict(zip(group, valued(distances, gradients), strict=True))

    def _places(self, group: Mapping[int, ClientSimulation]) -> dict[int, Answer]:
        """Return each client's place in one batch, or ``None`` for those that compute alone."""
        clients = list(group.values())
        plan = self._joint_plan(clients)
        if plan is None and (clients[0].plan is not None or len(clients) == 1 or self.is_alone(clients[0])):
            return dict.fromkeys(group)
        batch = self._batch(clients, plan)
        return {index: Place(batch, position) for position, index in enumerate(group)}

    def _joint_plan(self, clients: Sequence[ClientSimulation]) -> GraphPlan | None:
        """Return how the graph of clients of one kind is held, measured if it has not been; ``None`` if there is none.

        There is none where no derivative is wanted, and where each computes alone.
        """
        first = clients[0]
        if first.plan is None or len(clients) == 1:
            return None
        if first.kind not in self.choices:
            self.choices[first.kind] = self._measured(clients, first.plan)
        choice = self.choices[first.kind]
        return choice.plan if choice.is_together else None

    def _batch(self, clients: Sequence[ClientSimulation], plan: GraphPlan | None) -> _Batch:
        first = clients[0]
        images = torch.stack([own.images for own in clients]).requires_grad_(plan is not None)
        orders = [own.order for own in clients if own.order is not None]
        with torch.set_grad_enabled(plan is not None):
            updates = simulate_many_local_updates(
                first.model,
                self.stacks.stacked("parameters", [own.parameters for own in clients]),
                self.stacks.stacked("buffers", [own.buffers for own in clients]),
                images,
                torch.stack([own.labels for own in clients]),
                first.recipe,
                simulation=first.simulation,
                orders=torch.stack(orders) if orders else None,
                segment_length=None if plan is None else plan.segment_length,
                clipping=first.clipping,
            )
        return _Batch(images=images, updates=updates, waiting=set(range(len(clients))))

    def _measured(self, clients: Sequence[ClientSimulation], plan: GraphPlan) -> Choice:
        """Time a step of all clients as one batch, and of the first one alone, whose plan is given."""
        device = clients[0].images.device
        plan = plan.of_several(len(clients), memory_budget(device))

        def together() -> None:
            batch = self._batch(clients, plan)
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


def _derivatives(group: Mapping[int, Adjoint]) -> dict[int, Answer]:
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


def _grouped(questions: Mapping[int, Question], asked: type[Asked]) -> list[dict[int, Asked]]:
    """Return the questions of a type, in groups of one kind."""
    groups: dict[Hashable, dict[int, Asked]] = {}
    for index, own in questions.items():
        if isinstance(own, asked):
            groups.setdefault(own.kind, {})[index] = own
    return list(groups.values())


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
