"""The whole road on real photos, in miniature: views, pretraining, judging, embedding."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import smallview
from smallview.output.embed import embed_pack, write_embeddings
from smallview.use import sheet

ROOT = os.environ.get("SMALLVIEW_DATA")


@pytest.mark.skipif(not ROOT, reason="SMALLVIEW_DATA is not set: no real photos to try the road on")
def test_photos_in_judged_encoder_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIEW_CACHE", str(tmp_path / "cache"))
    photos = Path(str(ROOT)) / "clothing"
    picture, settled, _ = sheet(photos / "test", tmp_path / "sheet.png", {"size": 32}, rows=2, repeats=1)
    assert picture.stat().st_size > 2_000 and settled.size == 32

    run = smallview.pretrain(photos / "train", "moco_v2", epochs=1, size=32, threads=1, out=tmp_path / "run", quiet=True)
    rows = smallview.evaluate(run.path, photos / "train", photos / "test", threads=1)
    assert [row.metric for row in rows] == ["knn20 top-1 %", "knn200 top-1 %", "linear top-1 %"]
    for row in rows:
        assert row.n_train == 640 and row.n_test == 120
        assert row.floor_pixels is not None and row.floor_untrained is not None
        assert all(5.0 < value <= 100.0 for value in (row.value, row.floor_pixels, row.floor_untrained))
        assert "clothing" not in row.protocol and "train (n=640)" in row.protocol and "32 px" in row.protocol
    assert [json.loads(line)["metric"] for line in (run.path / "rows.jsonl").read_text().splitlines()] == [
        r.metric for r in rows
    ]

    features, pack = embed_pack(run.path, photos / "test", normalize=True, threads=1)
    write_embeddings(features, pack, tmp_path / "embeddings")
    stored = np.load(tmp_path / "embeddings" / "embeddings.npy", allow_pickle=False)
    index = [json.loads(line) for line in (tmp_path / "embeddings" / "index.jsonl").read_text().splitlines()]
    assert stored.shape == (120, 1024) and stored.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1.0, atol=1e-5)
    names = [line["name"] for line in index]
    assert names == sorted(names, key=str.encode) and all(line["name"].startswith(line["label"] + "/") for line in index)
