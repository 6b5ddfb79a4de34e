"""The page is one file, shows what it is given, and escapes what it does not trust."""

import re

import pytest
import torch

from attacker.baselines import trivial_baselines
from attacker.report.content import AttackResult, ReportContent
from attacker.report.page import render
from attacker.scoring import score
from attacker.threat_models import HONEST_BUT_CURIOUS, KNOWN_LABEL_COUNTS
from fl_sim.records import ReplyFailure
from fl_sim.run_store import RoundEvaluation
from fl_sim.seeds import generator

CLASS_NAMES = ("zero", "<script>alert(1)</script>", "two")


def attack(
    client_id: int = 0, *, channels: int = 1, noise: float = 0.02, scored: bool = True, **changes
) -> AttackResult:
    private = torch.rand(4, channels, 12, 12, generator=generator(0, "private", client_id))
    labels = torch.tensor([0, 1, 2, 2])
    images = (private + noise * torch.randn(private.shape, generator=generator(0, "noise", client_id))).clamp(0, 1)
    pool = torch.rand(20, channels, 12, 12, generator=generator(0, "pool"))
    found = score(
        images=images.flip(0),
        labels=torch.tensor([2, 2, 2, 0]),
        private_images=private,
        private_labels=labels,
        num_classes=3,
        baselines=trivial_baselines(private, pool, threshold_db=20.0, generator=generator(0, "baseline")),
    )
    fields = {
        "server_round": 1,
        "client_id": client_id,
        "attack": "fedavg_leakage",
        "seed": 0,
        "threat_model": HONEST_BUT_CURIOUS,
        "outcome": "finished",
        "seconds": 12.0,
        "matching_loss": 0.01,
        "losses": torch.linspace(1, 0.01, 50),
        "reconstructions": images.flip(0),
        "recovered_labels": torch.tensor([2, 2, 2, 0]),
        "private_images": private if scored else None,
        "labels": labels if scored else None,
        "score": found if scored else None,
        "options": (("steps", "50"),),
    }
    return AttackResult(**{**fields, **changes})


def page(*attacks: AttackResult, **changes) -> str:
    fields = {
        "run_name": "20260101-digits",
        "created": "2026-01-01",
        "summary": (("data set", "digits"),),
        "evaluations": (
            RoundEvaluation(server_round=0, accuracy=0.1, loss=2.3),
            RoundEvaluation(server_round=1, accuracy=0.5, loss=None),
        ),
        "attacks": attacks,
        "class_names": CLASS_NAMES,
        "label_skew": torch.tensor([[1, 1, 2], [0, 3, 0]]),
        "commands": ("fl-sim run 'x y.toml'",),
    }
    return render(ReportContent(**{**fields, **changes}))


PAGES = {
    "empty": lambda: page(evaluations=(), label_skew=None, commands=(), summary=()),
    "no attack": page,
    "one": lambda: page(attack()),
    "several": lambda: page(
        attack(0), attack(1), attack(1, server_round=2), attack(1, threat_model=KNOWN_LABEL_COUNTS)
    ),
    "unscored": lambda: page(attack(scored=False), label_skew=None),
    "colour": lambda: page(attack(channels=3)),
    "closed form": lambda: page(attack(losses=torch.zeros(0), matching_loss=float("nan"))),
}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_one_file_with_words_for_every_picture(name):
    html = PAGES[name]()
    assert html.lstrip().startswith("<!doctype html>")
    assert not re.search(r'(?:src|href|url\()="?\s*(?:https?:)?//', html)
    images = re.findall(r"<img [^>]*>", html)
    assert all(re.search(r'alt="[^"]+"', image) and 'src="data:image/png;base64,' in image for image in images)
    assert all('aria-label="' in svg for svg in re.findall(r"<svg [^>]*>", html))
    assert "<script" not in html
    assert len(html) < 400_000


def test_the_headline_names_client_share_and_baseline():
    html = page(attack(noise=0.02))
    assert re.search(r"From client 0.s update of round 1 the server recovered 4 of 4 images", html)
    assert "for the best trivial baseline" in html
    assert "realistic" in html


def test_an_attack_no_better_than_guessing_is_called_that():
    assert "no better than guessing" in page(attack(noise=5.0))


def test_a_realistic_result_goes_before_a_better_upper_bound():
    better = attack(1, noise=0.001, threat_model=KNOWN_LABEL_COUNTS)
    assert "From client 0" in page(better, attack(0, noise=0.05))


def test_pairs_are_sorted_best_first():
    html = page(attack(noise=0.05))
    decibels = [float(value) for value in re.findall(r"<strong>([\d.]+)\xa0dB</strong><br>", html)]
    assert len(decibels) == 4
    assert decibels == sorted(decibels, reverse=True)


def test_wrong_label_counts_are_marked():
    html = page(attack())
    assert "Labels: 1 of 4 wrong" in html
    assert html.count('class="wrong"') == 2


def test_without_the_truth_only_reconstructions_are_shown():
    html = page(attack(scored=False))
    assert html.count("<img ") == 4
    assert "private image of class" not in html
    assert "not at hand" in html


def test_failures_and_hostile_names_are_escaped():
    reason = "<b>boom</b> & <img src=x onerror=alert(1)>"
    html = page(attack(), failures=(ReplyFailure(server_round=1, client_id=3, reason=reason),), run_name="<i>run</i>")
    assert "&lt;b&gt;boom" in html
    assert "<i>run" not in html
    assert "onerror=alert(1)>" not in html
