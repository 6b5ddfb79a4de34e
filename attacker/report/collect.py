"""From a run folder to what a page shows. Reads; computes nothing but sizes."""

import shlex
import time
from typing import Any

from attacker.report.content import AttackResult, ReportContent
from attacker.results import Result, read_results
from attacker.truth import Truth
from fl_sim.config import DefenseConfig, Experiment
from fl_sim.recording_store import Manifest
from fl_sim.run_store import RunStore


def collect_content(run: RunStore, truth: Truth | None, notices: tuple[str, ...] = ()) -> ReportContent:
    """Read a run folder.

    Args:
        run: The run.
        truth: Its private images, or ``None`` where they are not at hand; the page then shows reconstructions only.
        notices: Sentences that a reader of the page should know.

    Raises:
        RecordingError: If a file is damaged.
    """
    experiment = run.experiment()
    manifest = run.recording.read_manifest()
    return ReportContent(
        run_name=run.folder.name,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        summary=describe_run(run, experiment),
        evaluations=run.evaluations(),
        failures=tuple(
            failure for server_round in run.recording.rounds() for failure in run.recording.read_failures(server_round)
        ),
        attacks=tuple(_attack_result(result, truth) for result in read_results(run)),
        class_names=manifest.dataset.class_names,
        label_skew=None if truth is None else truth.all_label_counts(),
        commands=_commands(run, experiment),
        notices=notices,
    )


def _attack_result(result: Result, truth: Truth | None) -> AttackResult:
    private = None if truth is None or result.score is None else truth.private_batch(*result.key.clients)
    return AttackResult(
        server_round=result.key.server_round,
        client_id=result.key.client_id,
        attack=result.setting.name,
        setting=result.setting.label,
        seed=result.key.seed,
        threat_model=result.threat_model,
        outcome=result.reconstruction.outcome,
        seconds=result.reconstruction.seconds,
        matching_loss=result.reconstruction.matching_loss,
        losses=result.reconstruction.losses,
        reconstructions=result.reconstruction.images,
        recovered_labels=result.reconstruction.labels,
        private_images=None if private is None else private.images,
        labels=None if private is None else private.labels,
        score=None if private is None else result.score,
        others=result.key.others,
        remarks=result.reconstruction.remarks,
        options=tuple((name, str(value)) for name, value in result.setting.options.items()),
    )


def describe_run(run: RunStore, experiment: Experiment) -> tuple[tuple[str, str], ...]:
    """Return the setting of a run and how it was made, name and value in words.

    Raises:
        RecordingError: If a file is damaged.
    """
    origin = run.origin()
    status = run.status()
    manifest = run.recording.read_manifest()
    training, federation, data = experiment.training, experiment.federation, experiment.data
    local = f"E = {training.epochs}, m = {training.batch_size or 'all'}, eta = {training.learning_rate}"
    momentum = f", momentum {training.momentum}" if training.momentum else ""
    drawn = federation.clients_per_round or data.num_clients
    whose: tuple[tuple[str, str], ...] = (
        ("data set", f"{data.dataset}{_options(data.options)}"),
        ("partition", f"{data.partition}{_options(data.partition_options)}"),
        ("clients", f"{data.num_clients}, {drawn} each round"),
        ("images of a client", f"{data.examples_per_client} at most" if data.examples_per_client else "its share"),
    )
    if run.assumed() is not None:
        whose = (("data set", "elsewhere: recorded in another federation"), ("clients", str(manifest.num_clients)))
    return (
        *whose,
        ("model", f"{experiment.model.name}{_options(experiment.model.options)}"),
        ("parameters", f"{_num_parameters(run):,}".replace(",", " ")),
        ("algorithm", federation.algorithm),
        ("local training", f"{local}{momentum}, {training.order} batches"),
        ("rounds", f"{len(run.recording.rounds())} of {federation.num_rounds}"),
        ("defenses", ", ".join(map(_defense, experiment.defenses)) or "none"),
        *_server_privacy(run, manifest),
        ("image", " x ".join(map(str, manifest.dataset.image_shape))),
        ("run seed", str(experiment.seed)),
        ("federation", status.state + (f" in {status.seconds:.0f} s" if status.seconds else "")),
        ("started", str(origin.get("created", ""))),
        ("packages", ", ".join(f"{name} {version}" for name, version in origin.get("packages", {}).items())),
        ("machine", f"Python {origin.get('python', '')}, {origin.get('machine', '')}"),
    )


def _server_privacy(run: RunStore, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    if manifest.secure_aggregation is not None:
        options = manifest.secure_aggregation
        rows.append(("secure aggregation", f"SecAgg+, threshold {options.reconstruction_threshold:g}"))
    if manifest.central_privacy is not None:
        privacy, guarantee = manifest.central_privacy, run.recording.read_guarantee() or {}
        epsilon = guarantee.get("epsilon")
        spent = "" if epsilon is None else f", epsilon {epsilon:.3g} at delta {privacy.delta:g}"
        noise = f"clip norm {privacy.clip_norm:g}, noise multiplier {privacy.noise_multiplier:g}"
        rows.append(("central differential privacy", f"{noise}{spent}"))
    return tuple(rows)


def _num_parameters(run: RunStore) -> int:
    for server_round in run.recording.rounds():
        if run.recording.kept_clients(server_round) or run.recording.aggregated_clients(server_round):
            record = run.recording.read_round(server_round, [])
            return sum(tensor.numel() for tensor in record.global_parameters.values())
    return 0


def _commands(run: RunStore, experiment: Experiment) -> tuple[str, ...]:
    folder = shlex.quote(str(run.folder))
    again = f"fl-sim run {shlex.quote(str(run.folder / 'experiment.toml'))}"
    first = () if run.assumed() is not None else (again,)  # nobody can run another federation again
    return (*first, f"fl-sim attack {folder} --attack {experiment.attack.name}", f"fl-sim scores {folder} --format csv")


def _defense(defense: DefenseConfig) -> str:
    return f"{defense.name}{_options(defense.options)}"


def _options(options: dict[str, Any]) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""
