from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smallview.records import Row
from smallview.training.log import Guarded, MetricsLog, append_row, read_jsonl

ROW = Row("knn k=20", "top1", 0.5, 0.3, None, 0, 10, 5, {"k": 20}, {"seconds": 1.5})


def test_records_come_back_and_each_line_is_out_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": 0.1, "name": "é\n\x1b"})
        assert read_jsonl(path) == [{"step": 1, "loss": 0.1, "name": "é\n\x1b"}]
        log.write({"step": 2, "loss": math.nan, "x": np.float32(0.5), "n": np.int64(3), "deep": {"a": (math.inf, 1)}})
    assert read_jsonl(path)[1] == {"step": 2, "loss": None, "x": 0.5, "n": 3, "deep": {"a": [None, 1]}}
    assert path.read_bytes().count(b"\n") == 2
    assert b"\x1b" not in path.read_bytes()


def test_a_torn_last_line_is_left_out_and_not_grown_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n{"step": 2, "loss": 0.25}\n'
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        assert len(read_jsonl(path)) == whole[:end].count(b"\n")
        with MetricsLog(path) as log:
            log.write({"step": 9})
        assert [record["step"] for record in read_jsonl(path)] == [*[1, 2][: whole[:end].count(b"\n")], 9]
    path.write_bytes(b'{"step": 1}')
    append_row(path, ROW)
    assert read_jsonl(path) == [ROW.as_dict()]


def test_truncate_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"note": "start"}\n{"step": 1}\n{"step": 2}\n{"step": "odd"}\nrubbish\n{"step": 3}\n{"step": 4')
    with MetricsLog(path) as log:
        log.truncate_after(2)
        log.write({"step": 3, "again": True})
    assert read_jsonl(path) == [{"note": "start"}, {"step": 1}, {"step": 2}, {"step": "odd"}, {"step": 3, "again": True}]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, ROW)
    append_row(path, ROW)
    assert read_jsonl(path) == [ROW.as_dict()] * 2
    assert [json.loads(line) for line in path.read_text().splitlines()] == [ROW.as_dict()] * 2


class Heard:
    def __init__(self, fails: str = "") -> None:
        self.fails, self.heard = fails, list[str]()

    def _note(self, name: str) -> None:
        self.heard.append(name)
        if name == self.fails:
            raise ConnectionError("no route\nto host")

    def begin(self, settings: Mapping[str, Any], step: int) -> None:
        self._note("begin")

    def write(self, record: Mapping[str, Any]) -> None:
        self._note("write")

    def end(self, summary: Mapping[str, Any]) -> None:
        self._note("end")


@pytest.mark.parametrize("fails", ["begin", "write", "end"])
def test_a_logger_that_fails_is_named_once_and_left_out(fails: str) -> None:
    bad, good, said = Heard(fails), Heard(), list[str]()
    all_of_them = Guarded([bad, good], said.append)
    all_of_them.begin({}, 0)
    all_of_them.write({"step": 1})
    all_of_them.write({"step": 2})
    all_of_them.end({})
    assert good.heard == ["begin", "write", "write", "end"]
    assert bad.heard == good.heard[: good.heard.index(fails) + 1]
    assert said == ["Heard is left out from here on: ConnectionError: no route"]
