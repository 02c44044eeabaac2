"""Features that are kept: by content, verified, bounded, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smallview.evaluation.cache import FeatureCache
from smallview.evaluation.metrics import Figure


class Counting:
    def __init__(self, value: float = 1.0) -> None:
        self.calls, self.value = 0, value

    def __call__(self, out: Tensor) -> None:
        self.calls += 1
        out.fill_(self.value)


def test_made_once_and_read_back_the_same(tmp_path: Path) -> None:
    cache, make = FeatureCache(tmp_path), Counting()
    first, second = cache.get("a", (4, 3), make), cache.get("a", (4, 3), make)
    assert make.calls == 1 and torch.equal(first, second)
    second.add_(1.0)  # a copy of one's own: what is kept stays
    assert torch.equal(cache.get("a", (4, 3), make), first)
    assert torch.equal(cache.get("b", (4, 3), Counting(2.0)), torch.full((4, 3), 2.0))


def test_what_is_there_and_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    cache, make = FeatureCache(tmp_path), Counting()
    cache.get("a", (4, 3), make)
    assert cache.get("a", (5, 3), make).shape == (5, 3) and make.calls == 2


def test_an_extraction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(out: Tensor) -> None:
        raise ValueError("no pictures")

    with pytest.raises(ValueError, match="no pictures"):
        FeatureCache(tmp_path).get("a", (4, 3), broken)
    assert not list(tmp_path.glob("*"))


def test_floors_are_kept_and_verified(tmp_path: Path) -> None:
    cache, calls = FeatureCache(tmp_path / "features"), []

    def make() -> list[Figure]:
        calls.append(1)
        return [Figure("text", "knn top-1 %", 12.5, {"k": 20}, 0.5)]

    assert cache.figures("a", make) == cache.figures("a", make) == make() and len(calls) == 2
    (path,) = (tmp_path / "floors").glob("*.json")
    path.write_text(path.read_text().replace("12.5", "99.5"))
    assert cache.figures("a", make)[0].value == 12.5 and len(calls) == 3
    assert cache.figures(None, make) and len(calls) == 4


def test_nothing_is_kept_without_a_folder() -> None:
    cache, make = FeatureCache(None), Counting()
    cache.get("a", (4, 3), make), cache.get("a", (4, 3), make)
    assert make.calls == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "words", "other"])
def test_damaged_features_are_made_anew(tmp_path: Path, damage: str) -> None:
    cache, make = FeatureCache(tmp_path), Counting()
    cache.get("a", (4, 3), make)
    (data,), (words,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(content[:-4])
    elif damage == "words":
        words.write_text("{")
    else:
        words.write_text(words.read_text().replace('"a"', '"b"'))
    assert torch.equal(cache.get("a", (4, 3), make), torch.ones(4, 3)) and make.calls == 2
    cache.get("a", (4, 3), make)
    assert make.calls == 2


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    FeatureCache(tmp_path / "one").get("one", (4, 3), Counting())
    size = next((tmp_path / "one").glob("*.npy")).stat().st_size
    cache = FeatureCache(tmp_path, most=3 * size)
    for i, name in enumerate("abc"):
        cache.get(name, (4, 3), Counting(float(i)))
        for path in tmp_path.glob("*.npy"):
            os.utime(path, (path.stat().st_atime - 100, path.stat().st_mtime))
    cache.get("a", (4, 3), Counting())  # used again
    again = {name: Counting() for name in "abc"}
    cache.get("d", (4, 3), Counting())
    cache.get("a", (4, 3), again["a"])
    assert again["a"].calls == 0
    assert len(list(tmp_path.glob("*.npy"))) == len(list(tmp_path.glob("*.json"))) == 3


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache, make = FeatureCache(blocked / "features"), Counting()
    assert torch.equal(cache.get("a", (4, 3), make), cache.get("a", (4, 3), make)) and make.calls == 2
