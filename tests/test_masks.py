"""Views without background: where masks come from, and a run that is given masks, or others later."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import smallview as sv
from smallview import foregrounds as finding
from smallview.cli import main
from smallview.config import RunConfig
from smallview.data.masking import MaskRule
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import DataError, StoppedError, UsageError
from smallview.foregrounds import check_masks, foregrounds_of, settings_with_masks
from smallview.networks.encoders import build_encoder, save_encoder
from smallview.records import Foregrounds
from smallview.settings import from_tables, load_toml, to_toml
from smallview.settle import settle
from smallview.views.saliency import per_picture

MASKED = {"method.views.0.mask_background": 0.5, "method.views.1.mask_background": 0.5}

Fronts = Callable[[Foregrounds, Any], list[np.ndarray | None]]

pytestmark = pytest.mark.usefixtures("apart")


def pictures(n: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(129, 255, (n, 16, 16, channels), dtype=np.uint8)


def pack_of(data: Any, short_side: int | None = None) -> Pack:
    return open_pack(open_source(data), short_side=short_side)


def left(images: torch.Tensor) -> torch.Tensor:
    """The left half of every picture [B, C, H, W]."""
    half = torch.arange(images.shape[3]) < images.shape[3] // 2
    return half.expand(len(images), 1, images.shape[2], -1)


def right(images: torch.Tensor) -> torch.Tensor:
    return ~left(images)


def config_of(data: Any, masks: Any = None, **sets: Any) -> RunConfig:
    settled, _ = settle(data, open_source(data), {}, sets=settings_with_masks(masks, {**MASKED, **sets}))
    return check_masks(settled, masks, lambda message: None)


def found_by(pack: Pack, data: Any, masks: Any, say: Callable[[str], None] = lambda message: None, **sets: Any) -> Foregrounds:
    found = foregrounds_of(pack, config_of(data, masks, **sets), masks, say)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "kind",
    [
        lambda mask: mask,
        lambda mask: mask[:, 0],
        lambda mask: mask.long(),
        lambda mask: torch.where(mask, 0.5, 0.4999),
        lambda mask: torch.where(mask, 1.0, 0.0).half(),
        lambda mask: torch.where(mask, 0.9, 0.1).requires_grad_(),
        lambda mask: mask.numpy().astype(np.uint8),
        lambda mask: mask.tolist(),
    ],
)
def test_truth_values_and_numbers_mean_the_same(kind: Callable[[torch.Tensor], Any]) -> None:
    data = pictures(4)
    pack = pack_of(data)
    plain = found_by(pack, data, left)
    other = found_by(pack, data, lambda images: kind(left(images)))
    np.testing.assert_array_equal(plain.bits, other.bits)
    assert plain.hash == other.hash and plain.hash.startswith("sha256:") and plain.usable.all()
    assert plain.hash != found_by(pack, data, right).hash


def test_the_threshold_and_the_area_are_settings(fronts: Fronts) -> None:
    data = pictures(2)
    pack = pack_of(data)

    def map_of(images: torch.Tensor) -> torch.Tensor:
        return torch.where(left(images), 0.4, 0.1)

    assert not found_by(pack, data, map_of).usable.any()
    half = fronts(found_by(pack, data, left), pack)
    for threshold in (0.3, "otsu"):
        for a, b in zip(fronts(found_by(pack, data, map_of, **{"masks.threshold": threshold}), pack), half, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not found_by(pack, data, left, **{"masks.area": (0.6, 0.9)}).usable.any()
    for wrong in ({"masks.threshold": 1.5}, {"masks.threshold": "often"}, {"masks.area": (0.9, 0.1)}):
        with pytest.raises(UsageError, match="wanted"):
            config_of(data, left, **wrong)


def test_what_the_function_writes_stays_out_of_the_pictures() -> None:
    data = pictures(3)
    pack = pack_of(data)

    def scribble(images: torch.Tensor) -> torch.Tensor:
        images[:] = 0
        return left(images)

    before = data.copy()
    assert found_by(pack, data, scribble).hash == found_by(pack, data, left).hash
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda images: left(images)[..., 1:],
            r"gave \[2, 1, 16, 15\] for 2 pictures \[2, 3, 16, 16\]; wanted \[2, 1, 16, 16\]",
        ),
        (lambda images: images, r"gave \[2, 3, 16, 16\] .*per_picture\(function\)"),
        (lambda images: left(images)[0, 0], r"gave \[16, 16\] .*per_picture\(function\)"),
        (lambda images: None, r"gave \[\] "),
        (
            lambda images: torch.stack([left(images)[0].float(), torch.full((1, 16, 16), torch.nan)]),
            r"picture 1 \(.*one.png\): numbers from nan",
        ),
        (lambda images: torch.full((2, 1, 16, 16), -0.1), r"picture 0 \(.*zero.png\): numbers from -0.1"),
        (lambda images: 255 * left(images).int(), "numbers from 0 to 255; .*divide by 255"),
        (lambda images: np.full((2, 1, 16, 16), "x"), ": <U1; wanted"),
        (lambda images: torch.full((2, 1, 16, 16), 1j), ": complex64; wanted"),
    ],
)
def test_what_is_no_mask_is_told(wrong: Callable[[torch.Tensor], Any], words: str, tmp_path: Path) -> None:
    paths = [tmp_path / "zero.png", tmp_path / "one.png"]
    for path, image in zip(paths, pictures(2), strict=True):
        Image.fromarray(image).save(path)
    pack = pack_of(paths)
    with pytest.raises(UsageError, match=words):
        found_by(pack, paths, wrong)


def test_masks_as_one_array(fronts: Fronts) -> None:
    data = pictures(4)
    pack = pack_of(data)
    masks = np.random.default_rng(0).random((4, 16, 16)) < 0.5
    np.testing.assert_array_equal(fronts(found_by(pack, data, masks), pack), masks)
    for wrong in (masks[:3], masks[0]):
        with pytest.raises(UsageError, match=r"array \[.*16\] with 4 readable pictures; wanted \[4, H, W\]"):
            found_by(pack, data, wrong)
    with pytest.raises(UsageError, match="the mask of picture 0: numbers from 2 to 2"):
        found_by(pack, data, np.full((4, 16, 16), 2.0))


def photo_folder(folder: Path) -> tuple[Path, Path]:
    """Photos in two folders, and masks for them: a gray one of full size, a smaller one, one of zeros and ones."""
    photos, masks = folder / "photos", folder / "masks"
    draw = np.random.default_rng(0)
    for name, mask_name, size, white in (
        ("a/one.jpg", "a/one.png", (40, 60), 255),
        ("a/two.v2.png", "a/two.v2.gif", (20, 30), 255),
        ("b/one.png", "b/one.bmp", (40, 60), 1),
    ):
        for path in (photos / name, masks / mask_name):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (40, 60, 3), np.uint8)).save(photos / name)
        mask = np.zeros(size, np.uint8)
        mask[:, size[1] // 2 if white == 255 else 0 : None if white == 255 else size[1] // 2] = white
        Image.fromarray(mask).save(masks / mask_name)
    Image.fromarray(mask).save(masks / "a" / "a mask without a photo.png")
    return photos, masks


def test_masks_in_a_folder_have_the_names_of_their_pictures(fronts: Fronts, tmp_path: Path) -> None:
    photos, masks = photo_folder(tmp_path)
    pack = pack_of(photos, short_side=20)
    assert list(pack.names) == ["a/one.jpg", "a/two.v2.png", "b/one.png"]
    first, second, third = fronts(found_by(pack, photos, masks), pack)
    for front in (first, second):
        assert front is not None and front.shape == (20, 30) and front[:, 16:].all() and not front[:, :14].any()
    assert third is not None and third[:, :14].all() and not third[:, 16:].any()
    before = found_by(pack, photos, masks).hash
    Image.fromarray(np.tile(np.uint8([[255, 0]]), (20, 15))).save(masks / "b" / "one.bmp")
    assert found_by(pack, photos, masks).hash != before
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(masks / "b" / "one.bmp")
    with pytest.raises(UsageError, match=r"one.bmp: \[40, 40\]; wanted \[20, 30\], or another size of the same shape"):
        found_by(pack, photos, masks)
    (masks / "b" / "one.bmp").write_bytes(b"BM nothing")
    with pytest.raises(DataError, match=r"the mask .*one.bmp cannot be used: .*; repair or replace it"):
        found_by(pack, photos, masks)
    (masks / "b" / "one.bmp").unlink()
    with pytest.raises(
        DataError, match=r"1 of 3 pictures have no mask in .*masks, e.g. b/one.png; wanted a file of the same name"
    ):
        found_by(pack, photos, masks)


def coloured(n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(blobs of one colour on a ground of another [N, 24, 24, 3], where they are)."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    middle = draw.uniform(9, 15, (n, 2))
    truth = (y - middle[:, :1, None]) ** 2 + (x - middle[:, 1:, None]) ** 2 < 36
    colours = np.array([[200, 40, 40], [60, 80, 200]])
    data = np.where(truth[..., None], colours[0], colours[1]) + draw.normal(0, 8, (n, 24, 24, 3))
    return data.clip(0, 255).astype(np.uint8), truth


def test_the_default_is_the_border_colour_found_once_and_kept(
    fronts: Fronts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, truth = coloured()
    pack = pack_of(data)
    said: list[str] = []
    torch.set_num_threads(2)
    found = found_by(pack, data, None, said.append)
    assert torch.get_num_threads() == 2
    assert said == ["masks by border_colour: 100 % of 6 pictures have a foreground"]
    for front, real in zip(fronts(found, pack), truth, strict=True):
        assert front is not None and (front & real).sum() / (front | real).sum() > 0.8
    kept = sorted(path.name for path in (tmp_path / "cache" / "foregrounds").iterdir())
    assert len(kept) == 2 and kept[0].endswith(".bits") and kept[1].endswith(".npz")
    calls: list[int] = []
    real_find = finding.find_foregrounds

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return real_find(*args, **more)

    monkeypatch.setattr(finding, "find_foregrounds", counted)
    again = found_by(pack, data, "border_colour")
    assert again.hash == found.hash and (again.bits == found.bits).all() and not calls
    others = found_by(pack, data, "centre_prior")
    assert len(calls) == 1 and others.hash != found.hash
    assert found_by(pack, data, None, **{"masks.area": (0.0, 0.9)}).usable.all() and len(calls) == 2
    found_by(pack_of(data[::-1].copy()), data, None)
    assert len(calls) == 3
    bits = tmp_path / "cache" / "foregrounds" / kept[0]
    damaged = bytearray(bits.read_bytes())
    damaged[7] ^= 1
    bits.write_bytes(damaged)
    assert found_by(pack, data, None).hash == found.hash and len(calls) == 4
    (bits.with_suffix(".npz")).write_bytes(b"PK not at all")
    assert found_by(pack, data, None).hash == found.hash and len(calls) == 5


def test_masks_by_a_function_are_not_kept(tmp_path: Path) -> None:
    data = pictures(4)
    found_by(pack_of(data), data, left)
    assert not (tmp_path / "cache" / "foregrounds").exists()


def test_none_leaves_every_picture_whole() -> None:
    data = pictures(4)
    said: list[str] = []
    found = found_by(pack_of(data), data, "none", said.append)
    assert not found.usable.any() and said == ["masks are switched off: every picture keeps its background"]


def test_a_name_that_is_none_is_told_before_anything_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallview.pictures.open_pack", lambda *_, **__: pytest.fail("the pictures were packed"))
    for source, words in (
        ("border_color", 'no masks are called "border_color" .*did you mean "border_colour"'),
        (str(tmp_path / "nowhere"), "no folder is there"),
        (f"encoder:{tmp_path / 'nowhere'}", "no run or encoder folder"),
    ):
        with pytest.raises(UsageError, match=words):
            sv.pretrain(pictures(), out=tmp_path / "run", sets=MASKED, masks=source, **tiny())
    with pytest.raises(UsageError, match="a function or an array of yours; pass it in Python"):
        sv.pretrain(pictures(), out=tmp_path / "run", sets={**MASKED, "masks.source": "given"}, **tiny())
    assert not (tmp_path / "run").exists()


def test_masks_from_an_encoder_of_ones_own(tmp_path: Path) -> None:
    net, described = build_encoder("dense_small", size=32)
    save_encoder(net, replace(described, mean=(0.5,) * 3, std=(0.2,) * 3), tmp_path / "encoder")
    data, _ = coloured(3)
    source = f"encoder:{tmp_path}"
    found = found_by(pack_of(data), data, source)
    assert found.usable.any() and found_by(pack_of(data), data, source).hash == found.hash
    save_encoder(net, replace(described, mean=(0.9, 0.1, 0.5), std=(1.0, 0.1, 0.4)), tmp_path / "encoder")
    assert found_by(pack_of(data), data, source).hash != found.hash
    other, _ = build_encoder("dense_small", size=32, seed=1)
    save_encoder(other, replace(described, mean=(0.5,) * 3, std=(0.2,) * 3), tmp_path / "encoder")
    assert found_by(pack_of(data), data, source).hash != found.hash
    gray = pictures(3, channels=1)
    with pytest.raises(UsageError, match="takes 3 channels and the pictures have 1"):
        found_by(pack_of(gray), gray, source)


def test_a_background_of_ones_own_is_a_setting_that_comes_back() -> None:
    for given in ("(124, 116, 104)", "124, 116, 104", [124, 116, 104], (124, 116, 104)):
        config = config_of(pictures(), **MASKED, **{"method.views.0.background": given})
        assert config.method.views[0].background == (124, 116, 104)
        assert from_tables(RunConfig, tomllib.loads(to_toml(config))) == config
    assert config_of(pictures(), **{"method.views.1.background": "blur"}).method.views[1].background == "blur"
    for wrong, words in (
        ("(1, 2, 256)", r"views\.0\.background: background is \(1, 2, 256\); wanted whole numbers from 0 to 255"),
        ("(1, 2, 0.5)", r"views\.0\.background\.2: received 0\.5, wanted a whole number"),
        ("grey", r'views\.0\.background: received "grey", wanted gray or .* or a list'),
    ):
        with pytest.raises(UsageError, match=words):
            config_of(pictures(), **{"method.views.0.background": wrong})


def test_a_colour_that_the_pictures_cannot_have_is_told_before_masks_are_found() -> None:
    def never(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    data, colour = pictures(channels=1), {"method.views.1.background": (1, 2, 3)}
    with pytest.raises(UsageError, match=r"method\.views\.1\.background is \(1, 2, 3\), that is 3 bytes; wanted 1, one for"):
        found_by(pack_of(data), data, never, **MASKED, **colour)


def tiny(**more: Any) -> dict[str, Any]:
    return {"encoder": "dense_small:8-16-32", "batch_size": 16, "threads": 1, "quiet": True, "epochs": 2, **more}


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
    assert "masks by given: 100 % of 32 pictures have a foreground\n" in capsys.readouterr().err
    tables = load_toml(whole.path / "run.toml")
    assert tables["recorded"]["masks_hash"] == found_by(pack_of(data), data, left).hash
    assert tables["recorded"]["masks_share"] == 1.0 and tables["masks"]["source"] == "given"
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            sv.pretrain(data, out=out, sets=MASKED, masks=left, **tiny())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(DataError, match="the masks changed since"):
        sv.pretrain(data, out=out, sets=MASKED, masks=right, **tiny())
    with pytest.raises(UsageError, match=r'masks.source: "given" -> "border_colour"'):
        sv.pretrain(data, out=out, sets=MASKED, **tiny())
    with pytest.raises(UsageError, match=r"mask_background: 0\.5 -> 0"):
        sv.pretrain(data, out=out, masks=left, **tiny())
    assert {path: path.read_bytes() for path in before} == before
    as_array = np.stack([np.broadcast_to(np.arange(16) < 8, (16, 16)) for _ in data])
    parts = sv.pretrain(data, out=out, sets=MASKED, masks=as_array, **tiny())
    assert weights(parts.path) == weights(whole.path)
    per = sv.pretrain(data, out=tmp_path / "per", sets=MASKED, masks=per_picture(lambda picture: as_array[0]), **tiny())
    assert weights(per.path) == weights(whole.path)
    others = sv.pretrain(data, out=tmp_path / "others", sets=MASKED, masks=right, **tiny())
    assert weights(others.path) != weights(whole.path)


def test_masks_that_keep_everything_are_no_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = sv.pretrain(pictures(), out=tmp_path / "plain", **tiny(epochs=1))
    assert "masks_hash" not in load_toml(plain.path / "run.toml")["recorded"]
    capsys.readouterr()
    kept = sv.pretrain(
        pictures(),
        out=tmp_path / "kept",
        sets=MASKED | {"method.views.0.mask_background": 1.0},
        masks=lambda images: np.ones((len(images), *images.shape[2:])),
        **tiny(epochs=1, quiet=False),
    )
    words = (
        "masks by given: 0 % of 32 pictures have a foreground; the others have a foreground under 1 % or over 95 % of the area"
    )
    assert words in capsys.readouterr().err
    assert weights(kept.path) == weights(plain.path)
    unused = sv.pretrain(pictures(), out=tmp_path / "unused", masks=lambda image: 1 / 0, **tiny(epochs=1, quiet=False))
    assert capsys.readouterr().err.startswith("masks are given and no view of simclr masks the background")
    assert weights(unused.path) == weights(plain.path)
    assert load_toml(unused.path / "run.toml")["masks"]["source"] == MaskRule().source


def test_relic_v2_runs_without_masks_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "data.npy", coloured(32)[0])
    out = tmp_path / "run"
    tokens = [
        "pretrain",
        str(tmp_path / "data.npy"),
        "--method",
        "relic_v2",
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--size",
        "16",
    ]
    main([*tokens, "--threads", "1", "--out", str(out)])
    assert "masks by border_colour: 100 % of 32 pictures have a foreground" in capsys.readouterr().err
    tables = load_toml(out / "run.toml")
    assert tables["masks"] == {"source": "border_colour", "threshold": "auto", "area": [0.01, 0.95]}
    assert tables["recorded"]["masks_share"] == 1.0 and tables["recorded"]["masks_hash"].startswith("sha256:")
    with pytest.raises(SystemExit) as ended:
        main([*tokens, "--threads", "1", "--out", str(out), "--masks", "centre_prior"])
    assert ended.value.code == 2
    assert 'masks.source: "border_colour" -> "centre_prior"' in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pretrain", "views"])
def test_the_command_line_tells_of_masks_that_are_not_there(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "data.npy", pictures(8))
    tokens = [command, str(tmp_path / "data.npy"), "--set", "method.views.1.mask_background=0.1", "--masks", "center_prior"]
    with pytest.raises(SystemExit) as ended:
        main([*tokens, "--out", str(tmp_path / "out.png")])
    assert ended.value.code == 2
    assert 'did you mean "centre_prior"?' in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_threshold_that_masks_cannot_have_is_refused(tmp_path: Path) -> None:
    data, otsu = pictures(2), {"masks.threshold": "otsu"}
    words = "otsu, which cuts the maps of an estimator or a function; .* at a number: --set masks.threshold=0.5"
    for masks in (tmp_path, np.zeros((2, 16, 16))):
        with pytest.raises(UsageError, match=words):
            config_of(data, masks, **otsu)
    for able in (left, "border_colour", "none"):
        assert config_of(data, able, **otsu).masks.threshold == "otsu"


def test_masks_settings_that_do_nothing_are_said(tmp_path: Path) -> None:
    data = pictures(2)
    for sets, count in (({"masks.area": (0.1, 0.9)}, 1), ({}, 0)):
        said: list[str] = []
        settled = check_masks(settle(data, open_source(data), {}, sets=sets)[0], None, said.append)
        assert settled.masks == MaskRule() and len(said) == count
        assert all(line.startswith("masks.* is set and no view of simclr masks the background; --set") for line in said)


def test_a_folder_of_masks_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "masks2").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("masks2", "masks2/", "./masks2//"):
        assert config_of(pictures(2), name).masks.source == "masks2"
        assert config_of(pictures(2), **{"masks.source": name}).masks.source == "masks2"
    for sets in (MASKED, {}):
        with pytest.raises(UsageError, match=r"masks are named ''; wanted border_colour, .*, none, encoder:RUN, or a folder"):
            sv.pretrain(pictures(2), out=tmp_path / "run", masks="", sets=sets)
