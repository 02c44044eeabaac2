"""Through a stand-in of the library's Dataset, and through the library itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from smallview.data.decoding import BadPicture, decode
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import DataError, SmallviewError

Encode = Callable[..., bytes]
real = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the extra [hf] is not installed")


@dataclass
class Image:
    mode: str | None = None
    decode: bool = True


@dataclass
class ClassLabel:
    names: list[str] = field(default_factory=list)


class Value:
    """A column of numbers."""


class Dataset:
    """What the library's data set has, as far as it is used: columns of Arrow rows behind `features`."""

    def __init__(self, features: dict[str, Any], columns: dict[str, list[Any]], format: str | None = None) -> None:
        self.features, self._columns, self.format = features, columns, {"type": format}
        self._fingerprint = "../" + str(sorted(columns))

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: int | slice) -> dict[str, Any]:
        if isinstance(key, slice):
            return {name: values[key] for name, values in self._columns.items()}
        row = {name: values[key] for name, values in self._columns.items()}
        if isinstance(row.get("broken"), Exception):
            raise row["broken"]
        for name, feature in self.features.items():
            if isinstance(feature, Image) and feature.decode:
                raise AssertionError(f"{name} was decoded by the library")
        return row

    def cast_column(self, name: str, feature: Any) -> Dataset:
        return Dataset(self.features | {name: feature}, self._columns, self.format["type"])

    def select_columns(self, names: list[str]) -> Dataset:
        kept = {name: values for name, values in self._columns.items() if name in names or name == "broken"}
        return Dataset({name: self.features[name] for name in names}, kept, self.format["type"])

    def with_format(self, format: str | None) -> Dataset:
        return Dataset(self.features, self._columns, format)


def _rows(pictures: list[bytes | None]) -> list[dict[str, Any]]:
    return [{"bytes": picture, "path": None} for picture in pictures]


@pytest.fixture
def turned(encode: Encode, pattern: np.ndarray) -> bytes:
    """A JPEG that lies on its side: the library alone would leave it there."""
    exif = Pillow.Exif()
    exif[0x112] = 6
    return encode(pattern, "JPEG", quality=95, exif=exif)


def test_stored_bytes_are_decoded_by_our_rules(turned: bytes, encode: Encode, pattern: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(encode(pattern))
    rows = [
        *_rows([turned, encode(pattern), b"no picture", None]),
        {"bytes": None, "path": str(tmp_path / "beside.png")},
        {"bytes": None, "path": "hf://far/away.png"},
    ]
    names = ["cat", "dog"]
    data = Dataset({"label": ClassLabel(names), "img": Image(mode="RGB")}, {"label": [1, 0, 0, 1, 0, 1], "img": rows}, "numpy")
    source = open_source(data)
    assert (len(source), source.channels, source.name, source.parallel) == (6, 3, "Dataset", True)
    assert source.labels is not None and source.labels.tolist() == [1, 0, 0, 1, 0, 1] and source.classes == ("cat", "dog")
    assert source.read(0).shape == (48, 32, 3)
    assert np.array_equal(source.read(1), pattern) and np.array_equal(source.read(4), pattern)
    for i, message in ((2, "text, not a picture"), (3, "no picture in its row"), (5, "cannot be read: No such file")):
        with pytest.raises(BadPicture, match=message):
            source.read(i)
    assert min(source.reader(0, 4)[0].shape[:2]) < 32  # a large JPEG comes smaller where that is enough
    pack = open_pack(source, short_side=None, threads=3)
    assert pack.index.tolist() == [0, 1, 4] and pack.labels is not None and pack.labels.tolist() == [1, 0, 0]
    assert open_source(data, labels=False).labels is None


def test_the_fingerprint_is_theirs_and_no_path(turned: bytes) -> None:
    data = Dataset({"image": Image()}, {"image": _rows([turned] * 3)})
    source = open_source(data)
    assert source.fingerprint is not None and source.fingerprint.isalnum() and source.labels is None
    assert open_source(data).fingerprint == source.fingerprint
    data._fingerprint = "another"
    assert open_source(data).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("features", "column", "label"),
    [
        ({"photo": Image()}, "photo", None),
        ({"mask": Image(), "image": Image(), "label": Value()}, "image", "label"),
        ({"image": Image(), "coarse": ClassLabel(["a", "b"]), "fine_label": ClassLabel(["a", "b"])}, "image", "fine_label"),
        ({"image": Image(), "breed": ClassLabel(["a", "b"]), "age": Value()}, "image", "breed"),
    ],
)
def test_columns(features: dict[str, Any], column: str, label: str | None, encode: Encode) -> None:
    columns: dict[str, list[Any]] = {name: [k % 2, 1, 0] for k, name in enumerate(features)}
    for k, name in enumerate(features):
        if isinstance(features[name], Image):
            columns[name] = _rows([encode(np.full((5, 6, 3), 10 * k, np.uint8))] * 3)
    source = open_source(Dataset(features, columns))
    assert source.read(2)[0, 0, 0] == 10 * list(features).index(column)
    assert (None if source.labels is None else source.labels.tolist()) == (None if label is None else columns[label])


