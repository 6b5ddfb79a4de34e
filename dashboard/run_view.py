"""What the page shows of runs: a line for each in the list, and all about one but its images."""

from collections.abc import Sequence
from dataclasses import dataclass

from attacker.attack_store import ResultKey
from attacker.observation import ThreatModel
from attacker.report import wording
from attacker.report.headline import beats_guessing, rank
from attacker.results import ResultSummary
from attacker.scoring import Score
from dashboard.progress_view import CampaignView, ProgressView, campaign_views, progress_view
from dashboard.run_index import RunIndex, RunPlace
from dashboard.run_reader import RunReader, Setting
from fl_sim.errors import FlSimError
from fl_sim.recording_store import Manifest
from fl_sim.run_store import RoundEvaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatView:
    """What an attack was granted, in words."""

    name: str
    description: str
    granted: str
    realistic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreView:
    """A score without its single images; PSNR in dB, shares in [0, 1]."""

    mean_psnr_db: float | None
    mean_ssim: float | None
    mean_lpips: float | None
    recovered: int
    num_images: int
    threshold_db: float
    wrong_labels: int
    guess_psnr_db: float | None
    beats_guessing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """One attacked update; ``score`` is ``None`` in the attacker's view and where nothing was scored."""

    attack: str
    key: str
    server_round: int
    clients: tuple[int, ...]
    seed: int
    seconds: float
    matching_loss: float | None
    score: ScoreView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestView:
    """The most revealing attack of a run; in the attacker's view its first one."""

    attack: str
    name: str
    line: ResultLine
    realistic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run in the list.

    Attributes:
        run_id: Its name in URLs.
        study: The study of defenses that it belongs to, or nothing.
        name: Name of its folder.
        problem: Why it cannot be shown; everything below is then empty.
        setting: Facts about it, each in a few words.
        defenses: Its defenses in words.
        progress: Of the federation.
        accuracy: Of the global model on the test images, in [0, 1].
        num_results: Attacked updates.
        best: What leaked.
        campaigns: Attacks under way.
    """

    run_id: str
    study: str
    name: str
    problem: str = ""
    setting: tuple[str, ...] = ()
    defenses: str = ""
    progress: ProgressView | None = None
    accuracy: float | None = None
    num_results: int = 0
    best: BestView | None = None
    campaigns: tuple[CampaignView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsView:
    """The list of runs."""

    runs_dir: str
    studies: tuple[str, ...]
    runs: tuple[RunLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingView:
    """One attack setting; ``options`` are name and value in words."""

    label: str
    name: str
    threat_model: ThreatView
    options: tuple[tuple[str, str], ...]
    num_results: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One recorded round; ``accuracy`` is that of the model that was sent out in it."""

    server_round: int
    clients: tuple[int, ...]
    aggregated: tuple[int, ...]
    failures: tuple[str, ...]
    accuracy: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run.

    Attributes:
        line: As in the list.
        facts: All about its setting, name and value in words.
        class_names: Of the data set.
        rounds: The recorded ones.
        attacks: The attack settings.
        results: What was attacked, without images.
        evaluations: Tests of the global model by round.
        num_hidden: Attack settings that the attacker's view leaves out, because they were granted a piece of the truth.
        problems: What could not be read.
    """

    line: RunLine
    facts: tuple[tuple[str, str], ...]
    class_names: tuple[str, ...]
    rounds: tuple[RoundView, ...]
    attacks: tuple[SettingView, ...]
    results: tuple[ResultLine, ...]
    evaluations: tuple[RoundEvaluation, ...]
    num_hidden: int
    problems: tuple[str, ...]


def runs_view(index: RunIndex, *, sees_truth: bool) -> RunsView:
    """Return a line for each run; one that cannot be read is a line that says so."""
    return RunsView(
        runs_dir=str(index.runs_dir),
        studies=index.studies(),
        runs=tuple(_guarded_line(index, place, sees_truth=sees_truth) for place in index.places()),
    )


def run_view(place: RunPlace, *, sees_truth: bool) -> RunView:
    """Return all about a run but its images.

    Raises:
        RecordingError: If the run cannot be read at all; single damaged parts become sentences in ``problems``.
    """
    reader = RunReader(place.store, sees_truth=sees_truth)
    settings, problems = reader.settings()
    results: list[ResultLine] = []
    views: list[SettingView] = []
    for setting in settings:
        found, damaged = reader.summaries(setting)
        problems += damaged
        results += [_result_line(setting, summary) for summary in found]
        views.append(_setting_view(setting, len(found)))
    line = run_line(place, reader)
    manifest = _manifest(reader)
    facts, unknown = _facts(reader, manifest)
    return RunView(
        line=line,
        facts=facts,
        class_names=() if manifest is None else manifest.dataset.class_names,
        rounds=tuple(_round_view(reader, number) for number in reader.rounds()),
        attacks=tuple(views),
        results=tuple(results),
        evaluations=reader.evaluations(),
        num_hidden=reader.num_hidden(),
        problems=(*problems, *unknown),
    )


def run_line(place: RunPlace, reader: RunReader) -> RunLine:
    """Return a run's line in the list.

    Raises:
        RecordingError: If the run cannot be read.
    """
    settings, _ = reader.settings()
    found = [(setting, summary) for setting in settings for summary in reader.summaries(setting)[0]]
    evaluations, manifest = reader.evaluations(), _manifest(reader)
    return RunLine(
        run_id=place.run_id,
        study=place.study,
        name=place.store.folder.name,
        setting=() if manifest is None else _setting_words(manifest),
        defenses="" if manifest is None else defenses_text(manifest),
        progress=progress_view(reader),
        accuracy=evaluations[-1].accuracy if evaluations else None,
        num_results=len(found),
        best=_best(found),
        campaigns=campaign_views(reader, settings),
    )


def threat_view(threat_model: ThreatModel) -> ThreatView:
    """Return a threat model in words."""
    return ThreatView(
        name=threat_model.name,
        description=threat_model.description,
        granted=wording.granted(threat_model),
        realistic=threat_model.realistic,
    )


def score_view(score: Score) -> ScoreView:
    """Return a score without its single images."""
    guess = score.best_baseline
    return ScoreView(
        mean_psnr_db=score.mean_psnr_db,
        mean_ssim=score.mean_ssim,
        mean_lpips=score.mean_lpips,
        recovered=score.num_recovered,
        num_images=score.num_images,
        threshold_db=score.threshold_db,
        wrong_labels=score.label_count_error,
        guess_psnr_db=None if guess is None else guess.mean_psnr_db,
        beats_guessing=beats_guessing(score),
    )


def defenses_text(manifest: Manifest) -> str:
    """Return what the clients and the server declare to do about leakage; empty where it is nothing."""
    names = [f"{part.name}{_options(part.options)}" for part in manifest.declared_defenses]
    if manifest.secure_aggregation is not None:
        names.append("secure aggregation")
    if manifest.central_privacy is not None:
        names.append(f"central privacy (noise multiplier {manifest.central_privacy.noise_multiplier:g})")
    return ", ".join(names)


def _guarded_line(index: RunIndex, place: RunPlace, *, sees_truth: bool) -> RunLine:
    try:
        opened = index.find(place.run_id)
        return run_line(opened, RunReader(opened.store, sees_truth=sees_truth))
    except (FlSimError, OSError) as error:
        return RunLine(run_id=place.run_id, study=place.study, name=place.store.folder.name, problem=str(error))


def _manifest(reader: RunReader) -> Manifest | None:
    """Return the manifest; a run that has just begun has none."""
    return reader.manifest() if (reader.run.recording.folder / "manifest.json").exists() else None


def _setting_words(manifest: Manifest) -> tuple[str, ...]:
    training = manifest.local_training
    size = " x ".join(map(str, manifest.dataset.image_shape))
    return (
        manifest.model.name,
        manifest.algorithm.value,
        f"{manifest.num_clients} clients",
        f"E = {training.epochs}, m = {training.batch_size or 'all'}, eta = {training.learning_rate:g}",
        f"images {size}",
    )


def _facts(reader: RunReader, manifest: Manifest | None) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return the facts of a run, and why there are fewer than usual."""
    if manifest is None:
        return (), ()
    if not reader.sees_truth:
        return _known_facts(manifest), ()
    try:
        return reader.facts(), ()
    except FlSimError as error:
        return _known_facts(manifest), (str(error),)


