"""A look before training: what is planted is found and named, what is clean raises no alarm, and nothing is touched."""

from __future__ import annotations

import importlib.util
import os
import shlex
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import smallview
from smallview import checking
from smallview.cli import main
from smallview.data.sources import open_source
from smallview.data.survey import survey
from smallview.findings import Check, text

ROOT = os.environ.get("SMALLVIEW_DATA")
pytestmark = pytest.mark.usefixtures("apart")


def photos(n: int, seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Smooth pictures in colour with details, as photographs are: uint8 [N, H, W, 3]."""
    random = np.random.default_rng(seed)
    zoom = (1, size[0] / 4, size[1] / 4, 1)
    pictures = ndimage.zoom(random.normal(size=(n, 4, 4, 3)), zoom, order=1)
    pictures = pictures + ndimage.gaussian_filter(random.normal(size=(n, *size, 1)), (0, 3, 3, 0)) * 6
    low, high = pictures.min((1, 2, 3), keepdims=True), pictures.max((1, 2, 3), keepdims=True)
    return (10 + 235 * (pictures - low) / (high - low)).astype(np.uint8)


def gratings(n: int, seed: int, kinds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Stripes, upright or lying, coarse or fine, which is the label; of any colour, place and brightness."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % kinds
    way, pace = (np.pi / 2 * (labels % 2))[:, None, None], (0.4 + 0.4 * (labels // 2))[:, None, None]
    rows, columns = np.mgrid[:32, :32]
    wave = np.sin(pace * (np.cos(way) * rows + np.sin(way) * columns) + random.uniform(0, 6.3, (n, 1, 1)))
    ink, paper = random.integers(20, 236, (2, n, 1, 1, 3))
    mixed = paper + (ink - paper) * (wave[..., None] + 1) / 2 + random.normal(0, 12, (n, 32, 32, 3))
    return np.clip(mixed, 0, 255).astype(np.uint8), labels


def squares(colours: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One square of its class's colour anywhere on gray."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % len(colours)
    pictures = np.clip(random.normal(110, 12, (n, 32, 32, 3)), 0, 255).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        top, left, side = *random.integers(1, 18, 2), random.integers(6, 13)
        picture[top : top + side, left : left + side] = colours[label]
    return pictures, labels


def arrows(n: int, seed: int, turned: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Right-pointing arrows, and as the other class turned ones."""
    random = np.random.default_rng(seed)
    pictures, labels = np.full((n, 32, 32, 3), 200, np.uint8), np.arange(n) % 2
    for picture, label in zip(pictures, labels, strict=True):
        top, left = random.integers(0, 8), random.integers(0, 6)
        drawn = np.full((32, 32, 3), 200, np.uint8)
        for k in range(8):
            drawn[top + 4 + k : top + 20 - k, left + 8 + k] = random.integers(0, 120, 3)
        drawn[top + 10 : top + 14, left : left + 10] = 30
        picture[:] = turned(drawn) if label else drawn
    return np.clip(pictures + random.normal(0, 6, pictures.shape), 0, 255).astype(np.uint8), labels


def alarms(check: Check) -> list[str]:
    return [each.about for each in check.alarms]


def about(check: Check, what: str) -> str:
    return " ".join(f"{each.level} {each.text}" for each in check.findings if each.about == what)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    for i, picture in enumerate(photos(60, 0)):
        Image.fromarray(picture).save(root / f"{i:02}.jpg", quality=90)
    return root


def test_planted_files_are_found_named_and_left_alone(folder: Path) -> None:
    one, two = Image.open(folder / "03.jpg"), Image.open(folder / "04.jpg")
    (folder / "copy.jpg").write_bytes((folder / "02.jpg").read_bytes())
    one.resize((64, 48)).save(folder / "half.png")
    two.save(folder / "squeezed.jpg", quality=30)
    (folder / "cut.jpg").write_bytes((folder / "05.jpg").read_bytes()[:900])
    (folder / "words.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    Image.fromarray(photos(1, 5)[0]).resize((8, 8)).save(folder / "icon.png")
    Image.fromarray(photos(1, 6, (20, 400))[0]).save(folder / "long.png")
    Image.new("RGB", (90, 90), (30, 60, 90)).save(folder / "plain.png")
    Image.open(folder / "07.jpg").convert("L").save(folder / "gray.png")
    (folder / "notes.txt").write_text("left out")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    check = smallview.check(folder, threads=2)
    assert {each.name for each in check.broken} == {"cut.jpg", "words.jpg", "empty.png"}
    assert "an empty file" in {each.reason for each in check.broken} and check.skipped == 1
    assert check.pictures == 67 and round(check.gray * check.pictures) == 1
    assert check.twins.equal == (("02.jpg", "copy.jpg"),) and check.twins.spare == 1
    assert set(check.twins.near) == {("03.jpg", "half.png"), ("04.jpg", "squeezed.jpg")} and check.twins.near_spare == 2
    assert check.sizes.tiny == ("icon.png",) and check.sizes.huge == ("long.png",) and check.constant == ("plain.png",)
    assert alarms(check) == ["constant", "size"] and "pretrain leaves them out" in about(check, "broken")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_very_large_pictures_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photos(1, 5, (200, 300))[0]).save(folder / "large.png")
    assert smallview.check(folder).sizes.huge == ()
    monkeypatch.setattr(checking, "HUGE", 40_000)
    assert smallview.check(folder).sizes.huge == ("large.png",)


def test_many_broken_pictures_are_an_alarm_and_all_broken_ones_no_failure(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8\xff broken")
    check = smallview.check(tmp_path)
    assert check.pictures == 0 and alarms(check) == ["broken"] and "fine" not in text(check)


def test_copies_of_most_of_a_set_are_an_alarm_in_one_group_each() -> None:
    pictures = photos(40, 1, (32, 32))
    check = smallview.check(np.concatenate([pictures, pictures, pictures]))
    assert alarms(check) == ["copies"] and check.twins.spare == 80 and {len(group) for group in check.twins.equal} == {3}
    labels = np.arange(120) // 60  # the copies cross the classes
    assert smallview.check((np.concatenate([pictures, pictures, pictures]), labels)).twins.across_classes == 40


def test_the_same_forms_in_other_colours_are_no_copies() -> None:
    forms = photos(40, 2, (32, 32))
    green = np.concatenate([forms, forms[..., [1, 2, 0]]])
    hued = [np.clip(green * tint, 0, 255).astype(np.uint8) for tint in ([1, 0.4, 0.4], [0.4, 0.4, 1])]
    assert smallview.check(np.concatenate([hued[0][:40], hued[1][:40]])).twins.near == ()


def test_leaks_are_found_as_copies_and_mirrored(folder: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    for i, picture in enumerate(photos(100, 9)):
        Image.fromarray(picture).save(held / f"new{i:02}.png")
    assert alarms(smallview.check(folder, held)) == []
    (held / "same.jpg").write_bytes((folder / "11.jpg").read_bytes())
    Image.open(folder / "12.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(held / "mirrored.png")
    Image.open(folder / "13.jpg").resize((256, 192)).save(held / "large.jpg", quality=60)
    check = smallview.check(folder, held)
    assert check.shared is not None and check.shared.tested == 103
    assert set(check.shared.pairs) == {
        ("same.jpg", "11.jpg", True),
        ("mirrored.png", "12.jpg", False),
        ("large.jpg", "13.jpg", False),
    }
    assert alarms(check) == ["leaks"] and smallview.check(folder).shared is None


HUES = np.array([(220, 40, 40), (40, 170, 40), (50, 60, 230), (190, 150, 20)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("clean", "found"), [(False, ["colour"]), (True, [])])
def test_colour_that_is_the_label_is_found(seed: int, clean: bool, found: list[str]) -> None:
    pictures, labels = squares(HUES, 200, seed)
    if clean:
        labels = np.random.default_rng(seed).permutation(labels)
    check = smallview.check((pictures, labels))
    assert alarms(check) == found and check.clues is not None and check.clues.colour is not None
    assert check.clues.colour.told is not clean


def test_brightness_that_is_the_label_is_found() -> None:
    grays = np.array([(value,) * 3 for value in (10, 70, 160, 240)])
    check = smallview.check(squares(grays, 200, 0))
    assert "brightness" in alarms(check) and "colour" not in alarms(check)


@pytest.mark.parametrize("seed", range(3))
def test_classes_that_are_mirror_images_are_found_and_upside_down_ones_are_none(seed: int) -> None:
    check = smallview.check(arrows(160, seed, lambda drawn: drawn[:, ::-1]))
    assert alarms(check) == ["flip"] and "0 and 1" in about(check, "flip")
    assert "flip" not in alarms(smallview.check(arrows(160, seed, lambda drawn: np.rot90(drawn, 1))))


@pytest.mark.parametrize("seed", range(5))
def test_clean_sets_raise_no_alarm(seed: int) -> None:
    check = smallview.check(gratings(240, seed, 3 + seed % 3), gratings(60, 100 + seed, 3 + seed % 3))
    assert alarms(check) == [], text(check)
    assert check.clues is not None and check.clues.shape.told and about(check, "labels") == ""
    check = smallview.check(photos(80, seed, (48, 48)), photos(40, 100 + seed, (48, 48)))
    assert alarms(check) == [] and about(check, "labels").startswith("unknown without labels")


def test_the_advice_is_a_command_that_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "with space.npz"
    pictures, labels = squares(HUES, 120, 0)
    np.savez(place, images=pictures, labels=labels)
    for method in ("simclr", "relic_v2"):
        (alarm,) = smallview.check(place, method=method).alarms
        words = shlex.split(alarm.do)
        main([*words[1:], "--print-config"])
        settings = capsys.readouterr().out
        assert words[0] == "smallview" and settings.count("# --set") == alarm.do.count("=0") >= 6
        assert "saturation = 0.0  # --set" in settings and "grayscale = 0.2" not in settings


@pytest.mark.parametrize("method", smallview.methods())
def test_what_a_method_does_not_do_is_no_alarm(method: str) -> None:
    views = smallview.method(method).views
    changed = any(view.grayscale or (view.jitter and (view.hue or view.saturation)) for view in views)
    check = smallview.check(squares(HUES, 80, 0), method=method)
    assert alarms(check) == ["colour"] * changed and about(check, "colour")


def test_balance_of_classes(tmp_path: Path) -> None:
    for name, n in (("many", 40), ("few", 3), ("one", 1), ("none", 0)):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(photos(n, len(name), (32, 32))):
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    check = smallview.check(tmp_path)
    assert check.classes == {"few": 3, "many": 40, "none": 0, "one": 1}
    told = about(check, "classes")
    assert (
        "1 of 4 classes have no readable picture: none" in told and "have 1 picture: one" in told and "40 times fewer" in told
    )
    assert "too few pictures of each class" in about(check, "labels")


def test_gray_sets_are_told() -> None:
    gray = np.repeat(photos(50, 0, (32, 32))[..., :1], 3, 3)
    assert "saturation, hue and grayscale change nothing" in about(smallview.check(gray), "gray")
    coloured = np.concatenate([gray[:20], photos(80, 1, (32, 32))])
    assert "20 % of the pictures are gray" in about(smallview.check(coloured), "gray")
    check = smallview.check(photos(50, 0, (32, 32))[..., 0])
    assert check.channels == 1 and about(check, "gray") == ""


def test_any_source_and_odd_labels_are_taken() -> None:
    pictures, labels = gratings(60, 0)
    assert smallview.check((pictures, labels * 1000 - 7)).classes == {"-7": 20, "993": 20, "1993": 20}

    class Mapped:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> Any:
            return pictures[i], int(labels[i])

    check = smallview.check(Mapped())
    assert check.classes == {"0": 20, "1": 20, "2": 20} and check.clues is not None
    assert smallview.check(pictures[:1]).pictures == 1
    for channels in (2, 4):
        assert len(smallview.check(np.repeat(pictures[:9, :, :, :1], channels, 3)).mean) == channels


def test_the_pass_is_the_same_on_any_number_of_threads_and_holds_no_pictures() -> None:
    pictures = list(photos(120, 0, (160, 200)))

    class Late:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> np.ndarray:
            return pictures[i].copy()

    survey(open_source(Late()), most=10)
    tracemalloc.start()
    one = survey(open_source(Late()), most=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 < sum(picture.nbytes for picture in pictures) / 5
    two = survey(open_source(np.stack(pictures)), most=10, threads=2)
    for name in ("hash", "mean", "thumbs", "colours", "sample"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert np.allclose(one.mean.mean(0), np.stack(pictures).mean((0, 1, 2)) / 255, atol=0.01)


def test_digits_raise_no_alarm_and_their_side_is_told() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)
    check = smallview.check((images[:1200], digits.target[:1200]), (images[1200:], digits.target[1200:]))
    assert alarms(check) == [] and about(check, "flip").startswith("note pictures face one way")


@pytest.mark.skipif(not ROOT, reason="SMALLVIEW_DATA is not set: no real pictures to raise no alarm on")
@pytest.mark.parametrize(
    "name", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("cifar10", "fashion_mnist")), "flowers", "clothing"]
)
def test_real_sets_raise_no_alarm(name: str) -> None:
    spec = importlib.util.spec_from_file_location("load", Path(str(ROOT)) / "load.py")
    assert spec is not None and spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    if name in ("flowers", "clothing"):
        check = smallview.check(getattr(load, name)("train"), getattr(load, name)("test"))
    else:
        x, y, test_x, test_y = load.cifar10((1,)) if name == "cifar10" else load.fashion_mnist()
        check = smallview.check((x[:6000], y[:6000]), (test_x[:2000], test_y[:2000]))
    assert alarms(check) == [], text(check)
    assert ("tells part of the label" in about(check, "colour")) is (name == "flowers")
    assert ("face one way" in about(check, "flip")) is (name == "fashion_mnist")