@pytest.mark.parametrize("labels", [[-1, -1], [0, None], ["cat", "dog"], [0.5, 1.0]])
def test_labels_that_do_not_tell_are_none(labels: list[Any], turned: bytes) -> None:
    source = open_source(Dataset({"image": Image(), "label": Value()}, {"image": _rows([turned] * 2), "label": labels}))
    assert source.labels is None and source.classes is None


def test_a_row_that_raises_is_a_bad_picture(turned: bytes) -> None:
    broken = [None, OSError("file truncated\nat 7"), None]
    source = open_source(Dataset({"image": Image()}, {"image": _rows([turned] * 3), "broken": broken}))
    with pytest.raises(BadPicture, match="its row cannot be read: file truncated at 7"):
        source.read(1)
    assert source.read(2).size


def test_a_function_over_the_rows_is_kept(pattern: np.ndarray) -> None:
    class Transformed(Dataset):
        def __getitem__(self, key: Any) -> dict[str, Any]:
            return {"image": pattern[::-1], "label": 1}

    source = open_source(Transformed({"image": Image()}, {"image": [0, 0]}, "custom"))
    assert np.array_equal(source.read(1), pattern[::-1]) and not source.parallel and source.fingerprint is None


def test_streams_and_undivided_sets_are_told_what_to_do(turned: bytes) -> None:
    class IterableDataset:
        def __iter__(self) -> Iterator[int]:
            return iter(())

        def __getitem__(self, i: int) -> None:
            raise NotImplementedError  # as torch's own class of this name does

        def __len__(self) -> int:
            return 3

    part = Dataset({"image": Image()}, {"image": _rows([turned])})
    for data, message in (
        (IterableDataset(), "data is a IterableDataset, a stream: .* save it as tar shards or files"),
        ((k for k in range(3)), "data is a generator, a stream"),
        ({"train": part, "test": part}, r"data is a dict with the splits train, test; pass one of them"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(data)


def _library(monkeypatch: pytest.MonkeyPatch, data: Any, saved: bool = False) -> list[tuple[Any, ...]]:
    """A stand-in of the library under its name; what it was asked for."""
    asked: list[tuple[Any, ...]] = []

    def load(*names: Any, **options: Any) -> Any:
        asked.append((*names, *options.values()))
        if isinstance(data, Exception):
            raise data
        return data

    refuse = pytest.fail
    library = types.SimpleNamespace(load_from_disk=load if saved else refuse, load_dataset=refuse if saved else load)
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


def test_names_and_splits(monkeypatch: pytest.MonkeyPatch, turned: bytes, tmp_path: Path) -> None:
    part = Dataset({"image": Image()}, {"image": _rows([turned] * 2)})
    asked = _library(monkeypatch, part)
    assert len(open_source("hf:owner/pictures:train")) == 2 and len(open_source("hf:owner/pictures")) == 2
    assert asked == [("owner/pictures", "train"), ("owner/pictures", None)]
    assert open_source("hf:owner/pictures:train").name == "pictures:train"
    _library(monkeypatch, {"train": part, "test": part})
    with pytest.raises(DataError, match="hf:owner/pictures has the splits train, test; name one: hf:owner/pictures:train"):
        open_source("hf:owner/pictures")
    _library(monkeypatch, {"only": part})
    assert len(open_source("hf:owner/pictures")) == 2
    _library(monkeypatch, ConnectionError("no way\nto the hub"))
    with pytest.raises(
        DataError, match="hf:owner/x cannot be opened: no way to the hub; wanted a folder from save_to_disk, or"
    ):
        open_source("hf:owner/x")
    asked = _library(monkeypatch, {"train": part, "test": part}, saved=True)
    assert len(open_source(f"hf:{tmp_path}:test")) == 2 and asked == [(str(tmp_path),)]
    with pytest.raises(DataError, match="has the splits train, test"):
        open_source(f"hf:{tmp_path}:validation")
    _library(monkeypatch, FileNotFoundError("neither"), saved=True)
    with pytest.raises(DataError, match="cannot be opened: neither; a folder of pictures is given without hf:"):
        open_source(f"hf:{tmp_path}")


def test_without_the_library_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SmallviewError, match=r"hf:cifar10 needs the datasets library.*pip install 'smallview\[hf\]'"):
        open_source("hf:cifar10")


@real
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_library_itself(tmp_path: Path, turned: bytes, encode: Encode) -> None:
    import datasets

    datasets.disable_progress_bars()
    pictures = [turned, *(encode(np.random.default_rng(k).integers(0, 256, (20, 30, 3), np.uint8)) for k in range(40))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": _rows([*pictures, b"broken"]), "label": [k % 2 for k in range(42)]}
    data = datasets.Dataset.from_dict(columns, features=features)
    source = open_source(data)
    assert (len(source), source.channels, source.classes, source.parallel) == (42, 3, ("cat", "dog"), True)
    assert source.labels is not None and source.labels.tolist() == columns["label"]
    with ThreadPoolExecutor(4) as pool:
        for k, pixels in enumerate(pool.map(source.read, list(range(41)) * 3)):
            assert np.array_equal(pixels, decode(pictures[k % 41]))
    with pytest.raises(BadPicture, match="text, not a picture"):
        source.read(41)
    assert open_source(data).fingerprint == source.fingerprint
    assert open_source(data.with_format("numpy")).read(0).shape == (48, 32, 3)
    fewer = open_source(data.select(range(1, 5)))
    assert np.array_equal(fewer.read(0), decode(pictures[1])) and fewer.fingerprint != source.fingerprint
    data.save_to_disk(tmp_path / "saved")
    saved = open_source(f"hf:{tmp_path / 'saved'}")
    assert open_source(f"hf:{tmp_path / 'saved'}").fingerprint == saved.fingerprint
    packs = [open_pack(each, short_side=None, threads=3) for each in (source, saved)]
    assert packs[0].hash == packs[1].hash and [len(pack.bad) for pack in packs] == [1, 1]
    datasets.DatasetDict({"train": data, "test": data.select([3])}).save_to_disk(tmp_path / "both")
    assert len(open_source(f"hf:{tmp_path / 'both'}:test")) == 1
    with pytest.raises(DataError, match="has the splits train, test; name one"):
        open_source(f"hf:{tmp_path / 'both'}")
    with pytest.raises(DataError, match="DatasetDict with the splits train, test"):
        open_source(datasets.load_from_disk(str(tmp_path / "both")))
    with pytest.raises(DataError, match="a stream"):
        open_source(data.to_iterable_dataset())
    with pytest.raises(DataError, match="cannot be opened"):
        open_source(f"hf:{tmp_path}")
    transformed = open_source(
        data.with_transform(lambda rows: {"image": [np.full((4, 4, 3), 7, np.uint8)] * len(rows["image"])})
    )
    assert (transformed.read(2) == 7).all()