def _known_facts(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return what the server knows."""
    training = manifest.local_training
    momentum = f", momentum {training.momentum}" if training.momentum else ""
    return (
        ("model", f"{manifest.model.name}{_options(manifest.model.options)}"),
        ("algorithm", manifest.algorithm.value),
        ("clients", str(manifest.num_clients)),
        (
            "local training",
            f"E = {training.epochs}, m = {training.batch_size or 'all'}, eta = "
            f"{training.learning_rate}{momentum}, {training.order} batches",
        ),
        ("declared defenses", defenses_text(manifest) or "none"),
        ("image", " x ".join(map(str, manifest.dataset.image_shape))),
        ("classes", str(manifest.dataset.num_classes)),
    )


def _options(options: dict[str, object]) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""


def _round_view(reader: RunReader, server_round: int) -> RoundView:
    accuracies = {entry.server_round: entry.accuracy for entry in reader.evaluations()}
    try:
        clients, aggregated = reader.kept_clients(server_round), reader.aggregated_clients(server_round)
        failures, problem = reader.failures(server_round), ""
    except FlSimError as error:
        clients, aggregated, failures, problem = (), (), (), str(error)
    return RoundView(
        server_round=server_round,
        clients=clients,
        aggregated=aggregated,
        failures=failures,
        accuracy=accuracies.get(server_round - 1),
        problem=problem,
    )


def _setting_view(setting: Setting, num_results: int) -> SettingView:
    return SettingView(
        label=setting.label,
        name=setting.attack.name,
        threat_model=threat_view(setting.threat_model),
        options=tuple((name, str(value)) for name, value in setting.attack.options.items()),
        num_results=num_results,
    )


def _result_line(setting: Setting, summary: ResultSummary) -> ResultLine:
    key: ResultKey = summary.key
    return ResultLine(
        attack=setting.label,
        key=key.folder_name,
        server_round=key.server_round,
        clients=key.clients,
        seed=key.seed,
        seconds=summary.ending.seconds,
        matching_loss=summary.ending.matching_loss,
        score=None if summary.score is None else score_view(summary.score),
    )


def _best(found: Sequence[tuple[Setting, ResultSummary]]) -> BestView | None:
    if not found:
        return None
    settings = {id(summary): setting for setting, summary in found}
    best = rank([summary for _, summary in found])[0]
    setting = settings[id(best)]
    return BestView(
        attack=setting.label,
        name=setting.attack.name,
        line=_result_line(setting, best),
        realistic=setting.threat_model.realistic,
    )
