"""All protocols by their names: what `--protocols` names and `--set` changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smallview.errors import UsageError, suggest
from smallview.evaluation.dense import Dense
from smallview.evaluation.probes import KNN, Layers, Linear, LinearSGD, LowShot
from smallview.evaluation.robust import Robust
from smallview.evaluation.trainings import FineTune, Supervised
from smallview.evaluation.unlabeled import LabelFree
from smallview.settings import override


@dataclass(frozen=True, kw_only=True)
class Protocols:
    """All protocols by their names: the value whose paths `--set` changes, as in --set linear_sgd.epochs=30."""

    knn: KNN = field(default_factory=KNN)
    linear: Linear = field(default_factory=Linear)
    linear_sgd: LinearSGD = field(default_factory=LinearSGD)
    lowshot: LowShot = field(default_factory=LowShot)
    finetune: FineTune = field(default_factory=FineTune)
    supervised: Supervised = field(default_factory=Supervised)
    layers: Layers = field(default_factory=Layers)
    robust: Robust = field(default_factory=Robust)
    dense: Dense = field(default_factory=Dense)
    label_free: LabelFree = field(default_factory=LabelFree)


NAMES = tuple(Protocols.__dataclass_fields__)


def protocols_of(sets: Mapping[str, Any] | None = None) -> Protocols:
    """The protocols with settings changed by their paths.

    Raises:
        UsageError: a path or a value that there is not.

    Example:
        >>> protocols_of({"knn.temperature": 0.1}).knn
        KNN(k=(20, 200), temperature=0.1)
    """
    value = Protocols()
    for path, new in (sets or {}).items():
        value = override(value, path, new)
    return value


def choose_protocols(names: str | Iterable[str]) -> list[str]:
    """Protocol names from a comma-separated string or a sequence.

    Raises:
        UsageError: an unknown name, or none.

    Example:
        >>> choose_protocols("knn,linear")
        ['knn', 'linear']
    """
    chosen = [n.strip() for n in (names.split(",") if isinstance(names, str) else names) if n.strip()]
    if not chosen:
        raise UsageError(f"no protocol is named; wanted some of {', '.join(NAMES)}")
    for name in chosen:
        if name not in NAMES:
            raise UsageError(f'no protocol is called "{name}"{suggest(name, NAMES)}')
    return list(dict.fromkeys(chosen))
