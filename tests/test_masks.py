"""Views without background: the masked copy itself, and a run that is given masks, lacks them, or is given others later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import smallview as sv
from smallview import use
from smallview.cli import main
from smallview.data.masking import FILL, mask_pictures
from smallview.data.packing import Pack, open_pack
from smallview.data.sources import open_source
from smallview.errors import DataError, StoppedError, UsageError
from smallview.settings import load_toml

MASKED = {"method.views.0.mask_background": 0.5, "method.views.1.mask_background": 0.5}


pytestmark = pytest.mark.usefixtures("apart")


def pictures(n: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(129, 255, (n, 16, 16, channels), dtype=np.uint8)


def pack_of(data: Any, short_side: int | None = None) -> Pack:
    return open_pack(open_source(data), short_side=short_side)


def left(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(image.shape[1]) < image.shape[1] // 2, image.shape[:2])


def split(pack: Pack, masked: Any) -> list[np.ndarray]:
    """The masked pictures, each [H, W, C]."""
    shapes = [(int(h), int(w), pack.channels) for h, w in zip(pack.heights, pack.widths, strict=True)]
    return [masked.pixels[o : o + np.prod(s)].reshape(s) for o, s in zip(masked.offsets, shapes, strict=True)]


@pytest.mark.parametrize("channels", [1, 3])
def test_background_is_gray_and_foreground_untouched(channels: int) -> None:
    random = np.random.default_rng(1)
    data = [random.integers(0, 256, (9 + n, 14 - n, channels), np.uint8) for n in range(5)]
    pack = pack_of(data)
    before = pack.pixels.copy()
    masks = {image.tobytes(): random.random(image.shape[:2]) < 0.4 for image in data}
    masked, share = mask_pictures(pack, lambda image: masks[image.tobytes()])
    assert share == 1.0 and len(masked) == 5 and masked.channels == channels and masked.one_size is None
    np.testing.assert_array_equal(masked.offsets, pack.offsets)
    for image, found in zip(data, split(pack, masked), strict=True):
        mask = masks[image.tobytes()]
        np.testing.assert_array_equal(found[mask], image[mask])
        assert (found[~mask] == FILL).all()
    np.testing.assert_array_equal(pack.pixels, before)


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        lambda mask: mask.astype(np.int64),
        lambda mask: np.where(mask, 0.5, 0.4999),
        lambda mask: np.where(mask, 1.0, 0.0).astype(np.float16),
        lambda mask: torch.from_numpy(np.where(mask, 0.9, 0.1)).requires_grad_(),
        lambda mask: mask.tolist(),
    ],
)
def test_truth_values_and_numbers_mean_the_same(kind: Callable[[np.ndarray], Any]) -> None:
    pack = pack_of(pictures(4))
    plain, _ = mask_pictures(pack, left)
    other, _ = mask_pictures(pack, lambda image: kind(left(image).copy()))
    np.testing.assert_array_equal(plain.pixels, other.pixels)
    assert plain.hash == other.hash and plain.hash.startswith("sha256:")
    assert plain.hash != mask_pictures(pack, lambda image: ~left(image))[0].hash


def test_masks_that_found_nothing_or_everything_leave_the_picture() -> None:
    pack = pack_of(pictures(5))
    counts = iter((2, 3, 243, 244, 256))  # of 256: under 1 %, over 1 %, under 95 %, over 95 %, all

    def mask(image: np.ndarray) -> np.ndarray:
        return (np.arange(256) < next(counts)).reshape(16, 16)

    masked, share = mask_pictures(pack, mask)
    assert share == 0.4
    same = [np.array_equal(a, b) for a, b in zip(split(pack, masked), pack, strict=True)]
    assert same == [True, False, False, True, True]
    assert mask_pictures(pack, lambda image: np.ones((16, 16)), area=(0.0, 1.0))[1] == 1.0


def test_what_the_function_writes_stays_out_of_the_pictures() -> None:
    pack = pack_of(pictures(3))

    def scribble(image: np.ndarray) -> np.ndarray:
        image[:] = 0
        return left(image)

    np.testing.assert_array_equal(mask_pictures(pack, scribble)[0].pixels, mask_pictures(pack, left)[0].pixels)


def test_masks_as_one_array() -> None:
    pack = pack_of(pictures(4))
    masks = np.random.default_rng(0).random((4, 16, 16)) < 0.5
    masked, share = mask_pictures(pack, masks)
    assert share == 1.0
    for image, mask, found in zip(pack, masks, split(pack, masked), strict=True):
        np.testing.assert_array_equal(found, np.where(mask[..., None], image, FILL))
    for wrong in (masks[:3], masks[0]):
        with pytest.raises(UsageError, match=r"array \[.*16\] with 4 readable pictures; wanted \[4, H, W\]"):
            mask_pictures(pack, wrong)


def test_an_array_of_masks_is_shrunk_as_the_pictures_are() -> None:
    data = np.random.default_rng(0).integers(129, 255, (3, 40, 60, 3), np.uint8)
    pack = pack_of(data, short_side=10)
    assert pack.one_size == (10, 15)
    masks = np.zeros((3, 40, 60))
    masks[:, 8:32, 20:] = 1.0
    for found in split(pack, mask_pictures(pack, masks)[0]):
        background = (found == FILL).all(2)
        assert background[:2].all() and background[8:].all() and background[:, :5].all()
        assert not background[2:8, 5:].any()
    with pytest.raises(UsageError, match=r"mask of picture 0 .*is \[10, 10\]; wanted \[10, 15\]"):
        mask_pictures(pack, np.zeros((3, 40, 40)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda image: np.ones((16, 15)), r"is \[16, 15\]; wanted \[16, 16\]"),
        (lambda image: image, r"is \[16, 16, 3\]; wanted \[16, 16\]"),
        (lambda image: None, r"is \[\]; wanted \[16, 16\]"),
        (lambda image: np.full((16, 16), np.nan), "numbers from nan to nan"),
        (lambda image: np.full((16, 16), -0.1), "numbers from -0.1"),
        (lambda image: 255 * left(image).astype(np.uint8), "numbers from 0 to 255; .*divide by 255"),
        (lambda image: np.full((16, 16), "x"), "holds <U1"),
        (lambda image: np.full((16, 16), 1j), "holds complex128"),
    ],
)
def test_what_is_no_mask_is_told_with_the_picture(wrong: Callable[[np.ndarray], Any], words: str, tmp_path: Path) -> None:
    paths = [tmp_path / "zero.png", tmp_path / "one.png"]
    for path, image in zip(paths, pictures(2), strict=True):
        Image.fromarray(image).save(path)
    pack = pack_of(paths)
    first = pack[0].tobytes()
    with pytest.raises(UsageError, match=rf"the mask of picture 1 \(.*one.png\).*{words}"):
        mask_pictures(pack, lambda image: left(image) if image.tobytes() == first else wrong(image))


def tiny(**more: Any) -> dict[str, Any]:
    return {"batch_size": 16, "threads": 1, "quiet": True, "epochs": 2, **more}


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_with_masks_goes_on_with_them_and_with_no_others(
    stop_after: Callable[[pytest.MonkeyPatch, int], None],
    channels: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pictures(channels=channels)
    whole = sv.pretrain(data, out=tmp_path / "whole", sets=MASKED, masks=left, **tiny(quiet=False))
    assert "100 % of 32 pictures are masked\n" in capsys.readouterr().err
    recorded = load_toml(whole.path / "run.toml")["recorded"]
    assert recorded["masks_hash"] == mask_pictures(pack_of(data), left)[0].hash
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            sv.pretrain(data, out=out, sets=MASKED, masks=left, **tiny())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(DataError, match="the masks changed since"):
        sv.pretrain(data, out=out, sets=MASKED, masks=lambda image: ~left(image), **tiny())
    with pytest.raises(UsageError, match="no masks are given"):
        sv.pretrain(data, out=out, sets=MASKED, **tiny())
    with pytest.raises(UsageError, match=r"mask_background: 0\.5 -> 0"):
        sv.pretrain(data, out=out, masks=left, **tiny())
    assert {path: path.read_bytes() for path in before} == before
    as_array = np.stack([left(image) for image in data])
    parts = sv.pretrain(data, out=out, sets=MASKED, masks=as_array, **tiny())
    assert weights(parts.path) == weights(whole.path)
    others = sv.pretrain(data, out=tmp_path / "others", sets=MASKED, masks=lambda image: ~left(image), **tiny())
    assert weights(others.path) != weights(whole.path)


def test_masks_that_keep_everything_are_no_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = sv.pretrain(pictures(), out=tmp_path / "plain", **tiny(epochs=1))
    assert "masks_hash" not in load_toml(plain.path / "run.toml")["recorded"]
    capsys.readouterr()
    kept = sv.pretrain(
        pictures(),
        out=tmp_path / "kept",
        sets=MASKED | {"method.views.0.mask_background": 1.0},
        masks=lambda image: np.ones(image.shape[:2]),
        **tiny(epochs=1, quiet=False),
    )
    assert "0 % of 32 pictures are masked; the others have a foreground under 1 % or over 95 %" in capsys.readouterr().err
    assert weights(kept.path) == weights(plain.path)
    unused = sv.pretrain(pictures(), out=tmp_path / "unused", masks=lambda image: 1 / 0, **tiny(epochs=1, quiet=False))
    said = capsys.readouterr().err
    assert said.startswith("masks are given and no view of simclr masks the background")
    assert weights(unused.path) == weights(plain.path)


def test_without_masks_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallview.pictures.open_pack", lambda *_, **__: pytest.fail("the pictures were packed"))
    monkeypatch.setattr(use, "open_pack", lambda *_, **__: pytest.fail("the pictures were packed"))
    told = (
        r"^simclr masks the background of views 0 and 1 \(mask_background 0\.5\) and no masks are given; in Python pass "
        r"{}\(\.\.\., masks=function\); on the command line switch it off with "
        r"--set method\.views\.0\.mask_background=0 --set method\.views\.1\.mask_background=0$"
    )
    with pytest.raises(UsageError, match=told.format("pretrain")):
        sv.pretrain(pictures(), out=tmp_path / "run", sets=MASKED, **tiny())
    one = r"of view 1 \(mask_background 0\.25\).* off with --set method\.views\.1\.mask_background=0$"
    with pytest.raises(UsageError, match=one):
        sv.pretrain(pictures(), out=tmp_path / "run", sets={"method.views.1.mask_background": 0.25}, **tiny())
    with pytest.raises(UsageError, match=told.format("sheet")):
        use.sheet(pictures(), tmp_path / "views.png", {}, sets=MASKED)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["pretrain", "views"])
def test_the_command_line_ends_with_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "data.npy", pictures(8))
    tokens = [command, str(tmp_path / "data.npy"), "--set", "method.views.1.mask_background=0.1"]
    with pytest.raises(SystemExit) as ended:
        main([*tokens, "--out", str(tmp_path / "out.png")])
    assert ended.value.code == 2
    assert "--set method.views.1.mask_background=0\n" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_the_sheet_shows_masked_views(tmp_path: Path) -> None:
    sets = {f"method.views.0.{name}": value for name, value in (("mask_background", 1.0), ("jitter", 0.0), ("grayscale", 0.0))}
    plain, _ = use.sheet(pictures(8), tmp_path / "plain.png", {}, sets=sets | {"method.views.0.mask_background": 0.0})
    masked, _ = use.sheet(pictures(8), tmp_path / "masked.png", {}, sets=sets, masks=left)
    a, b = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (plain, masked))
    assert a.shape == b.shape
    gray = [((image == FILL).all(2)).mean() for image in (a, b)]
    assert gray[1] > gray[0] + 0.03
