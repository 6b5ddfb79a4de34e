"""What can be chosen for a new attack: attacks with their hyper-parameters, and threat models."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from attacker.recipes import ATTACKS
from attacker.threat_models import THREAT_MODELS
from dashboard.run_reader import uses_truth
from dashboard.run_view import ThreatView, threat_view


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionView:
    """A hyper-parameter: ``kind`` is ``integer``, ``number``, ``switch`` or ``text``."""

    name: str
    kind: str
    default: int | float | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackView:
    """An attack that can be started."""

    name: str
    summary: str
    options: tuple[OptionView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedView:
    """What the experiment says of its attack; only the name of the attack where it is not shown."""

    attack: str
    threat_model: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsView:
    """What the form offers."""

    attacks: tuple[AttackView, ...]
    threat_models: tuple[ThreatView, ...]


def parts_view(*, sees_truth: bool) -> PartsView:
    """Return what can be chosen; the attacker's view offers no threat model that grants a piece of the truth."""
    return PartsView(
        attacks=tuple(_attack(name, kind) for name, kind in ATTACKS.items()),
        threat_models=tuple(
            threat_view(model) for model in THREAT_MODELS.values() if sees_truth or not uses_truth(model)
        ),
    )


def _attack(name: str, kind: Any) -> AttackView:
    known = fields(kind) if is_dataclass(kind) else ()
    summary = (kind.__doc__ or "").strip().split("\n")[0]
    options = tuple(option for field in known if (option := _option(field)) is not None)
    return AttackView(name=name, summary=summary, options=options)


def _option(field: Field[Any]) -> OptionView | None:
    default = field.default
    if default is MISSING or not isinstance(default, int | float | bool | str | None):
        return None
    kinds: dict[type, str] = {bool: "switch", int: "integer", float: "number"}
    return OptionView(name=field.name, kind=kinds.get(type(default), "text"), default=default)
