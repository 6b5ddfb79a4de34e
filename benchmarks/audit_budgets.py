"""What a client-side audit finds within a budget, beside a server that takes its time.

    python benchmarks/audit_budgets.py RUN --round 1 --clients 0,1,2 --seconds 5,15,60

Prints one JSON line for each client and budget. Seconds are those of one core, whatever else the machine does: the
budget is kept by the processor time of this process, with one thread. ``RUN`` is a finished run of this platform, whose
truth is at hand; docs/audit.md has what was measured.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from attacker.attack import Reconstruction
from attacker.attack_worker import observe_update
from attacker.recipes import ATTACKS
from attacker.scoring import score
from attacker.truth import PrivateBatch, read_truth
from audit.within_time import attack_within
from fl_sim.recording_store import RecordingStore
from fl_sim.seeds import generator

_AUDITS = {
    "inverting_gradients": {},
    "fedavg_leakage": {"loss": "cosine", "steps": 250},
}
_SERVER = ("fedavg_leakage", {"loss": "cosine", "steps": 1000})


def judged(found: Reconstruction, private: PrivateBatch, num_classes: int) -> dict[str, float]:
    """Return a reconstruction's figures."""
    scored = score(
        images=found.images,
        labels=found.labels,
        private_images=private.images,
        private_labels=private.labels,
        num_classes=num_classes,
    )
    return {
        "psnr_db_max": round(max(value for value in scored.psnr_db if value is not None), 1),
        "psnr_db_mean": round(scored.mean_psnr_db or float("nan"), 1),
        "recovered_share": scored.recovered_share,
        "wrong_labels": scored.label_count_error,
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--clients", default="0")
    parser.add_argument("--seconds", default="5,15,60")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    truth = read_truth(arguments.run)
    recording = RecordingStore(arguments.run / "recording")
    for client_id in map(int, arguments.clients.split(",")):
        private = truth.private_batch(client_id)
        observation = observe_update(recording.folder, arguments.round, [client_id], "honest_but_curious")

        for name, options in _AUDITS.items():
            for budget in map(float, arguments.seconds.split(",")):
                found = attack_within(
                    budget,
                    observation,
                    name=name,
                    options=dict(options),
                    draw=lambda: generator(0, "audit"),
                    clock=time.process_time,
                )
                line = {"client": client_id, "who": f"{name} {budget:g}", "seconds": round(found.seconds, 1)}
                print(
                    json.dumps(
                        {**line, "steps": found.num_steps, **judged(found.reconstruction, private, truth.num_classes)}
                    ),
                    flush=True,
                )
        started = time.process_time()
        name, options = _SERVER
        found = ATTACKS[name](**options)(observation, generator=generator(0, "attack", arguments.round, client_id))
        line = {"client": client_id, "who": "server", "seconds": round(time.process_time() - started, 1)}
        print(json.dumps({**line, "steps": options["steps"], **judged(found, private, truth.num_classes)}), flush=True)


if __name__ == "__main__":
    main()
