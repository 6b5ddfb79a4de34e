"""Studies of defenses: what a file says, what the numbers mean, and one study from end to end."""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from attacker.estimate import Estimate, estimate
from fl_sim.cli import app
from fl_sim.config import Workers
from fl_sim.errors import ConfigError
from fl_sim.events import read_events
from fl_sim.process_tree import descendants
from fl_sim.run_store import list_runs
from tradeoff.campaign import Metrics, StudyObserver, run_study
from tradeoff.figures import draw_picture, tradeoff_plots
from tradeoff.gallery import draw_gallery, gallery
from tradeoff.outcomes import Leakage, Outcome, Training, outcomes, pareto_front
from tradeoff.page import headline, render
from tradeoff.rendering import csv_text, json_text, markdown
from tradeoff.study import NO_DEFENSE, Arm, Study, read_study

FILE = """
name = "study"
[data]
num_clients = 2
examples_per_client = 4
[model]
name = "mlp"
options = { hidden = [16] }
[federation]
num_rounds = 2
[training]
epochs = 1
batch_size = 4
learning_rate = 0.1
[attack]
name = "inverting_gradients"
options = { steps = 3 }
rounds = [1]
[defend]
[[defend.defenses]]
name = "gaussian_noise"
strengths = { stddev = [10.0] }
[[defend.defenses]]
label = "both"
chain = [{ name = "clipping", options = { clip_norm = 0.1 } }, { name = "sign" }]
[[defend.attacks]]
[[defend.attacks]]
name = "analytic"
threat_model = "known_defenses"
"""


@pytest.fixture
def study_file(tmp_path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    return path


def test_a_file_becomes_arms_and_attacks(study_file) -> None:
    study = read_study(study_file, ["defend.seeds=[3, 4]"])
    assert [arm.label for arm in study.arms] == [NO_DEFENSE, "gaussian_noise, stddev = 10", "both"]
    assert [link.name for link in study.arms[2].defenses] == ["clipping", "sign"]
    assert [(attack.title, attack.config.options) for attack in study.attacks] == [
        ("inverting_gradients", {"steps": 3}),
        ("analytic", {}),
    ]
    assert all(attack.config.rounds == (1,) for attack in study.attacks)
    assert study.seeds == (3, 4)
    federation = study.federation(study.arms[1], 4)
    assert (federation.seed, federation.defenses[0].options) == (4, {"stddev": 10.0})
    assert study.federation(study.arms[0], 4).defenses == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[defend]", "[unknown]", r"expected a section \[defend\]|unknown"),
        ('name = "gaussian_noise"\n', "", "either a name or a chain"),
        ('label = "both"', "", "a chain needs a label"),
        ("stddev = [10.0]", "stddev = [1.0, 1.0]", "stands there twice"),
        ('name = "analytic"', 'name = "inverting_gradients"', "stands there twice"),
        ('name = "analytic"', "stepps = 3", "defend.attacks: stepps: unknown key"),
        ("stddev = [10.0]", "stddev = [1.0], other = [1.0]", "expected one hyper-parameter, got stddev, other"),
        ("[defend]", "[defend]\nseeds = []", "at least one seed"),
    ],
)
def test_a_wrong_file_is_refused(study_file, old: str, new: str, message: str) -> None:
    study_file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_study(study_file)


