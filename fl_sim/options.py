"""Checked construction: settings from a file or the command line become typed arguments, or one clear line of error.

Pydantic does the checking against the annotations of the target, a function or a dataclass; an unknown key is an error.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from fl_sim.errors import ConfigError, brief

Built = TypeVar("Built")

_STRICT_KEYS = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


# Arguments that the platform supplies itself; everything else of a part can be set by a person.
SUPPLIED = frozenset({"dataset", "generator", "num_clients"})


def check_options(target: Callable[..., Any], options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Check options against the keyword arguments of a function or the fields of a dataclass.

    Args:
        target: The function or dataclass type that will be called with the options.
        options: Names and raw values, as read from TOML.
        where: How the section is called in messages, for instance ``"model.options"``.

    Returns:
        The options with their values converted to the annotated types (a list to a tuple, say).

    Raises:
        ConfigError: For an unknown key or a value of the wrong type or range.
    """
    accepted = _accepted_arguments(target)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        known = ", ".join(sorted(accepted)) or "none"
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known keys: {known}")
    missing = sorted(name for name, required in _required_arguments(target).items() if required and name not in options)
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is required, got {sorted(options) or 'no options'}")
    checked = create_model("Options", __config__=_STRICT_KEYS, **{name: accepted[name] for name in options})  # type: ignore[call-overload]
    try:
        model = checked.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(first_problem(error, where=where)) from error
    return {name: getattr(model, name) for name in options}


def build(target: Callable[..., Built], options: Mapping[str, Any], *, where: str, **given: Any) -> Built:
    """Call ``target(**given, **options)`` after checking the options.

    Args:
        target: The function or dataclass type.
        options: Raw options from an experiment.
        where: How the section is called in messages.
        **given: Arguments that the caller supplies itself and a person cannot set.

    Raises:
        ConfigError: If the options do not fit, or the target refuses a value with ``ValueError``.
    """
    try:
        return target(**given, **check_options(target, options, where=where))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def parse_dataclass(kind: type[Built], data: Mapping[str, Any]) -> Built:
    """Turn nested plain data into a (nested, frozen) dataclass.

    Raises:
        ConfigError: With the dotted name of the first key that does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(first_problem(error, kind=kind)) from error


def first_problem(error: ValidationError, *, where: str = "", kind: type[Any] | None = None) -> str:
    """Return the first problem of a validation as one line: name, expected, got, remedy.

    Args:
        error: What pydantic found.
        where: Prefix of the names.
        kind: The dataclass that was being filled; lets an unknown key be answered with the known ones.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    name = _dotted(first["loc"], where)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(kind, first["loc"])
        return f"{brief(name)}: unknown key" + (f"; known keys: {', '.join(known)}" if known else "")
    if first["type"] == "value_error":
        message = brief(first["msg"].removeprefix("Value error, "))
        return f"{name}: {message}" if name else message
    # A union reports one problem for each of its members, under one name.
    messages = [_uncapitalised(problem["msg"]) for problem in problems if _dotted(problem["loc"], where) == name]
    return f"{brief(name)}: {', or '.join(messages)}; got {brief(repr(first['input']))}"


def describe_options(target: Any) -> list[str]:
    """Return one line ``name = default`` for each option that a person can set; empty for what takes none."""
    if not callable(target):
        return []
    parameters = inspect.signature(target).parameters
    return [
        f"{name} (required)" if required else f"{name} = {parameters[name].default!r}"
        for name, required in _required_arguments(target).items()
    ]


def _dotted(location: tuple[int | str, ...], where: str) -> str:
    steps = [str(step) for step in location if "[" not in str(step)]
    return ".".join([where, *steps] if where else steps)


def _uncapitalised(message: str) -> str:
    return message[0].lower() + message[1:]


def _known_keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    for step in location[:-1]:
        kind = get_args(kind)[0] if isinstance(step, int) else get_type_hints(kind).get(step)
        if isinstance(kind, UnionType):  # an optional section
            kind = next((member for member in get_args(kind) if is_dataclass(member)), None)
        if kind is None:
            return []
    return sorted(field.name for field in fields(kind)) if is_dataclass(kind) else []


def _required_arguments(target: Callable[..., Any]) -> dict[str, bool]:
    parameters = inspect.signature(target).parameters
    return {name: parameters[name].default is inspect.Parameter.empty for name in _accepted_arguments(target)}


def _accepted_arguments(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    if is_dataclass(target):
        hints = get_type_hints(target)
        return {field.name: (hints[field.name], ...) for field in fields(target) if field.init}
    hints = get_type_hints(target)
    return {
        name: (hints.get(name, Any), ...)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in SUPPLIED
    }
