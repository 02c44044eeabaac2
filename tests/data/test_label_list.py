"""Lists of labels as people's spreadsheets save them, and those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallview.data.label_list import bare, read_labels, shielded
from smallview.errors import UsageError


def listed(tmp_path: Path, data: bytes, name: str = "a.csv") -> list[tuple[str, str | None]]:
    (tmp_path / name).write_bytes(data)
    return read_labels(tmp_path / name)


@pytest.mark.parametrize(
    "data",
    [
        b"order,name,stands_for,covered,label\n1,a/1.png,3,0.1,cat\n2,a/2.png,2,0.2,\n3,b.png,1,0.3, dog \n",
        b"name,label\na/1.png,cat\na/2.png,\nb.png,dog\n",
        b"\xef\xbb\xbfName;Label\r\na/1.png;cat\r\n\r\na/2.png;\r\nb.png;dog\r\n",
        b'label\tname\tnote\ncat\ta/1.png\t"a,b"\n \ta/2.png\ndog\tb.png\n',
        b'name,label\n"a/1.png",cat\n,dog\na/2.png\nb.png,dog,more,cells\n',
    ],
)
def test_labels_that_are_filled_in_are_read_and_empty_ones_left_out(tmp_path: Path, data: bytes) -> None:
    assert listed(tmp_path, data) == [("a/1.png", "cat"), ("b.png", "dog")]


def test_names_alone_have_no_label(tmp_path: Path) -> None:
    assert listed(tmp_path, b"name,size\na.png,3\na.png,3\nb.png,4\n") == [("a.png", None), ("b.png", None)]
    assert listed(tmp_path, b"# by hand\n./a.png\nb.png\n", "a.txt") == [("a.png", None), ("b.png", None)]
    assert listed(tmp_path, b"name,label\na.png,\n") == []


def test_names_come_back_as_they_were_written(tmp_path: Path) -> None:
    for name in ("=cmd().png", "+1.png", "'tis.png", "@a.png", "a;b.png"):
        assert bare(shielded(name)) == name
    assert listed(tmp_path, b"name,label\n'=cmd().png,=dog\n\xff.png,cat\n") == [("=cmd().png", "=dog"), ("\udcff.png", "cat")]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "has no column `name`, or no rows"),
        (b"name,label\n", "has no column `name`, or no rows"),
        (b"picture,class\n1,2\n", "has no column `name`, or no rows"),
        (b"\xff\xfen\0a\0m\0e\0", "is no text in UTF-8; wanted"),
        (b'name,label\n"' + b"x" * 200_000 + b'",cat\n', "cannot be read"),
    ],
)
def test_what_is_no_list_is_told_in_one_line(tmp_path: Path, data: bytes, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted) as told:
        listed(tmp_path, data)
    assert "--labeled" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
