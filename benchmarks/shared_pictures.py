"""The real pictures that benchmarks and experiments read, by the reader that lies beside them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def reader() -> Any:
    """The module `load.py` in the folder that $SMALLVIEW_DATA names; without it the program ends with what is missing."""
    root = os.environ.get("SMALLVIEW_DATA")
    if not root or not (Path(root) / "load.py").exists():
        sys.exit("SMALLVIEW_DATA is not set to a folder with load.py and the sets; set it and run this again")
    spec = importlib.util.spec_from_file_location("load", Path(root) / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
