"""``fl-sim exposure``: leakage along training, by round and by client, and what about a client's data explains it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from attacker.attack_store import AttackSetting
from attacker.campaign import plan_campaign, resolve_setting
from attacker.estimate import Estimate
from attacker.exposure.exposures import Exposure, exposure, leaks_of
from attacker.exposure.figures import correlation_text, draw_exposure
from attacker.exposure.rendering import NOTE, csv_text, json_text
from attacker.exposure.traits import DataTraits, data_traits
from attacker.results import read_results
from attacker.threat_models import THREAT_MODELS
from attacker.truth import Truth, read_truth
from fl_sim.cli.analysis import analyse
from fl_sim.cli.campaign_progress import show_campaign
from fl_sim.cli.options import DEFAULT_RUNS_DIR, QuietOption, RunArgument, RunsDirOption, find_run, parse_selection
from fl_sim.cli.terminal import errors, output
from fl_sim.config import AttackConfig, is_selected
from fl_sim.errors import ConfigError
from fl_sim.files import write_bytes
from fl_sim.options import parse_dataclass
from fl_sim.run_store import RunStore


def exposure_of_run(
    run: RunArgument,
    rounds: Annotated[str | None, typer.Option(help="For instance 1,5,20; default: as in the experiment.")] = None,
    clients: Annotated[str | None, typer.Option(help="For instance 0,2; default: as in the experiment.")] = None,
    threat_model: Annotated[str | None, typer.Option(help="A name of `fl-sim list threat-models`.")] = None,
    runs_dir: RunsDirOption = DEFAULT_RUNS_DIR,
    quiet: QuietOption = False,
) -> None:
    """Attack the same clients in several rounds, and say who is most exposed and what goes with it.

    The experiment's attack; finished attacks are found again. Writes a table, CSV, JSON and a picture.

    Example: fl-sim exposure latest --rounds 1,5,10,20
    """
    store = find_run(run, runs_dir)
    attack = _chosen(store.experiment().attack, rounds, clients, threat_model)
    truth = read_truth(store.folder)  # before anything is attacked: without it there is nothing to say
    failures = show_campaign(plan_campaign(store, attack), attack, quiet=quiet)
    analyse(store, None, quiet=True)  # scores what is new
    setting = resolve_setting(attack)
    found = _found(store, attack, setting, truth)
    folder = _write(store, found, setting)
    if not quiet:
        for table in (_rounds_table(found, store), _clients_table(found), _explanations_table(found)):
            errors.print(table)
        errors.print(f"[dim]{NOTE}[/]", highlight=False)
    output.print(str(folder), highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _chosen(planned: AttackConfig, rounds: str | None, clients: str | None, threat_model: str | None) -> AttackConfig:
    chosen = {
        "rounds": parse_selection(rounds, name="rounds"),
        "clients": parse_selection(clients, name="clients"),
        "threat_model": threat_model,
    }
    changes = {name: value for name, value in chosen.items() if value is not None}
    attack = parse_dataclass(AttackConfig, {**asdict(planned), **changes})
    if attack.cohort > 1:
        raise ConfigError(f"exposure is that of single clients: attack.cohort must be 1, got {attack.cohort}")
    return attack


def _found(store: RunStore, attack: AttackConfig, setting: AttackSetting, truth: Truth) -> Exposure:
    leaks = leaks_of(
        [
            result
            for result in read_results(store)
            if result.setting.label == setting.label
            and is_selected(attack.rounds, result.key.server_round)
            and is_selected(attack.clients, result.key.client_id)
            and result.key.seed in attack.seeds
        ]
    )
    if not leaks:
        raise ConfigError(
            f"{store.folder}: no attack on a single client's update was scored beside a guess; secure aggregation and "
            "clients' own machines hide what this command compares, and one client's images alone leave no guess"
        )
    threshold = store.experiment().scoring.recovered_threshold_db

    def traits_of(client_id: int) -> DataTraits:
        private = truth.private_batch(client_id)
        return data_traits(private.images, private.labels, num_classes=truth.num_classes, threshold_db=threshold)

    accuracies = {evaluation.server_round: evaluation.accuracy for evaluation in store.evaluations()}
    return exposure(leaks, traits_of, accuracies)


def _write(store: RunStore, found: Exposure, setting: AttackSetting) -> Path:
    folder = store.folder / "exposure" / setting.label
    threat_model = THREAT_MODELS[setting.threat_model]
    description = {
        "run": store.folder.name,
        "attack": asdict(setting),
        "threat_model": threat_model.name,
        "realistic": threat_model.realistic,
    }
    write_bytes(folder / "exposure.csv", csv_text(found).encode())
    write_bytes(folder / "exposure.json", json_text(found, setting=description).encode())
    mark = "realistic" if threat_model.realistic else "upper bound"
    title = f"{store.experiment().name}: {setting.name}, {threat_model.name} ({mark})"
    draw_exposure(found, title=title).savefig(folder / "exposure.png", dpi=130)
    return folder


def _rounds_table(found: Exposure, store: RunStore) -> Table:
    table = _table(f"leakage along training: {store.folder.name}", "round", "clients")
    for heading in ("PSNR", "guess", "above guess", "found", "wrong", "accuracy"):
        table.add_column(heading, justify="right")
    for one in found.rounds:
        table.add_row(
            str(one.server_round),
            str(one.values["exposure_db"].number),
            _mean(one.values.get("psnr_db")),
            _mean(one.values.get("mean_image_psnr_db"), error=False),
            _mean(one.values["exposure_db"]),
            _mean(one.values.get("recovered_share"), ".0%", error=False),
            _mean(one.values.get("wrong_label_share"), ".0%", error=False),
            "–" if one.accuracy is None else f"{one.accuracy:.0%}",
        )
    table.caption = (
        "Means over clients ± standard error; PSNR in dB; guess: the mean image of all others' images; found: share of "
        "images above the threshold; wrong: share of labels; accuracy: of the model that was sent out in this round."
    )
    return table


def _clients_table(found: Exposure) -> Table:
    table = _table("clients, the most exposed first", "client")
    for heading in ("above", "found", "images", "labels", "entropy", "near", "dup.", "contr."):
        table.add_column(heading, justify="right", no_wrap=True)
    for client in found.clients:
        traits = client.traits
        table.add_row(
            str(client.client_id),
            _mean(client.values["exposure_db"]),
            _mean(client.values.get("recovered_share"), ".0%", error=False),
            str(traits.num_examples),
            str(traits.num_labels),
            f"{traits.label_entropy_bits:.2f}",
            "–" if traits.nearest_image_db is None else f"{traits.nearest_image_db:.1f}",
            f"{traits.near_duplicate_share:.0%}",
            f"{traits.contrast:.2f}",
        )
    table.caption = (
        "above: PSNR above guess, mean over rounds ± standard error; entropy of the labels in bits; near: mean PSNR "
        "of an image to the most similar one of the same client; dup.: share of images with one above the threshold of "
        "recovery."
    )
    return table


def _explanations_table(found: Exposure) -> Table:
    table = Table(
        title="what goes with exposure: rank correlations over clients",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("trait of the data", "with PSNR above guess"):
        table.add_column(heading)
    for trait, correlation in found.explanations.items():
        table.add_row(trait, "– (too few clients, or alike)" if correlation is None else correlation_text(correlation))
    if found.between_rounds is not None:
        first, last = found.rounds[0].server_round, found.rounds[-1].server_round
        table.add_row(f"[dim]round {first} with round {last}[/]", correlation_text(found.between_rounds))
    table.caption = "p by permutation, not corrected for the number of traits: an association, no cause."
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _mean(value: Estimate | None, form: str = ".1f", *, error: bool = True) -> str:
    if value is None:
        return "–"
    spread = "" if value.standard_error is None or not error else f" ± {value.standard_error:{form}}"
    return f"{value.mean:{form}}{spread}"
