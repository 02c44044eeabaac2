"""Data sets of the Hugging Face library as a source: the stored bytes of their pictures, decoded by the rules of this project.

The library itself (`pip install smallview[hf]`) is needed only for `hf:` names; a data set already made is told by what it has:
`features`, `cast_column` and a length. Read undecoded, its pictures take the same EXIF turning, limits and threads as files.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smallview.data.arrays import Labels
from smallview.data.decoding import BadPicture, Pixels, decode, decode_file
from smallview.errors import DataError, SmallviewError

_PICTURES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")


@dataclass(frozen=True, eq=False)
class Stored:
    """A data set's pictures, undecoded: `rows[i][column]` is {"bytes", "path"}; labels int64 [N] or None, with names or not."""

    name: str
    rows: Any
    column: str
    labels: Labels | None
    classes: tuple[str, ...] | None
    fingerprint: str | None

    def read(self, i: int, short_side: int | None = None) -> Pixels:
        """Picture i, uint8 [H, W, 3], from any thread; raises BadPicture and nothing else."""
        try:
            stored = self.rows[i][self.column]
        except Exception as error:  # a row lies in a file, and that may be damaged or gone
            raise BadPicture(f"its row cannot be read: {_one_line(error)}") from error
        data, path = (stored.get("bytes"), stored.get("path")) if isinstance(stored, Mapping) else (None, None)
        if data is not None:
            return decode(bytes(data), short_side=short_side)
        if path is None:
            raise BadPicture("no picture in its row")
        return decode_file(path, short_side=short_side)


def is_stream(data: Any) -> bool:
    """Whether this yields items one after another and has no picture number i."""
    iterable = any(kind.__name__ == "IterableDataset" for kind in type(data).__mro__)
    return iterable or (hasattr(data, "__iter__") and not hasattr(data, "__len__"))


def image_column(data: Any) -> str | None:
    """The column of pictures where this is such a data set and has one, `image` or `img` before others.

    None as well where its owner put a function over the rows (`set_transform`): then what that gives is what is meant.
    """
    features = getattr(data, "features", None)
    if not isinstance(features, Mapping) or not hasattr(data, "cast_column") or not hasattr(data, "__len__"):
        return None
    if (getattr(data, "format", None) or {}).get("type") == "custom":
        return None
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image" and hasattr(feature, "decode")]
    return next((name for name in _PICTURES if name in found), found[0] if found else None)


def stored_pictures(data: Any, column: str) -> Stored:
    """The pictures in this column, with the labels beside them where every row has one that is no less than 0."""
    rows = data.cast_column(column, replace(data.features[column], decode=False)).select_columns([column]).with_format(None)
    label = _label_column(data.features)
    labels = None if label is None else _labels(data.select_columns([label]).with_format(None)[:][label])
    names = getattr(data.features[label], "names", None) if labels is not None else None
    mark = getattr(data, "_fingerprint", None)
    return Stored(
        name=str(getattr(getattr(data, "info", None), "dataset_name", None) or type(data).__name__),
        rows=rows,
        column=column,
        labels=labels,
        classes=tuple(map(str, names)) if names else None,
        # theirs is any text; ours becomes the name of a folder
        fingerprint=None if mark is None else hashlib.sha256(f"{mark}\0{column}".encode()).hexdigest(),
    )


def open_named(name: str) -> Any:
    """The data set that `hf:PATH[:SPLIT]` (saved by `save_to_disk`) or `hf:NAME[:SPLIT]` (on the hub: the network) means.

    Raises:
        DataError: it cannot be had, or has several splits and none is named. SmallviewError: the library is not installed.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise SmallviewError(
            f"hf:{name} needs the datasets library, which is not here ({_one_line(error)}); pip install 'smallview[hf]'"
        ) from error
    place, split = name, ""
    if not Path(name).expanduser().exists() and ":" in name:
        place, _, split = name.rpartition(":")
    folder = Path(place).expanduser()
    try:
        data = library.load_from_disk(str(folder)) if folder.exists() else library.load_dataset(place, split=split or None)
    except Exception as error:  # the network, the hub, files: some twenty classes
        advice = (
            "a folder of pictures is given without hf:"
            if folder.exists()
            else "wanted a folder from save_to_disk, or hf:NAME:SPLIT of the hub"
        )
        raise DataError(f"hf:{name} cannot be opened: {_one_line(error)}; {advice}") from error
    if not isinstance(data, Mapping):
        return data
    splits = list(data)
    if not split and len(splits) == 1:
        split = splits[0]
    if split not in data:
        raise DataError(f"hf:{name} has the splits {', '.join(splits)}; name one: hf:{place}:{splits[0]}")
    return data[split]


def _label_column(features: Mapping[str, Any]) -> str | None:
    known = [name for name in _LABELS if name in features]
    return next(iter(known or [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]), None)


def _labels(values: Any) -> Labels | None:
    whole = all(type(value) is int and 0 <= value < 2**63 for value in values)  # -1 stands for "not told" there
    return np.array(values, np.int64) if whole and len(values) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
