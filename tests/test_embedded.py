"""Vectors of pictures: embedded once and found again, read from written embeddings, and refused where they are of something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import smallview as sv
from smallview import embedded, embedding
from smallview.embedded import vectors_of
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.networks.encoders import EncoderConfig, build_encoder, save_encoder
from smallview.searching import nearest
from smallview.vectors import Vectors, norms_of

pytestmark = pytest.mark.usefixtures("apart")


def save(folder: Path, seed: int = 0, size: int = 8) -> Path:
    net, config = build_encoder("dense_small:8-16", size=size, seed=seed)
    save_encoder(net, EncoderConfig(**{**vars(config), "mean": (0.5,) * 3, "std": (0.25,) * 3}), folder)
    return folder


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)).save(path)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save(tmp_path / "encoder")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures in two classes, and one that cannot be read."""
    for i in range(8):
        draw(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "photos" / "a" / "3.png").write_bytes(b"\x89PNG and no more")
    return tmp_path / "photos"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pictures an encoder has seen since the last call."""
    seen = [0]
    real = embedding.features_of

    def count(encoder: nn.Module, views: Any, *more: Any) -> Any:
        for features in real(encoder, views, *more):
            seen[0] += len(features)
            yield features

    monkeypatch.setattr(embedding, "features_of", count)

    def since() -> int:
        found, seen[0] = seen[0], 0
        return found

    return since


def test_pictures_are_embedded_once(encoder: Path, photos: Path, counts: Callable[[], int]) -> None:
    said: list[str] = []
    one = vectors_of(encoder, photos, say=said.append, threads=1)
    assert counts() == 8 and any("a/3.png (" in line for line in said) and len(one) == 8
    said.clear()
    again = vectors_of(encoder, photos, say=said.append, threads=1)
    assert counts() == 0 and "used again" in said[0] and "a/3.png (" in said[1]
    for made in (one, again):
        assert list(made.names) == ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png", "b/7.png"]
        assert made.labels is not None and made.labels.tolist() == [0] * 4 + [1] * 4 and made.classes == ("a", "b")
        assert made.positions is not None and made.positions.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
        assert [bad.name for bad in made.left_out] == ["a/3.png"]
        with Image.open(photos / "a" / "4.png") as picture:
            assert np.array_equal(made.picture(2), np.asarray(picture))
    assert np.array_equal(one.features, again.features) and isinstance(again.features, np.memmap)
    plain = torch.nn.functional.normalize(torch.from_numpy(sv.embed(encoder, photos, threads=1, quiet=True)), dim=1)
    torch.testing.assert_close(again.unit(slice(None)), plain)
    torch.testing.assert_close(torch.cat([rows for _, rows in again.parts(3)]), plain)


def test_what_is_kept_is_of_this_encoder_these_pictures_and_whole(
    encoder: Path, photos: Path, tmp_path: Path, counts: Callable[[], int]
) -> None:
    def seen(what: Path, data: Any) -> int:
        vectors_of(what, data, say=str, threads=1)
        return counts()

    assert seen(encoder, photos) == 8
    assert seen(save(tmp_path / "other", seed=1), photos) == 8
    draw(photos / "a" / "0.png", 99)
    assert seen(encoder, photos) == 8
    for path in (tmp_path / "cache" / "embeddings").glob("*/embeddings.npy"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert seen(encoder, photos) == 8 and seen(encoder, photos) == 0


def test_the_same_array_may_come_with_other_labels(encoder: Path, counts: Callable[[], int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    assert vectors_of(encoder, pictures, say=str, threads=1).labels is None and counts() == 4
    for labels in ([0, 0, 1, 1], [1, 0, 1, 0]):
        made = vectors_of(encoder, (pictures, labels), say=str, threads=1)
        assert made.labels is not None and made.labels.tolist() == labels and counts() == 0


def test_a_data_set_without_a_fingerprint_is_known_by_its_pixels(encoder: Path, counts: Callable[[], int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)

    class Pairs:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            return pictures[i], i % 2

    for expected in (4, 0):
        made = vectors_of(encoder, Pairs(), say=str, threads=1)
        assert made.labels is not None and made.labels.tolist() == [0, 1, 0, 1] and counts() == expected
    pictures[2] = 7
    vectors_of(encoder, Pairs(), say=str, threads=1)
    assert counts() == 4


def test_the_cache_does_not_grow_without_end(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MOST", 800)  # two sets of these
    sets = [np.full((4, 8, 8, 3), shade, np.uint8) for shade in range(3)]
    for n, pictures in enumerate([sets[0], sets[1], sets[0], sets[2]]):
        vectors_of(encoder, pictures, say=str, threads=1)
        for about in (tmp_path / "cache" / "embeddings").glob("*/embeddings.json"):
            os.utime(about, (about.stat().st_atime, about.stat().st_mtime - 10))
        assert len(list((tmp_path / "cache" / "embeddings").iterdir())) == min(2, n + 1)
    said: list[str] = []
    vectors_of(encoder, sets[0], say=said.append, threads=1)
    assert "used again" in said[0]  # the one used last stayed


def test_written_embeddings_are_read_with_their_pictures(
    encoder: Path, photos: Path, tmp_path: Path, counts: Callable[[], int]
) -> None:
    sv.embed(encoder, photos, out=tmp_path / "e", threads=1, quiet=True)
    counts()
    made = vectors_of(encoder, tmp_path / "e", say=str, threads=1)
    assert made.classes == ("a", "b") and made.labels is not None and made.labels.tolist() == [0] * 4 + [1] * 4
    assert made.positions is not None and made.positions.tolist() == [0, 1, 3, 4, 5, 6, 7, 8] and len(made.left_out) == 1
    torch.testing.assert_close(made.unit(slice(None)), vectors_of(encoder, photos, say=str, threads=1).unit(slice(None)))
    # both moved together: still found; the pictures copied: other times, the same content
    shutil.move(tmp_path / "e", tmp_path / "moved" / "e")
    shutil.move(photos, tmp_path / "moved" / "photos")
    assert vectors_of(encoder, tmp_path / "moved" / "e", say=str).picture(0).shape == (9, 11, 3)
    shutil.move(tmp_path / "moved" / "photos", photos)
    os.utime(photos / "a" / "0.png", (1, 1))
    said: list[str] = []
    gone = vectors_of(encoder, tmp_path / "moved" / "e", say=said.append)
    assert gone.source is None and "--pictures names where they are" in said[0]
    with pytest.raises(DataError, match="--pictures"):
        gone.picture(0)
    back = vectors_of(encoder, tmp_path / "moved" / "e", say=said.append, pictures=photos)
    assert back.source is not None and any("whether they are the same" in line for line in said)


def test_pictures_that_changed_are_told_by_name(encoder: Path, photos: Path, tmp_path: Path) -> None:
    sv.embed(encoder, photos, out=tmp_path / "e", threads=1, quiet=True)

    def refused() -> str:
        with pytest.raises(DataError, match="changed since") as told:
            vectors_of(encoder, tmp_path / "e", say=str)
        return str(told.value)

    before = (photos / "b" / "5.png").read_bytes()
    draw(photos / "b" / "5.png", 77)
    assert "other content" in refused()
    (photos / "b" / "5.png").write_bytes(before)
    vectors_of(encoder, tmp_path / "e", say=str)
    draw(photos / "b" / "9.png", 9)
    (photos / "a" / "2.png").unlink()
    assert "1 vanished (a/2.png), 1 new (b/9.png)" in refused()


def test_what_is_not_whole_or_of_another_encoder_is_refused(encoder: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    sv.embed(encoder, photos, out=out, threads=1, quiet=True)
    about = (out / "embeddings.json").read_text()

    def refused(what: Path = encoder, **options: Any) -> str:
        with pytest.raises(DataError) as told:
            vectors_of(what, out, say=str, **options)
        assert "\n" not in str(told.value)
        return str(told.value)

    assert "of another encoder (encoder, " in refused(save(tmp_path / "other", seed=1))
    assert "of other views" in refused(size=12)
    rows = (out / "embeddings.npy").read_bytes()
    (out / "embeddings.npy").write_bytes(rows[:-1] + b"\x01")
    assert "damaged (other bytes" in refused()
    (out / "embeddings.npy").write_bytes(rows)
    for text, told in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({**json.loads(about), "rows": 3}), "damaged"),
    ):
        (out / "embeddings.json").write_text(text)
        assert told in refused()
    (out / "embeddings.json").write_text(json.dumps({**json.loads(about), "format_version": 2}))
    with pytest.raises(UsageError, match="has format_version 2; this version reads up to 1"):
        vectors_of(encoder, out, say=str)
    (out / "embeddings.json").unlink()
    assert "do not say of which encoder" in refused()
    (out / ".embeddings.json").write_text("{}")
    assert "are not finished" in refused()
    with pytest.raises(UsageError, match="pictures already"):
        vectors_of(encoder, photos, say=str, pictures=photos)


def test_a_cache_that_cannot_be_written_is_told_by_its_name(encoder: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "embeddings").write_text("a file in its place")
    with pytest.raises(SmallviewError, match="set SMALLVIEW_CACHE to another folder"):
        vectors_of(encoder, photos, say=str, threads=1)


class Odd(nn.Module):
    """The first numbers of a picture; none for a black one, and not a number for a white one."""

    def forward(self, views: Tensor) -> Tensor:
        rows = views.flatten(1)[:, :6].clone()
        rows[views.flatten(1).amax(1) < -1.9] = 0.0
        rows[views.flatten(1).amin(1) > 1.9] = float("nan")
        return rows


def test_rows_without_a_direction_are_told_and_near_to_nothing() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    pictures[1], pictures[4] = 0, 255
    said: list[str] = []
    made = vectors_of(Odd(), pictures, size=4, say=said.append, threads=1)
    assert made.usable.tolist() == [True, False, True, True, False, True] and "2 pictures without a direction" in said[0]
    assert made.unit(np.array([1, 4])).abs().sum() == 0.0 and torch.isfinite(made.unit(slice(None))).all()
    # towards the opposite of all: even then no row of zeros is nearer than a picture
    scores, rows = nearest(made, -torch.nn.functional.normalize(made.unit(slice(None)).sum(0, keepdim=True), dim=1), 6)
    assert sorted(rows[0].tolist()) == [0, 2, 3, 5] and torch.isfinite(scores).all()
    with pytest.raises(DataError, match="no picture of arrays a vector"):
        vectors_of(Odd(), pictures[[1, 4]], size=4, say=str, threads=1)


def test_numbers_at_the_ends_of_their_range_keep_their_direction() -> None:
    rows = np.array([[3e30, 4e30], [3e-30, 4e-30], [3, 4], [0, 0], [np.inf, 1]], np.float32)
    made = Vectors(None, "", rows, norms_of(rows), list("abcde"))  # type: ignore[arg-type]
    assert made.usable.tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(made.unit(slice(0, 3)), [[0.6, 0.8]] * 3, rtol=1e-5)
    np.testing.assert_allclose(made.cosines(0, 5, torch.tensor([[0.6, 0.8]]))[:, 0], [1, 1, 1, -2, -2], rtol=1e-5)


def test_nearest_is_exact_over_parts_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview import searching

    random = np.random.default_rng(0)
    rows = random.standard_normal((50, 8)).astype(np.float32) * random.uniform(0.1, 9, (50, 1)).astype(np.float32)
    rows[31] = rows[7]
    made = Vectors(None, "", rows, norms_of(rows), [str(i) for i in range(50)])  # type: ignore[arg-type]
    monkeypatch.setattr(searching, "ROWS", 7)
    monkeypatch.setattr(searching, "QUERIES", 3)
    asked = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((10, 8)).astype(np.float32)), dim=1)
    asked[0] = made.unit(np.array([7]))[0]
    scores, found = nearest(made, asked, 9)
    exact = asked @ made.unit(slice(None)).T
    order = exact.sort(dim=1, descending=True, stable=True).indices[:, :9]
    assert torch.equal(found, order) and found[0, :2].tolist() == [7, 31]  # of equals, the first
    torch.testing.assert_close(scores, exact.gather(1, order))
    assert nearest(made, asked, 500)[1].shape == (10, 50)
