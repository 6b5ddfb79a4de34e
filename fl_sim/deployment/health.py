"""Asks a Flower process whether it is well: ``python -m fl_sim.deployment.health URL [CA_FILE]``.

The exit code is 0 if it answers with success, and 1 if it does not. Imports nothing but the standard library: a
container asks every few seconds.
"""

import ssl
import sys
import urllib.error
import urllib.request

_SECONDS_TO_ANSWER = 5.0


def is_healthy(url: str, ca_file: str | None = None) -> bool:
    """Return whether a GET of the URL succeeds.

    Args:
        url: ``http`` or ``https``.
        ca_file: The certificate authority, for ``https``.
    """
    context = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS_TO_ANSWER, context=context):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(*sys.argv[1:3]) else 1)
