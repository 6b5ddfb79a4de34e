"""Admits SuperNodes to a SuperLink: ``python -m fl_sim.deployment.register --superlink HOST:PORT … KEY.pub …``.

A SuperLink without a database forgets its SuperNodes when it ends, and this has to be run again.
"""

import argparse
import sys
from pathlib import Path

from fl_sim.deployment.address import parse_superlink_address
from fl_sim.deployment.control import SuperLinkControl
from fl_sim.errors import FlSimError


def main(arguments: list[str]) -> None:
    """Register the public keys that the SuperLink does not know yet; the exit code is 1 if one is refused.

    Args:
        arguments: The SuperLink, the file of its certificate authority, and the files of the keys.
    """
    parser = argparse.ArgumentParser(description="Admit the SuperNodes that hold these keys.")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    parser.add_argument("--root-certificates", type=Path, metavar="FILE")
    parser.add_argument("public_keys", nargs="+", type=Path, metavar="KEY.pub")
    chosen = parser.parse_args(arguments)
    try:
        with SuperLinkControl(parse_superlink_address(chosen.superlink, chosen.root_certificates)) as control:
            for path in chosen.public_keys:
                sys.stdout.write(f"{path.stem}: SuperNode {control.register(path)}\n")
    except FlSimError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
