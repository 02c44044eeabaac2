"""What is installed is all that the code asks for: each library that it imports is named in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED_OTHERWISE = {"PIL": "pillow", "sklearn": "scikit-learn"}
# what a library of the list cannot be installed without, and what is used only where it is there
BROUGHT = {"llvmlite": "numba", "triton": "torch"}


def imported(source: str) -> set[str]:
    """The top names of all modules that a file imports, wherever the statement stands; relative ones are its own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[^\w.-]", line)[0] for line in lines}
    assert "torch" in declared
    files = list((ROOT / "smallview").rglob("*.py"))
    assert len(files) > 5
    names = set().union(*(imported(file.read_text(encoding="utf-8")) for file in files))
    foreign = names - {"smallview", "_typeshed", *sys.stdlib_module_names}
    assert sorted(name for name in foreign if NAMED_OTHERWISE.get(name, BROUGHT.get(name, name)) not in declared) == []
