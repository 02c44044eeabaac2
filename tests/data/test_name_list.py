"""Lists of pictures as text: whatever a file system allows as a name comes back, and what is no list is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallview.data.name_list import found_in, list_text, read_list
from smallview.data.sources import open_source
from smallview.errors import DataError, UsageError


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda raw: b"\0" not in raw), unique=True, max_size=8))
def test_any_name_of_a_file_comes_back(tmp_path_factory: pytest.TempPathFactory, raw: list[bytes]) -> None:
    names = [os.fsdecode(one) for one in raw]
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_text(list_text(names, ["two\nlines of comment"]), encoding="utf-8")
    assert read_list(path) == names


def test_lists_of_people_are_read(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf# by hand\r\n./a/1.jpg\r\n\r\n  b/2.jpg\nb/2.jpg\n\xff.png")
    assert read_list(path) == ["a/1.jpg", "b/2.jpg", os.fsdecode(b"\xff.png")]


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\0\0", b'"half a quote\n', b'"two" "of them"\n'])
def test_what_is_no_list_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    for place in (path, tmp_path, tmp_path / "none.txt"):
        with pytest.raises(UsageError, match=r"--exclude .*wanted a text file of names, one a line") as told:
            read_list(place)
        assert "\n" not in str(told.value)


def test_names_that_are_not_there_are_given_back_or_refused() -> None:
    source = open_source(np.zeros((12, 4, 4), np.uint8))
    assert found_in(source, ["99", "11", "00"], "it")[0].tolist() == [0, 11]
    with pytest.raises(
        DataError, match=r"it has 2 names \(photos/00, photos/01\), and arrays has none of them; wanted names as in 00"
    ):
        found_in(source, ["photos/00", "photos/01"], "it")
