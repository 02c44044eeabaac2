from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from smallview.errors import SmallviewError
from smallview.files import read_jsonl, write_text


def test_damage_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for line in (b"{", b"\0\0\0", b"[1]", b"\xff", b"[" * 100_000, b"9" * 5000):
        path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
        with pytest.raises(SmallviewError, match=r"metrics\.jsonl line 2 is damaged"):
            read_jsonl(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_jsonl(tmp_path / "none")


def test_write_text_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    before = os.umask(0o027)
    try:
        write_text(path, "old\r\né")
    finally:
        os.umask(before)
    assert path.read_bytes() == "old\r\né".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    write_text(str(path), "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["run.toml"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.toml"
    write_text(path, "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.toml"]
