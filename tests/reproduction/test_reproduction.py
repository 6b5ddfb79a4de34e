"""`fl-sim reproduce`: the paper's cells, what is measured for them, and that nothing is measured twice."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from attacker.campaign import resolve_setting
from clients.build_defenses import build_defenses
from fl_sim.cli.main import app
from fl_sim.config import parse_experiment, to_plain
from fl_sim.errors import RecordingError
from fl_sim.run_store import find_finished_run
from reproduction.campaign import Request, cells_of
from reproduction.data import PAPER_DATA
from reproduction.experiments import describe, experiment_of
from reproduction.measurements import Measurement, MeasurementFile, MeasurementKey
from reproduction.methods import FEDAVG_METHODS, LABEL_METHODS
from reproduction.paper import paper_cell
from reproduction.summary import summarise
from reproduction.tables import TABLES, find_table

FEMNIST = PAPER_DATA["femnist_like"]


def request_for(name, data=FEMNIST, **changes) -> Request:
    table = TABLES[name]
    known = table.methods(data.paper)
    methods = {method: known[method] for method in table.default_methods}
    return replace(Request(table=table, data=data, rows=table.rows, methods=methods, clients=2, seeds=(0,)), **changes)


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, data) for name, table in TABLES.items() for data in PAPER_DATA.values() if data.paper in table.data],
)
def test_every_cell_is_a_runnable_attack_beside_a_cell_of_the_paper(name, data):
    request = request_for(name, data)
    for cell in cells_of(request):
        experiment = experiment_of(cell.row, data, Path("somewhere"))
        assert parse_experiment(to_plain(experiment)) == experiment
        build_defenses(experiment)
        if request.table.measures == "images":
            resolve_setting(cell.attack)
        assert cell.cost > 0
    for found in summarise(request, {}):
        assert (found.paper is None) == (
            found.method in ("bias_gradient", "frequencies")
        )  # columns that are ours alone
        assert (found.clients, found.values) == (0, {})


def test_the_papers_numbers_are_the_published_ones():
    cell = paper_cell(1, "femnist", "E10_m5", "ours_prior")
    assert cell is not None
    assert (cell.recovered_share, cell.psnr_db) == (pytest.approx(0.655), 21.5)
    counts = paper_cell(2, "cifar100", "E10_m1", "geng_client")
    assert counts is not None
    assert counts.wrong_labels == 15.7
    assert paper_cell(1, "femnist", "E10_m5", "feature_span") is None
    assert paper_cell(99, "femnist", "E10_m5", "ours_prior") is None


def test_with_one_epoch_what_is_equal_is_measured_once():
    names = {(cell.row.name, cell.method) for cell in cells_of(request_for("table1"))}
    assert {method for row, method in names if row == "E1_m5"} == {"ours_prior", "fedsgd"}
    assert len({method for row, method in names if row == "E5_m5"}) == 5


def test_tables_share_what_they_have_in_common():
    first = {key for cell in cells_of(request_for("table1")) for key in cell.keys.values()}
    for name, row in (("table4", "E10_m5"), ("table6", "No Defense"), ("table7", "round 1"), ("table10", "1 clients")):
        shared = {key for cell in cells_of(request_for(name)) if cell.row.name == row for key in cell.keys.values()}
        assert shared & first
    for name in ("table6", "table7", "table8", "table9", "table10"):
        methods_by_key = {}
        for cell in cells_of(request_for(name)):
            for key in cell.keys.values():
                methods_by_key.setdefault(key, []).append(cell.method)
        for methods in methods_by_key.values():  # a line stands for several rows only where they are the same thing
            assert len(methods) == 1 or (name == "table8" and set(methods) <= {"fedsgd_epoch", "fedsgd"})


def test_labels_are_recovered_as_in_the_paper_unless_a_method_has_its_own():
    methods = TABLES["table3"].methods(FEMNIST.paper)
    for cell in cells_of(request_for("table3", methods={name: methods[name] for name in methods if "span" in name})):
        recovery = "automatic" if cell.method == "feature_span_own_labels" else "interpolated"
        assert cell.attack.options["label_recovery"] == recovery
        assert cell.attack.threat_model == "honest_but_curious"


def test_what_was_measured_with_other_defaults_does_not_count():
    method = FEDAVG_METHODS["feature_span_quick"]
    request = request_for("table1", methods={"feature_span_quick": method})
    revised = replace(request, methods={"feature_span_quick": replace(method, revision=method.revision + 1)})
    before, after = ({key for cell in cells_of(own) for key in cell.keys.values()} for own in (request, revised))
    assert before
    assert not before & after


def test_defenses_of_table_6_act_on_every_example_as_in_the_released_code():
    (gaussian,) = [row for row in TABLES["table6"].rows if row.name == "Gaussian Noise, σ = 0.03"]
    assert gaussian.defenses[0].options == {"stddev": 0.03, "where": "example"}
    assert all(link.options["where"] == "example" for row in TABLES["table6"].rows for link in row.defenses)


def test_attackers_of_table_9_are_wrong_and_see_no_recipe():
    cells = {(cell.row.name, cell.method): cell for cell in cells_of(request_for("table9"))}
    wrong, right = cells["attacker E=25", "shared"].attack, cells["attacker E=5", "shared"].attack
    assert (wrong.name, wrong.threat_model) == ("epoch_search", "unknown_epochs_known_label_counts")
    assert wrong.options["epochs"] == [25]
    assert (right.name, right.threat_model) == ("fedavg_leakage", "known_label_counts")


def test_cohorts_of_table_10_do_not_overlap():
    (cell,) = [
        cell for cell in cells_of(request_for("table10")) if (cell.row.name, cell.method) == ("4 clients", "shared")
    ]
    assert cell.attack.cohort == 4
    assert [client for client, _ in cell.keys] == [0, 4]
    assert "mean of 4 clients" in next(iter(cell.keys.values())).attack


def test_means_are_over_clients_and_so_are_standard_errors():
    request = request_for("table1", seeds=(0, 1), rows=TABLES["table1"].rows[:1])
    (cell,) = [cell for cell in cells_of(request) if cell.method == "fedsgd"]
    values = {(0, 0): 18.0, (0, 1): 20.0, (1, 0): 22.0}  # the second seed of client 1 is missing
    measured = {
        cell.keys[pair]: Measurement(key=cell.keys[pair], values={"psnr_db": value}, date="2026-01-01")
        for pair, value in values.items()
    }
    found = {entry.method: entry for entry in summarise(request, measured)}
    assert found["fedsgd"].clients == 2
    assert found["fedsgd"].values["psnr_db"].mean == pytest.approx(20.5)
    assert found["fedsgd"].values["psnr_db"].standard_error == pytest.approx(1.5)
    assert found["fedsgd_epoch"].values == found["fedsgd"].values  # the same thing where E = 1
    assert found["shared"].values == {}


def test_lines_come_back_and_damage_is_named(tmp_path):
    file = MeasurementFile(tmp_path / "measurements.jsonl")
    assert file.read() == {}
    key = MeasurementKey(federation="a", server_round=1, client=100, attack="b", seed=0)
    line = Measurement(key=key, values={"psnr_db": 19.5}, date="2026-01-01")
    file.append([line])
    assert file.read() == {key: line}
    with (tmp_path / "measurements.jsonl").open("a") as stream:
        stream.write('{"key": {}}\n')
    with pytest.raises(RecordingError, match=r"measurements.jsonl, line 2: .*; remove the line to go on"):
        file.read()


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    """The paper's data on a diet: 3 clients of 50 tiny pictures, a quick network."""
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    labels = stream.integers(0, 5, 200)
    np.savez(tmp_path / "small.npz", images=images, labels=labels, clients=np.arange(200) // 50)
    small = replace(
        FEMNIST, file="small.npz", options={"test_fraction": 0.0}, first_client=1, num_clients=3, model="mlp"
    )
    monkeypatch.setitem(PAPER_DATA._entries, "femnist_like", small)  # pyright: ignore
    return tmp_path


def run(*arguments, folder, data_folder):
    return CliRunner().invoke(
        app,
        ["reproduce", *arguments, "--output", str(folder), "--data-folder", str(data_folder), "--workers", "1"],
    )


def test_a_table_is_measured_resumed_and_extended(small_data, tmp_path):
    folder = tmp_path / "out"
    chosen = ("table1", "--rows", "E1_m5", "--steps", "2")
    first = run(*chosen, "--clients", "1", folder=folder, data_folder=small_data)
    assert first.exit_code == 0, first.output
    lines = (folder / "measurements.jsonl").read_text().splitlines()
    assert len(lines) == 2  # two methods differ where E = 1
    assert {json.loads(line)["key"]["client"] for line in lines} == {1}
    extended = run(*chosen, "--clients", "2", folder=folder, data_folder=small_data)
    assert extended.exit_code == 0, extended.output
    again = (folder / "measurements.jsonl").read_text().splitlines()
    assert again[:2] == lines
    assert len(again) == 4
    assert len(list((folder / "runs").iterdir())) == 1  # recorded once
    table = (folder / "table1-femnist_like-2-steps.md").read_text()
    assert "| E = 1, m = 5 | 2 |" in table
    assert "fl-sim reproduce table1 --data femnist_like --clients 2 --seeds 0 --rows E1_m5 --steps 2" in table
    assert "(19.7 / 42%)" in table
    assert "an upper bound" in table
    assert " 2 optimisation steps" in table
    rows = list(csv.DictReader((folder / "table1-femnist_like-2-steps.csv").open()))
    assert {row["method"] for row in rows} == set(TABLES["table1"].default_methods)
    assert (folder / "table1-femnist_like-2-steps.png").read_bytes().startswith(b"\x89PNG")
    printed = run(*chosen, "--clients", "2", "--no-measure", folder=folder, data_folder=Path("nowhere"))
    assert printed.exit_code == 0, printed.output
    assert (folder / "measurements.jsonl").read_text().splitlines() == again


def test_label_methods_are_measured_on_every_client(small_data, tmp_path):
    done = run("table2", "--rows", "E1_m5", "--clients", "3", folder=tmp_path / "out", data_folder=small_data)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * len(LABEL_METHODS)
    exact = [line["values"]["wrong_labels"] for line in lines if "bias_gradient" in line["key"]["attack"]]
    assert max(exact) <= 5


def test_a_federation_is_found_again_by_its_content(small_data, tmp_path):
    data = PAPER_DATA["femnist_like"]
    row = TABLES["table1"].rows[0]
    experiment = experiment_of(row, data, small_data)
    assert find_finished_run(experiment, tmp_path / "runs") is None
    assert describe(row, data) != describe(TABLES["table1"].rows[1], data)
    assert str(small_data) not in describe(row, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table5",), "Table 5 describes the networks"),
        (("table1", "--rows", "E2_m2"), "--rows: expected some of E1_m5"),
        (("table1", "--methods", "guess"), "--methods: expected some of ours_prior"),
        (("table1", "--data", "mnist"), "unknown data of the papers 'mnist'"),
        (("table7", "--data", "cifar100"), "table7 has no cells for cifar100; it has them for femnist"),
        (("table1", "--clients", "51"), "--clients: expected at most 50"),
        (("table10", "--clients", "13"), "--clients: expected at most 12"),
        (("table1", "--seeds", "a"), "--seeds: expected numbers such as 0,1"),
    ],
)
def test_what_cannot_be_reproduced_is_told_before_anything_is_run(arguments, message, tmp_path):
    done = run(*arguments, folder=tmp_path / "out", data_folder=tmp_path)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_missing_data_is_named(tmp_path):
    done = run("table1", folder=tmp_path / "out", data_folder=tmp_path)
    assert done.exit_code == 1
    assert "femnist_like_10k.npz does not exist; give the folder" in " ".join(done.output.split())


def test_tables_are_found_by_name():
    assert find_table("table4").number == 4
