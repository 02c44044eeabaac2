"""Imports flow one way: a file imports from lower levels or from its own folder, and there are no cycles.

Every import statement counts, wherever it stands: at the top, inside a function, under TYPE_CHECKING, relative, or by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "smallview"

# From the ground up. What stands in one line does not import its neighbours; only on the ground it may, without cycles.
LEVELS = (
    ("records", "schedules", "settings", "seeds", "collectives", "optimizers", "errors", "files", "units", "ledger"),
    ("objectives", "networks", "views", "data"),
    ("joint_embedding", "stages", "evaluation"),
    ("presets", "training", "output"),
    ("config", "explain", "recipes", "findings", "vectors"),
    ("resolving",),
    ("settle", "parts", "pictures", "foregrounds", "choosing"),
    ("continuing", "online", "foresight", "completion", "timing", "written"),
    ("beside", "account"),
    ("single",),
    ("chain",),
    (
        *("run", "planning", "use", "assess", "comparing", "checking", "exporting", "view_loader", "embedding"),
        *("report_verdict", "report_parts", "report_pictures", "report_doubles"),
    ),
    ("shell",),
    ("demo", "estimator", "flags", "sweeping", "reporting", "embedded"),
    ("labeled",),
    ("searching", "clustering", "doubles", "selecting"),
    (
        *("cli_pretrain", "cli_evaluate", "cli_plan", "cli_check", "cli_export", "cli_report", "cli_help", "cli_search"),
        *("cli_duplicates", "cli_select"),
    ),
    ("cli",),
    ("__main__",),
)
LEVEL_OF = {unit: level for level, units in enumerate(LEVELS) for unit in units}
# The lazy names of the package itself lead to `run`: who imports them stands above it.
FRONT = "__init__"
LEVEL_OF[FRONT] = LEVEL_OF["run"]
FORBIDDEN = {
    ("training", "data"): "the loop takes an iterable",
    ("evaluation", "training"): "judging knows nothing of how weights came about",
}


def module_of(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    return module.split(".")[1] if "." in module else FRONT


def imports_of(path: str, text: str) -> Iterator[tuple[int, str, list[str]]]:
    """(line, module, names) of every import of the package: `import a.b` has no names, `from a import b` has."""
    here = module_of(path).split(".")
    package = here if path.endswith("__init__.py") else here[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])]), [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, []


def targets(module: str, names: list[str], modules: set[str]) -> list[str]:
    """The modules that an import statement reaches: a name is a module of its own where there is one."""
    if module.split(".")[0] != PACKAGE:
        return []
    return [f"{module}.{name}" if f"{module}.{name}" in modules else module for name in names] or [module]


def violations(files: dict[str, str]) -> list[str]:
    """Every breach of the law in a package given as {path: source}, one line each."""
    found: list[str] = []
    modules = {module_of(path): path for path in files}
    # A folder without an __init__.py of its own is a package too.
    known = set(modules) | {module.rsplit(".", n)[0] for module in modules for n in range(1, module.count(".") + 1)}
    edges: dict[str, set[str]] = {}
    for path, text in files.items():
        importer = module_of(path)
        if importer == PACKAGE:
            continue
        if unit_of(importer) not in LEVEL_OF:
            found.append(f"{path}: {unit_of(importer)} has no level; give it one in {Path(__file__).name}")
            continue
        for line, module, names in imports_of(path, text):
            for target in targets(module, names, known):
                if target in modules:
                    edges.setdefault(importer, set()).add(target)
                reason = breach(unit_of(importer), unit_of(target))
                if reason:
                    found.append(f"{path}:{line}: {unit_of(importer)} imports {unit_of(target)}; {reason}")
    return found + [f"cycle: {' > '.join(cycle)}" for cycle in cycles(edges)]


def breach(importer: str, target: str) -> str | None:
    if importer == target:
        return None
    if target not in LEVEL_OF:
        return "which is no file of the package with a level"
    if (importer, target) in FORBIDDEN:
        return FORBIDDEN[importer, target]
    above, below = LEVEL_OF[importer], LEVEL_OF[target]
    if below > above:
        return "which stands above it"
    return "which stands beside it" if below == above and above > 0 else None


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """One cycle for each import that closes one."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
            return
        if module in done:
            return
        for target in sorted(edges.get(module, ())):
            walk(target, [*trail, module])
        done.add(module)

    for module in sorted(edges):
        walk(module, [])
    return found


def test_imports_flow_one_way() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / PACKAGE).rglob("*.py")}
    assert len(files) > 5
    found = violations(files)
    assert not found, "\n".join(found)


