"""What the site needs beyond the documents: pictures that stand beside what they show, and pages made from the code."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PICTURES = ("reproduced/*.png", "benchmarks/results/*.png")
PACKAGES = {
    "fl_sim": "The platform: what server and clients share, and the recording server.",
    "clients": "The victims: ordinary Flower clients that may defend themselves.",
    "attacker": "Gradient inversion on recorded updates, scoring, the page.",
}


def on_files(files: Files, config: Any) -> Files:
    """Add pictures from outside of ``docs/``, the commands as they print themselves, and the Python reference."""
    for pattern in PICTURES:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, f"beside/{path.relative_to(ROOT)}", abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=_commands()))
    for package, what in PACKAGES.items():
        files.append(File.generated(config, f"python/{package}.md", content=_reference(package, what)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point at the copies of pictures that stand outside of ``docs/``; what else stands there is not linked."""
    markdown = re.sub(r"\]\(\.\./((?:reproduced|benchmarks)/[^)]*\.png)\)", r"](beside/\1)", markdown)
    return re.sub(r"\[([^\]]*)\]\(\.\./((?:examples|experiments)/[^)]*)\)", r"\1", markdown)


def _commands() -> str:
    program = [sys.executable, "-m", "typer", "fl_sim.cli", "utils", "docs", "--name", "fl-sim", "--title", "Commands"]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(program, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def _reference(package: str, what: str) -> str:
    modules = _modules(importlib.import_module(package))
    return "\n\n".join((f"# {package}", what, *(f"::: {module.__name__}" for module in modules))) + "\n"


def _modules(package: ModuleType) -> list[ModuleType]:
    """Return what documents something of its own; what a package only hands on stands once."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    names = [module.name for module in found if not module.name.startswith("fl_sim.cli")]
    modules = map(importlib.import_module, names)
    return [module for module in modules if _defines_something(module)]


def _defines_something(module: ModuleType) -> bool:
    return any(
        not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        for name, value in inspect.getmembers(module)
    )