PUBLISHED = """
[defend.published]
source = "somebody"
[[defend.published.numbers]]
defense = "both"
accuracy_percent = 71.25
attacks = { analytic = [18.3, 25.0] }
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"both"',
            '"bath"',
            "defend.published: unknown defense 'bath'; known: no defense; gaussian_noise, stddev = 10; b",
        ),
        ("analytic", "cosine", "defend.published: unknown attack 'cosine'; known: inverting_gradients; analytic"),
        (PUBLISHED, PUBLISHED + PUBLISHED.split("\n", 3)[3], "defend.published: 'both' stands there twice"),
        ("accuracy_percent", "accuracy", "defend.published.numbers.0.accuracy: unknown key"),
    ],
)
def test_published_numbers_that_stand_nowhere_are_refused(study_file, old: str, new: str, message: str) -> None:
    study_file.write_text(FILE + PUBLISHED.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_study(study_file)


def test_published_numbers_stand_in_brackets(study_file) -> None:
    study_file.write_text(FILE + PUBLISHED)
    study = read_study(study_file)
    none, both = outcome(NO_DEFENSE, 0.9, 30.0), outcome("both", 0.8, 12.0)
    both = replace(both, leakages=(replace(both.leakages[0], title="analytic"),))
    found = [replace(own, arm=study.arms[position]) for own, position in ((none, 0), (both, 2))]
    table = markdown(study, found, command="x")
    assert "| both | 80.0 % (71.2 %) | 10.0 % | – | 12.0 dB / 50 % (18.3 dB / 25 %) |" in table.replace("◆ ", "")
    assert "| no defense | 90.0 % | 0.0 % | – | 30.0 dB / 50 % |" in table.replace("◆ ", "")
    assert "In brackets: somebody." in table
    page = render(study, found, [], command="x")
    assert '<td>12.0 dB / 50 %<br><span class="muted">(18.3 dB / 25 %)</span></td>' in page
    content = json.loads(json_text(study, found))
    assert content["published"] == "somebody"
    assert [arm["published"] for arm in content["arms"]] == [
        None,
        {"defense": "both", "accuracy_percent": 71.25, "attacks": {"analytic": [18.3, 25.0]}},
    ]


def test_table_6_holds_the_numbers_of_the_paper() -> None:
    folder = Path(__file__).parents[2]
    study = read_study(folder / "experiments/table6.toml")
    cells = json.loads((folder / "reproduction/fedavg_leakage_cells.json").read_text())["tables"]["6"]["femnist"]
    methods = {"per-epoch images, prior": "ours_prior", "Shared": "shared", "FedSGD-Epoch": "fedsgd_epoch"}
    assert len(study.arms) == len(cells)
    for arm, row in zip(study.arms, cells.values(), strict=True):  # both in the paper's order
        published = study.published_for(arm)
        assert published is not None
        assert published.accuracy_percent == row["accuracy_percent"]
        assert published.attacks == {title: tuple(reversed(row[method])) for title, method in methods.items()}


def test_the_command_s_workers_are_those_of_every_attack(study_file, monkeypatch) -> None:
    asked: list[Workers] = []

    def run_nothing(study: Study, **_: object) -> None:
        asked.extend(attack.config.workers for attack in study.attacks)
        raise ConfigError("nothing is run here")

    monkeypatch.setattr("fl_sim.cli.defend.run_study", run_nothing)
    found = CliRunner().invoke(app, ["defend", str(study_file), "--workers", "ray", "--quiet"])
    assert "nothing is run here" in found.stderr
    assert asked == ["ray", "ray"]
    found = CliRunner().invoke(app, ["defend", str(study_file), "--workers", "0"])
    assert found.exit_code == 2
    assert "--workers: expected a number of processes or 'ray', got '0'" in found.stderr


def test_whole_strengths_stay_whole(study_file) -> None:
    study_file.write_text(FILE.replace("stddev = [10.0]", "bits = [8, 4]").replace("gaussian_noise", "quantisation"))
    options = [link.options["bits"] for arm in read_study(study_file).arms[1:3] for link in arm.defenses]
    assert options == [8, 4]
    assert all(isinstance(bits, int) for bits in options)


points = st.lists(
    st.none() | st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), min_size=1, max_size=12
)


@given(points)
def test_the_front_is_what_nothing_else_beats(points: list[tuple[float, float] | None]) -> None:
    front = pareto_front(points)
    for position, point in enumerate(points):
        if point is None:
            assert position not in front
            continue
        beaten = any(
            other is not None and other != point and other[0] >= point[0] and other[1] <= point[1] for other in points
        )
        assert (position in front) == (not beaten)


def test_standard_errors() -> None:
    assert estimate([]) is None
    assert estimate([2.0]) == Estimate(mean=2.0, standard_error=None, number=1)
    found = estimate([1.0, 3.0, 5.0])
    assert found is not None
    assert (found.mean, found.number) == (3.0, 3)
    assert found.standard_error == pytest.approx(2.0 / 3**0.5)


def outcome(label: str, accuracy: float, psnr: float) -> Outcome:
    def exactly(value: float) -> Estimate:
        return Estimate(mean=value, standard_error=None, number=1)

    values = {"psnr_db": exactly(psnr), "recovered_share": exactly(0.5), "mean_image_psnr_db": exactly(12.0)}
    return Outcome(
        arm=Arm(family=label),
        training=Training(accuracy=exactly(accuracy), accuracy_loss=exactly(0.9 - accuracy), epsilon=None),
        leakages=(Leakage(title="attack", setting="attack-0", realistic=True, updates=1, values=values),),
    )


def test_the_headline_names_the_cheapest_defense_that_stops_the_attack() -> None:
    plain, dear, cheap = outcome(NO_DEFENSE, 0.9, 30.0), outcome("dear", 0.5, 11.0), outcome("cheap", 0.8, 12.0)
    assert "cheap brings it down to guessing, for 10.0% of accuracy" in headline([plain, dear, cheap])
    assert "no defense here brings it down" in headline([plain, outcome("weak", 0.9, 20.0)])
    assert "say nothing about defenses" in headline([outcome(NO_DEFENSE, 0.9, 11.0), dear])


def test_accuracies_that_hardly_differ_are_not_drawn_far_apart() -> None:
    close = draw_picture([outcome(NO_DEFENSE, 0.583, 20.0), outcome("other", 0.584, 19.0)]).axes[0]
    wide = draw_picture([outcome(NO_DEFENSE, 0.9, 20.0), outcome("other", 0.5, 19.0)]).axes[0]
    assert close.get_xlim()[1] - close.get_xlim()[0] == pytest.approx(0.05)
    assert 0.4 < wide.get_xlim()[1] - wide.get_xlim()[0] < 0.6
    assert all(len(axes.get_xticks()) <= 8 for axes in (close, wide))


class Counting(StudyObserver):
    def __init__(self) -> None:
        self.federations = self.attacks = 0

    def on_federation(self, events) -> None:
        self.federations += 1
        super().on_federation(events)

    def on_attacks(self, num_open: int) -> None:
        self.attacks += num_open


@pytest.mark.slow
def test_a_study_from_end_to_end_and_again(study_file, tmp_path) -> None:
    study = read_study(study_file)

    def run() -> tuple[Counting, tuple, tuple]:
        observer = Counting()
        done, failures = run_study(
            study, runs_dir=tmp_path / "runs", engine="inprocess", metrics=Metrics(), observer=observer
        )
        return observer, done, failures

    observer, done, failures = run()
    assert failures == ()
    assert (observer.federations, observer.attacks) == (3, 3 * 2 * 2)
    observer, done, failures = run()
    assert (observer.federations, observer.attacks) == (0, 0)

    found = outcomes(study, done)
    plain, noisy, _ = found
    assert plain.training.accuracy_loss == Estimate(mean=0.0, standard_error=None, number=1)
    assert [leakage.updates for leakage in plain.leakages] == [2, 2]
    # The closed form is exact on what leaves undefended, and shows nothing through noise of standard deviation 10.
    assert plain.leakages[1].values["psnr_db"].mean > noisy.leakages[1].values["psnr_db"].mean
    assert plain.leakages[1].values["psnr_db"].standard_error is not None
    _check_output(study, found, done)


def test_a_terminated_study_leaves_no_federation_behind(study_file, tmp_path) -> None:
    command = [sys.executable, "-m", "fl_sim.cli", "defend", str(study_file), "--engine", "inprocess", "--quiet"]
    process = subprocess.Popen([*command, "--set", "federation.num_rounds=100000"], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (events := list(tmp_path.glob("defended/study/runs/*/events.jsonl"))) or not read_events(events[0]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stemming = descendants(process.pid)
    assert stemming
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not [own for own in stemming if own.is_running()]
    (run,) = list_runs(tmp_path / "defended/study/runs")
    assert run.status().message == "stopped before its end"


def _check_output(study: Study, found: tuple[Outcome, ...], done: tuple) -> None:
    rows = gallery(study, found, done)
    assert [row.title for row in rows][1:] == [arm.label for arm in study.arms]
    assert rows[0].title == "private, client 0, round 1"
    assert {len(row.images) for row in rows} == {4}
    assert draw_gallery(rows).height > draw_gallery(rows[:1]).height
    page = render(study, found, rows, command="fl-sim defend <study>")
    assert page.count("<svg") == 2
    assert "fl-sim defend &lt;study&gt;" in page
    # What knows a defense and cannot follow it says so, beside the number that flatters the defense.
    remark = "both, analytic: does not follow the defenses: the closed form"
    assert remark in page
    assert f"- {remark}" in markdown(study, found, command="x")
    assert not found[0].leakages[1].not_followed
    assert len(tradeoff_plots(found)) == 2
    assert draw_picture(found).axes
    assert "| gaussian_noise, stddev = 10 |" in markdown(study, found, command="x").replace("◆ ", "")
    lines = list(csv.DictReader(csv_text(found).splitlines()))
    assert {line["defense"] for line in lines} == {NO_DEFENSE, "gaussian_noise", "both"}
    (accuracy,) = [line for line in lines if line["defense"] == "both" and line["metric"] == "accuracy"]
    assert float(accuracy["mean"]) == pytest.approx(done[2].run.evaluations()[-1].accuracy, rel=1e-5)
    arms = json.loads(json_text(study, found))["arms"]
    assert [link["name"] for link in arms[2]["chain"]] == ["clipping", "sign"]
