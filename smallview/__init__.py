"""smallview: self-supervised image learning that fits a small budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "pretrain": "smallview.run",
    "evaluate": "smallview.assess",
    "compare": "smallview.comparing",
    "sweep": "smallview.sweeping",
    "check": "smallview.checking",
    "load": "smallview.use",
    "Run": "smallview.single",
    "select": "smallview.selecting",
    "Selected": "smallview.selecting",
    "duplicates": "smallview.doubles",
    "Duplicates": "smallview.doubles",
    "embed": "smallview.embedding",
    "search": "smallview.searching",
    "cluster": "smallview.clustering",
    "export": "smallview.exporting",
    "methods": "smallview.presets",
    "preset": "smallview.presets",
    "method": "smallview.presets",
    "plan": "smallview.planning",
    "report": "smallview.reporting",
    "Row": "smallview.records",
    "SmallviewError": "smallview.errors",
    "StoppedError": "smallview.errors",
    "View": "smallview.views.view",
    "ViewLoader": "smallview.view_loader",
    "SelfSupervisedEncoder": "smallview.estimator",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Hand names on when they are first asked for: importing smallview imports neither torch nor numpy."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from smallview.assess import evaluate as evaluate
    from smallview.checking import check as check
    from smallview.clustering import cluster as cluster
    from smallview.comparing import compare as compare
    from smallview.doubles import Duplicates as Duplicates
    from smallview.doubles import duplicates as duplicates
    from smallview.embedding import embed as embed
    from smallview.errors import SmallviewError as SmallviewError
    from smallview.errors import StoppedError as StoppedError
    from smallview.estimator import SelfSupervisedEncoder as SelfSupervisedEncoder
    from smallview.exporting import export as export
    from smallview.planning import plan as plan
    from smallview.presets import method as method
    from smallview.presets import methods as methods
    from smallview.presets import preset as preset
    from smallview.records import Row as Row
    from smallview.reporting import report as report
    from smallview.run import pretrain as pretrain
    from smallview.searching import search as search
    from smallview.selecting import Selected as Selected
    from smallview.selecting import select as select
    from smallview.single import Run as Run
    from smallview.sweeping import sweep as sweep
    from smallview.use import load as load
    from smallview.view_loader import ViewLoader as ViewLoader
    from smallview.views.view import View as View
