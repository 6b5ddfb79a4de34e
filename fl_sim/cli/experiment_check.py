"""What every command checks before it writes anything: that each part of an experiment can be built."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from attacker.campaign import resolve_setting
from clients.client_app import build_defense
from clients.defenses import PrivateGradientDefense
from fl_sim.cli.image_metrics import load_extractor
from fl_sim.config import Experiment
from fl_sim.errors import ConfigError
from fl_sim.federated_data import load_federated_data
from fl_sim.models import MODELS
from fl_sim.options import build
from fl_sim.seeds import generator
from fl_sim.server_app import check_server_privacy


def check_experiment(experiment: Experiment) -> None:
    """Build every part of an experiment once, so that nothing is written for one that cannot run.

    Raises:
        ConfigError: For an unknown part, an option that does not fit, or an impossible combination.
        MissingDataError: If the data is not there.
    """
    data = load_federated_data(experiment.data, experiment.seed)
    model = build(
        MODELS[experiment.model.name],
        experiment.model.options,
        where="model.options",
        dataset=data.dataset.spec,
        generator=generator(experiment.seed, "model-initialisation"),
    )
    check_server_privacy(experiment, model)
    build_defense(experiment)
    resolve_setting(experiment.attack)
    if experiment.scoring.feature_extractor is not None:
        load_extractor(experiment.scoring)  # an unknown name must not wait for the end of the attack
    rounds, clients = experiment.attack.rounds, experiment.attack.clients
    _check_numbers("attack.rounds", rounds, 1, experiment.federation.num_rounds)
    _check_numbers("attack.clients", clients, 0, experiment.data.num_clients - 1)
    _check_numbers("recording.rounds", experiment.recording.rounds, 1, experiment.federation.num_rounds)
    _check_numbers("recording.clients", experiment.recording.clients, 0, experiment.data.num_clients - 1)


def check_resumable(experiment: Experiment) -> None:
    """Refuse to go on with a federation part of whose state was with its clients.

    Raises:
        ConfigError: If clients count their rounds for a privacy guarantee.
    """
    if isinstance(build_defense(experiment).source, PrivateGradientDefense):
        raise ConfigError(
            f"--resume: a client that trains by {experiment.defenses[0].name!r} counts its rounds itself, and the "
            "count went with it: the epsilon that it reports would be too low; run the experiment anew"
        )


def _check_numbers(name: str, selection: str | tuple[int, ...], lowest: int, highest: int) -> None:
    if isinstance(selection, tuple):
        for number in selection:
            if not lowest <= number <= highest:
                raise ConfigError(f"{name}: expected numbers from {lowest} to {highest}, got {number}")


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """Return the experiment with absolute paths: a run must find its files again from any folder."""
    data = replace(experiment.data, options=_with_absolute_path(experiment.data.options, "path"))
    model = replace(experiment.model, options=_with_absolute_path(experiment.model.options, "weights"))
    scoring = replace(
        experiment.scoring,
        alexnet_weights=_absolute(experiment.scoring.alexnet_weights),
        efficientnet_weights=_absolute(experiment.scoring.efficientnet_weights),
    )
    return replace(experiment, data=data, model=model, scoring=scoring)


def _with_absolute_path(options: dict[str, Any], name: str) -> dict[str, Any]:
    path = options.get(name)
    return {**options, name: _absolute(path)} if isinstance(path, str) else options


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().resolve())