# A small package that keeps the law, in which imports are planted.
LAWFUL = {
    "smallview/__init__.py": "def __getattr__(name):\n    from smallview.run import pretrain",
    "smallview/__main__.py": "from smallview.cli import main",
    "smallview/cli.py": "import smallview.run\ndef demo():\n    from smallview.demo import demo",
    "smallview/demo.py": "from smallview.run import pretrain\nimport smallview as sv",
    "smallview/run.py": "from smallview import presets\nfrom smallview.training import loop\nimport smallview.data.packing",
    "smallview/planning.py": "",
    "smallview/presets/__init__.py": "from smallview.joint_embedding import Method",
    "smallview/training/loop.py": "from smallview.training import log\nfrom .log import write",
    "smallview/training/log.py": "from ..errors import UsageError\nimport torch",
    "smallview/output/report.py": "",
    "smallview/joint_embedding.py": "from smallview.objectives.negatives import Queue",
    "smallview/stages.py": "",
    "smallview/evaluation/__init__.py": "from .knn import knn",
    "smallview/evaluation/knn.py": "",
    "smallview/objectives/negatives.py": "from smallview.records import Embeddings",
    "smallview/networks/heads.py": "",
    "smallview/views/view.py": "",
    "smallview/data/packing.py": "from smallview.errors import DataError",
    "smallview/settings.py": "from smallview.errors import suggest",
    "smallview/records.py": "",
    "smallview/errors.py": "",
}


def test_a_lawful_package_has_no_violations() -> None:
    assert violations(LAWFUL) == []


@pytest.mark.parametrize(
    ("path", "planted", "message"),
    [
        ("smallview/records.py", "import smallview.joint_embedding", "records imports joint_embedding; which stands above it"),
        ("smallview/errors.py", "from smallview import cli", "errors imports cli; which stands above it"),
        ("smallview/views/view.py", "from smallview.data.packing import pack", "views imports data; which stands beside it"),
        ("smallview/views/view.py", "from smallview import data", "views imports data; which stands beside it"),
        ("smallview/views/view.py", "from ..networks import heads", "views imports networks; which stands beside it"),
        ("smallview/views/view.py", "from .. import networks", "views imports networks; which stands beside it"),
        (
            "smallview/objectives/negatives.py",
            "from smallview.training import log",
            "objectives imports training; which stands",
        ),
        ("smallview/networks/heads.py", "import os, smallview.objectives.negatives as n", "networks imports objectives; which"),
        ("smallview/data/packing.py", "from smallview import pretrain", "data imports __init__; which stands above it"),
        ("smallview/data/packing.py", "import smallview", "data imports __init__; which stands above it"),
        ("smallview/data/packing.py", "from smallview import *", "data imports __init__; which stands above it"),
        ("smallview/joint_embedding.py", "import smallview.stages", "joint_embedding imports stages; which stands beside it"),
        (
            "smallview/joint_embedding.py",
            "def f():\n    from smallview.presets import simclr",
            "joint_embedding imports presets; which stands above",
        ),
        (
            "smallview/presets/__init__.py",
            "from smallview.training.log import write",
            "presets imports training; which stands beside it",
        ),
        ("smallview/output/report.py", "import smallview.training.log", "output imports training; which stands beside it"),
        ("smallview/training/loop.py", "from smallview.data.packing import Pack", "training imports data; the loop takes an"),
        ("smallview/training/loop.py", "from .. import data", "training imports data; the loop takes an iterable"),
        (
            "smallview/training/loop.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from smallview.data import Pack",
            "training imports data; the loop takes an iterable",
        ),
        ("smallview/evaluation/knn.py", "from smallview.training import loop", "evaluation imports training; judging knows"),
        ("smallview/evaluation/__init__.py", "from ..training import loop", "evaluation imports training; judging knows"),
        ("smallview/run.py", "import smallview.planning", "run imports planning; which stands beside it"),
        ("smallview/run.py", "from smallview.cli import main", "run imports cli; which stands above it"),
        ("smallview/run.py", "import smallview", "run imports __init__; which stands beside it"),
        (
            "smallview/views/view.py",
            "import importlib\nimportlib.import_module('smallview.data.packing')",
            "views imports data",
        ),
        (
            "smallview/views/view.py",
            "class A:\n  def f(self):\n    try:\n      import smallview.cli\n    except Exception: ...",
            "cli",
        ),
        ("smallview/run.py", "from smallview.nothing import x", "run imports nothing; which is no file of the package"),
        ("smallview/utils.py", "", "utils has no level; give it one"),
        ("smallview/helpers/deep/x.py", "", "helpers has no level; give it one"),
        ("smallview/errors.py", "from smallview.settings import override", "cycle: smallview.errors > smallview.settings"),
        ("smallview/training/log.py", "from smallview.training.loop import train", "cycle: smallview.training.lo"),
    ],
)
def test_a_planted_breach_is_found(path: str, planted: str, message: str) -> None:
    found = violations(LAWFUL | {path: f"{LAWFUL.get(path, '')}\n{planted}\n"})
    assert message in found[0]
    assert all(line.startswith("cycle: ") for line in found[1:]), found
