"""What each part of the feature-span attack is worth: the attack without it, on the same clients.

    python benchmarks/feature_span_ablation.py --output benchmarks/results/feature_span_ablation

E = 10, m = 5, N_c = 50, eta = 0.004, untrained network, label counts known (an upper bound), one attack seed and one
thread. What has been measured is read from OUTPUT.json and not run again; OUTPUT.md is the table.

Needs ../shared/data, see `paper_clients`.
"""

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from paper_clients import NUM_IMAGES, PAPER_CLIENTS
from reference_recipe import BATCH_SIZE, measure, setting_of

from attacker.recipes import FeatureSpan

EPOCHS = 10
_NOTHING = 1e-9  # weights of the span must be above 0

VARIANTS: dict[str, dict[str, Any]] = {
    "whole attack": {},
    "without the span, nor what holds images apart": {
        "feature_span": _NOTHING,
        "feature_span_fine": _NOTHING,
        "feature_span_end": _NOTHING,
        "repair_steps": 0,
    },
    "nothing holds images apart": {"feature_volume": 0.0},
    "coarse part alone": {"rounds": 0},
    "orders not sampled": {"orders": 0},
    "images in doubt not searched anew": {"repair_steps": 0},
    "every gradient of the matching term anew": {"coarse_hold": 1, "hold": 1},
    "no smoothness": {"quadratic_variation": 0.0},
}
"""What every data set runs; beside these, what tests the constants for its channels."""

OWN_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "femnist_like": {
        "span that never leads (3,000 at most)": {"feature_span_end": 3e3},
        "span heavy from the start (3,000)": {"feature_span": 3e3},
        "features half-way": {"position": 0.5},
        "contrast raised": {"full_contrast": 0.005},
        "constants for steep networks": {
            "simulation": "as_needed",
            "position": 0.5,
            "rank": 95,
            "learning_rate": 0.2,
        },
    },
    "cifar100": {
        "features at w_t": {"position": 0.0},
        "contrast as found": {"full_contrast": 0.0},
        "simulated as needed": {"simulation": "as_needed"},
        "95 directions": {"rank": 95},
        "simulated as needed, 95 directions": {"simulation": "as_needed", "rank": 95},
    },
}


def table(results: dict[str, dict[str, Any]], data: str) -> str:
    """Return the measured variants as Markdown: each client, and the mean where all of them were measured."""
    clients = sorted({client for found in results.values() for client in found}, key=int)
    lines = [
        "# Feature span, each part left out",
        "",
        f"    python benchmarks/feature_span_ablation.py --data {data}    # last written on {datetime.date.today()}",
        "",
        f"`{PAPER_CLIENTS[data].file}`, E = {EPOCHS}, m = {BATCH_SIZE}, N_c = {NUM_IMAGES}, eta = 0.004, untrained",
        "network, label counts known (an upper bound), one attack seed. PSNR in dB / share of images above "
        f"{PAPER_CLIENTS[data].threshold_db:.0f} dB.",
        "",
        "| | " + " | ".join(f"client {client}" for client in clients) + " | mean | CPU s a client |",
        "|---|" + "---|" * (len(clients) + 2),
    ]
    for name in (name for name in VARIANTS | OWN_VARIANTS[data] if name in results):
        found = results[name]
        cells = [_cell([found[client]]) if client in found else "" for client in clients]
        seconds = statistics.mean(result["cpu_seconds"] for result in found.values())
        mean = _cell(list(found.values())) if len(found) == len(clients) else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean} | {seconds:.0f} |")
    of_client = {client: result for found in results.values() for client, result in found.items()}
    for guess in ("mean_image", "random_images"):
        scored = [
            _show(of_client[client][f"{guess}_psnr_db"], of_client[client][f"{guess}_recovered_share"])
            for client in clients
        ]
        lines.append(f"| guess: {guess.replace('_', ' ')} of other clients | " + " | ".join(scored) + " | | |")
    return "\n".join(lines) + "\n"


def _show(decibels: float, share: float) -> str:
    return f"{decibels:.1f} / {share:.0%}"


def _cell(results: list[dict[str, Any]]) -> str:
    decibels = statistics.mean(result["clipped_psnr_db"] for result in results)
    share = statistics.mean(result["clipped_recovered_share"] for result in results)
    return _show(decibels, share)


def main() -> None:
    """Run what has not been measured, one client of each variant after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=PAPER_CLIENTS, default="femnist_like")
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--variants", nargs="+", help="some of them, by the names in the table")
    parser.add_argument("--output", type=Path, required=True, help="without suffix")
    arguments = parser.parse_args()
    variants = VARIANTS | OWN_VARIANTS[arguments.data]
    chosen = arguments.variants or list(variants)
    if unknown := [name for name in chosen if name not in variants]:
        parser.error(f"--variants: unknown {unknown}; choose among {list(variants)}")
    setting = setting_of(arguments.data)
    torch.set_num_threads(1)
    measured = arguments.output.with_suffix(".json")
    results: dict[str, dict[str, Any]] = json.loads(measured.read_text()) if measured.exists() else {}
    for client in arguments.clients:
        for name in chosen:
            found = results.setdefault(name, {})
            if str(client) in found:
                continue
            found[str(client)] = measure(FeatureSpan(**variants[name]), client, EPOCHS, setting)
            print(f"client {client}, {name}: {_cell([found[str(client)]])}", flush=True)
            measured.write_text(json.dumps(results, indent=2) + "\n")
            arguments.output.with_suffix(".md").write_text(table(results, arguments.data))


if __name__ == "__main__":
    main()
