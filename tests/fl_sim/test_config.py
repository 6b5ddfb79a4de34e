"""Experiments: defaults work, files round-trip, and every mistake is one clear line."""

from pathlib import Path

import pytest
import tomli_w

from fl_sim.config import Experiment, parse_experiment, read_experiment, read_settings, split_assignment, to_plain
from fl_sim.errors import ConfigError
from tradeoff.study import read_study

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


def test_defaults_are_valid():
    assert read_experiment(None) == Experiment()


def test_round_trip_through_toml(tmp_path):
    path = tmp_path / "e.toml"
    overrides = ["training.epochs=5", "attack.rounds=[1, 3]", "defenses=[{name='clipping', options={clip_norm=1.0}}]"]
    experiment = read_experiment(None, overrides)
    path.write_text(tomli_w.dumps(to_plain(experiment)))
    assert read_experiment(path) == experiment
    assert parse_experiment(to_plain(experiment)) == experiment


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_parse(path):
    if "defend" in read_settings(path):
        assert len(read_study(path).arms) > 1
        with pytest.raises(ConfigError, match="run 'fl-sim defend "):
            read_experiment(path)
    else:
        read_experiment(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "epochs must be >= 1, got 0"),
        ("training.epochs=many", r"training\.epochs: .*integer.*got 'many'"),
        ("training.epoch=3", r"training\.epoch: unknown key; known keys: batch_size, epochs"),
        ("trainig.epochs=3", r"trainig: unknown key; known keys: attack, data"),
        ("attack.rounds=some", r"attack\.rounds: .*'all' or 'none'.*got 'some'"),
        ("name=a/b", "name must be letters"),
        ("data.num_clients=2.5", r"data\.num_clients: .*got 2\.5"),
        ("federation.algorithm=fedprox", "'fedsgd' or 'fedavg'; got 'fedprox'"),
        ("federation.clients_per_round=9", "<= data.num_clients = 4, got 9"),
        ("federation.min_replies=9", "min_replies must be <= the 4 clients"),
        ("defenses=[{nam='x'}]", r"defenses\.0"),
        ("epochs", "expected 'section.key=value', got 'epochs'"),
        ("name.first=3", r"name: .*string"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        read_experiment(None, [override])


def test_fedsgd_refuses_local_epochs():
    with pytest.raises(ConfigError, match="full-batch gradient"):
        read_experiment(None, ["federation.algorithm=fedsgd", "training.epochs=2"])


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*does not exist"):
        read_experiment(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("seed = = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml.*not valid TOML"):
        read_experiment(tmp_path / "broken.toml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=5", 5), ("a=0.5", 0.5), ("a=true", True), ("a=[1,2]", [1, 2]), ("a=word", "word"), ("a=", "")],
)
def test_values_are_toml_or_bare_words(text, value):
    assert split_assignment(text) == ("a", value)
