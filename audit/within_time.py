"""An attack within a budget of seconds: as many steps as fit, then more restarts, and an end by the clock.

    steps = min(the attack's own, what is left / seconds of a step)

An attack that is planned for fewer steps has its schedules run to their end, which finds more than one that is cut off.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from attacker.attack import Attack, Progress, Reconstruction, StopAttackError
from attacker.inversion_problem import label_counts
from attacker.observation import Observation
from attacker.placement import in_place_of_update
from attacker.recipes import ATTACKS
from attacker.wrappers import BestOf
from fl_sim.errors import ConfigError
from fl_sim.options import build

_PROBE_STEPS = 3
_SHARE_PLANNED = 0.85
"""Of the time that is left; steps do not all take as long as those that were timed."""
_MOST_RESTARTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAttack:
    """What an attack found in the time that it had.

    Attributes:
        reconstruction: Its images and labels.
        num_steps: Steps of all runs together.
        seconds: Wall time, what was needed to time the first steps included.
    """

    reconstruction: Reconstruction
    num_steps: int
    seconds: float


def attack_within(
    seconds: float,
    observation: Observation,
    *,
    name: str,
    options: dict[str, Any],
    draw: Callable[[], torch.Generator],
    clock: Callable[[], float] = time.monotonic,
) -> TimedAttack:
    """Attack for so many seconds at most, and one step.

    An attack without the hyper-parameter ``steps`` is run as it is.

    Args:
        seconds: The budget, > 0; what precedes the first step, such as the recovery of labels, counts.
        observation: All that the attack may see.
        name: A name of ATTACKS.
        options: Its hyper-parameters; ``steps`` is then the most that is ever taken in one run.
        draw: Returns a fresh generator.
        clock: Tells the time.

    Raises:
        ConfigError: If the attack or an option is not known.
        DoesNotApplyError: If the attack is not made for this model.
        NotGrantedError: If it needs what a server does not know.
    """
    deadline = clock() + seconds
    started = clock()
    attack = make_attack(name, options)
    steps = getattr(attack, "steps", None)
    if not isinstance(steps, int) or not is_dataclass(attack):
        counter = _Watch(deadline, clock)
        found = attack(observation, generator=draw(), on_step=counter)
        return TimedAttack(reconstruction=found, num_steps=counter.num_steps, seconds=clock() - started)
    known = _with_labels(observation, attack, draw)
    watch = _Watch(deadline, clock)
    found = _with_steps(attack, min(_PROBE_STEPS, steps))(known, generator=draw(), on_step=watch)
    affordable = _affordable(watch, deadline - clock())
    if affordable <= _PROBE_STEPS:
        return TimedAttack(reconstruction=found, num_steps=watch.num_steps, seconds=clock() - started)
    planned: Attack = _with_steps(attack, min(steps, affordable))
    restarts = min(_MOST_RESTARTS, affordable // steps)
    if restarts > 1 and getattr(attack, "restarts", 1) == 1:
        planned = BestOf(attack=planned, restarts=restarts, side_by_side=False)
    found = planned(known, generator=draw(), on_step=watch)
    return TimedAttack(reconstruction=found, num_steps=watch.num_steps, seconds=clock() - started)


def _with_labels(observation: Observation, attack: object, draw: Callable[[], torch.Generator]) -> Observation:
    """Recover the labels once, as the attack would in each of its runs; that can take longer than many steps."""
    recovery, knowledge = getattr(attack, "label_recovery", None), observation.knowledge
    if not isinstance(recovery, str) or knowledge.label_counts is not None:
        return observation
    counts = label_counts(in_place_of_update(observation), recovery, draw())
    return replace(observation, knowledge=replace(knowledge, label_counts=counts))


def make_attack(name: str, options: dict[str, Any]) -> Attack:
    """Build an attack.

    Raises:
        ConfigError: If the attack or an option is not known.
    """
    return build(ATTACKS[name], options, where="audit.options")


class _Watch:
    """Counts and times steps, and ends the attack at the deadline."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock
        self.num_steps = 0
        self._times: list[float] = []

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        self.num_steps += 1
        if len(self._times) < _PROBE_STEPS:
            self._times.append(now)
        if now >= self._deadline:
            raise StopAttackError

    def seconds_of_a_step(self) -> float | None:
        """Return the mean over the probed steps but the first, which prepares; ``None`` where there were too few."""
        if len(self._times) < 2:
            return None
        return max((self._times[-1] - self._times[0]) / (len(self._times) - 1), 1e-9)


def _affordable(watch: _Watch, left: float) -> int:
    # What comes before the first step is not counted: most of it was paid once, by the steps that were timed.
    step = watch.seconds_of_a_step()
    return 0 if step is None else max(0, int(_SHARE_PLANNED * left / step))


def _with_steps(attack: Any, steps: int) -> Any:
    known = {field.name for field in fields(attack)}
    if "steps" not in known:
        raise ConfigError(f"{type(attack).__name__} has no field 'steps'")
    return replace(attack, steps=steps)
