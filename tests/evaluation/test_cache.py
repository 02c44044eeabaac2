"""Features that are kept: by content, verified, bounded, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smallview.evaluation.cache import FeatureCache


class Counting:
    def __init__(self, value: float = 1.0) -> None:
        self.calls, self.value = 0, value

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.full((4, 3), self.value)


def test_made_once_and_read_back_the_same(tmp_path: Path) -> None:
    cache, make = FeatureCache(tmp_path), Counting()
    first, second = cache.get("a", make), cache.get("a", make)
    assert make.calls == 1 and torch.equal(first, second)
    second.add_(1.0)  # a copy of one's own: what is kept stays
    assert torch.equal(cache.get("a", make), first)
    assert torch.equal(cache.get("b", Counting(2.0)), torch.full((4, 3), 2.0))


def test_nothing_is_kept_without_a_folder() -> None:
    cache, make = FeatureCache(None), Counting()
    cache.get("a", make), cache.get("a", make)
    assert make.calls == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "words", "other"])
def test_damaged_features_are_made_anew(tmp_path: Path, damage: str) -> None:
    cache, make = FeatureCache(tmp_path), Counting()
    cache.get("a", make)
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
    assert torch.equal(cache.get("a", make), torch.ones(4, 3)) and make.calls == 2
    cache.get("a", make)
    assert make.calls == 2


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    FeatureCache(tmp_path / "one").get("one", Counting())
    size = next((tmp_path / "one").glob("*.npy")).stat().st_size
    cache = FeatureCache(tmp_path, most=3 * size)
    for i, name in enumerate("abc"):
        cache.get(name, Counting(float(i)))
        for path in tmp_path.glob("*.npy"):
            os.utime(path, (path.stat().st_atime - 100, path.stat().st_mtime))
    cache.get("a", Counting())  # used again
    again = {name: Counting() for name in "abc"}
    cache.get("d", Counting())
    cache.get("a", again["a"])
    assert again["a"].calls == 0
    assert len(list(tmp_path.glob("*.npy"))) == len(list(tmp_path.glob("*.json"))) == 3


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache, make = FeatureCache(blocked / "features"), Counting()
    assert torch.equal(cache.get("a", make), cache.get("a", make)) and make.calls == 2
