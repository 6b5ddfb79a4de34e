"""What travels to the SuperLink and to every SuperNode: a thin app that imports the installed package.

The bundle holds the experiment without what is the server's own business (attack, scoring, what is recorded), two
modules of a few lines, and no data. `fl-sim` itself must be installed wherever a part of the federation runs.
"""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import tomli_w

from fl_sim.config import AttackConfig, RecordingConfig, ScoringConfig, to_plain
from fl_sim.run_store import RunStore

CLIENT_APP, RUN = "client-app", "run"
_EXPERIMENT = "experiment.toml"
_MODULES = {
    "federation_client": f"""from pathlib import Path

from fl_sim.deployment.client import DeployedClientApp

app = DeployedClientApp(Path(__file__).with_name({_EXPERIMENT!r}))
""",
    "federation_server": """from fl_sim.deployment.server import app

__all__ = ["app"]
""",
}


def write_app(folder: Path, run: RunStore, client_app: str) -> None:
    """Write the app folder of one federation.

    Args:
        folder: Made by this function.
        run: The run; its folder must be found under the same path where the ServerApp runs.
        client_app: ``package.module:function`` that makes the ClientApp of an experiment.
    """
    folder.mkdir(parents=True)
    shown = replace(run.experiment(), attack=AttackConfig(), scoring=ScoringConfig(), recording=RecordingConfig())
    (folder / _EXPERIMENT).write_text(tomli_w.dumps(to_plain(shown)), encoding="utf-8")
    for name, content in _MODULES.items():
        (folder / f"{name}.py").write_text(content, encoding="utf-8")
    project = {
        "name": "fl-sim-federation",
        "version": "0.1.0",
        "description": "One federation of fl-sim; imports the installed package.",
        "license": "Apache-2.0",
        "dependencies": [f"flwr=={version('flwr')}"],
    }
    app = {
        "publisher": "fl-sim",
        "fab-include": ["*.py", "*.toml"],
        "components": {"serverapp": "federation_server:app", "clientapp": "federation_client:app"},
        "config": {CLIENT_APP: client_app, RUN: str(run.folder.resolve())},
    }
    content = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (folder / "pyproject.toml").write_text(content, encoding="utf-8")
