"""The contact sheet: foregrounds cut as their pictures, words of what was drawn, and all of it as plain values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from smallview import use
from smallview.cli import main
from smallview.data.masking import find_foregrounds, masks_of_array
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import SmallviewError
from smallview.output import sheet as sheet_module
from smallview.output.sheet import Grid, contact_sheet, told, view_grid
from smallview.records import Batch
from smallview.settle import settle
from smallview.views.making import ViewMaker
from smallview.views.sampling import neutral
from smallview.views.view import View

FILL = 128
LEFT = np.broadcast_to(np.arange(16) < 8, (16, 16))

pytestmark = pytest.mark.usefixtures("apart")


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(129, 255, (n, 16, 16, 3), dtype=np.uint8)


def test_words_below_a_view_say_what_was_drawn_and_no_more() -> None:
    p = replace(
        neutral(np.array([[0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 30.0, 30.0]]), np.array([True, False]), 8),
        brightness=np.array([1.25, 1.0]),
        contrast=np.array([0.8, 1.0]),
        saturation=np.array([1.1, 1.0]),
        hue=np.array([-0.05, 0.0]),
        grayscale=np.array([True, False]),
        blur_sigma=np.array([0.5, 0.0]),
        solarize=np.array([True, False]),
        masked=np.array([True, True]),
    )
    begin, end = "masked, 22 % of area, ratio 2.00, flip", "blur 0.50 px, solarized, noise 0.1"
    colours = "bright 1.25, contrast 0.80, saturation 1.10, hue -0.05"
    coloured = replace(p, grayscale=np.zeros(2, bool))
    assert ", ".join(told(View(noise=0.1), coloured, 0, 900.0, masked=True)) == f"{begin}, {colours}, {end}"
    # one map has nothing left of saturation and hue; where gray comes last, they moved the gray
    grays = {mode: ", ".join(told(View(noise=0.1), p, 0, 900.0, masked=True, mode=mode)) for mode in ("fast", "parity")}
    assert grays == {
        "fast": f"{begin}, bright 1.25, contrast 0.80, gray, {end}",
        "parity": f"{begin}, {colours}, gray, {end}",
    }
    turned = replace(coloured, order=np.array([[3, 1, 0, 2], [0, 1, 2, 3]]))
    colours = "hue -0.05, contrast 0.80, bright 1.25, saturation 1.10"
    assert ", ".join(told(View(noise=0.1), turned, 0, 900.0, masked=True, mode="parity")) == f"{begin}, {colours}, {end}"
    assert told(View(), p, 1, 900.0, masked=False) == ("100 % of area", "ratio 1.00")


def test_the_sheet_shows_foregrounds_cut_as_the_pictures_beside_them() -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    masks = np.zeros((3, 16, 24), bool)
    masks[0, :8, 4:20], masks[1, :, :14] = True, True
    pack = open_pack(open_source(data), short_side=None)
    found = find_foregrounds(pack, masks_of_array(masks, 3))[0]
    grid = view_grid(pack, (View(mask_background=0.5),), 16, rows=3, repeats=2, foregrounds=found)
    assert grid.titles == ["picture", "foreground", "view 0, 16 px, draw 1", "view 0, 16 px, draw 2"] and grid.drawn[
        "usable"
    ] == [
        True,
        True,
        False,
    ]
    np.testing.assert_array_equal(grid.rows[0][1].pixels[..., 0] > 128, masks[0, :, 4:20])
    np.testing.assert_array_equal(grid.rows[1][1].pixels[..., 0] > 128, masks[1, :, 4:20])
    assert grid.rows[1][1].words == ("58 % of area",) and grid.rows[2][1].words == ("no usable foreground:", "stays whole")
    np.testing.assert_array_equal(grid.rows[2][0].pixels, data[2, :, 4:20])
    for k, row in enumerate(grid.rows):
        for epoch in (0, 1):
            drawn = grid.drawn["views"][epoch]["masked"][k]
            assert ("masked" in row[2 + epoch].words) == (drawn and found.usable[k])


def test_a_sheet_in_the_mean_colour_is_filled_with_it() -> None:
    data = pictures(4)
    pack = open_pack(open_source(data), short_side=None)
    plain = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
    view = replace(plain, mask_background=1.0, background="mean")
    found = find_foregrounds(pack, masks_of_array(np.repeat(LEFT[None], 4, 0), 4))[0]
    grid = view_grid(pack, (view,), 16, rows=4, repeats=1, foregrounds=found, mean=[0.8, 0.4, 0.2])
    for row in grid.rows:
        np.testing.assert_array_equal(row[2].pixels[:, 8:], np.broadcast_to(np.uint8([204, 102, 51]), (16, 8, 3)))
        np.testing.assert_array_equal(row[2].pixels[:, :8], row[0].pixels[:, :8])


def test_the_sheet_shows_masked_views(tmp_path: Path) -> None:
    sets = {f"method.views.0.{name}": value for name, value in (("mask_background", 1.0), ("jitter", 0.0), ("grayscale", 0.0))}
    plain, _, _ = use.sheet(pictures(8), tmp_path / "plain.png", {}, sets=sets | {"method.views.0.mask_background": 0.0})
    masked, _, drawn = use.sheet(pictures(8), tmp_path / "masked.png", {}, sets=sets, masks=np.repeat(LEFT[None], 8, 0))
    a, b = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (plain, masked))
    assert b.shape[0] == a.shape[0] and b.shape[1] > a.shape[1]
    gray = [((image == FILL).all(2)).mean() for image in (a, b)]
    assert gray[1] > gray[0] + 0.03
    assert drawn["usable"] == [True] * 8 and all(view["masked"] == [True] * 8 for view in drawn["views"] if view["view"] == 0)


def test_json_gives_every_parameter_of_every_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "data.npy", pictures(8))
    out = tmp_path / "out.png"
    main(["views", str(tmp_path / "data.npy"), "--out", str(out), "--json", "--pictures", "3", "--repeats", "2", "--seed", "5"])
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["pictures"]) == 3 and len(printed["views"]) == 4 and "usable" not in printed
    settled, _ = settle(str(tmp_path / "data.npy"), open_source(tmp_path / "data.npy"), {"seed": 5})
    maker = ViewMaker(
        open_pack(open_source(tmp_path / "data.npy"), short_side=None),
        settled.method.views,
        settled.size,
        [0.0] * 3,
        [1.0] * 3,
        5,
    )
    for epoch in (0, 1):
        for v, p in enumerate(maker.draw(Batch(np.array(printed["pictures"]), epoch, epoch, float(epoch)))):
            view = printed["views"][2 * epoch + v]
            assert (view["epoch"], view["view"], view["seen_by"]) == (epoch, v, "both")
            for name, value in vars(p).items():
                np.testing.assert_array_equal(np.array(view[name], np.asarray(value).dtype), value)


def test_words_leave_out_what_is_not_done() -> None:
    p = replace(
        neutral(np.array([[0.0, 0.0, 30.0, 30.0]] * 2), np.array([False, False]), 8),
        saturation=np.array([1.1, 1.1]),
        contrast=np.array([1.2, 1.2]),
        hue=np.array([0.1, 0.1]),
        grayscale=np.array([True, True]),
        blur_sigma=np.array([0.25, 0.26]),
    )
    plain = ("100 % of area", "ratio 1.00", "contrast 1.20")
    for channels in (1, 4):
        assert told(View(), p, 0, 900.0, masked=False, channels=channels) == plain
    assert told(View(), p, 1, 900.0, masked=False, channels=1) == (*plain, "blur 0.26 px")
    assert told(View(), p, 0, 900.0, masked=False, channels=1, mode="parity") == (*plain, "blur 0.25 px")
    gray = open_pack(open_source(pictures(3)[..., :1]), short_side=None)
    for mode in ("fast", "parity"):
        words = " ".join(str(cell.words) for row in view_grid(gray, (View(blur=1.0),), 16, mode=mode).rows for cell in row)
        assert not any(word in words for word in ("gray", "hue", "saturation")) and ("blur" in words) == (mode == "parity")


def test_the_sheet_names_its_pictures_and_shows_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Grid] = []

    def kept(grid: Grid, out: Path) -> Path:
        grids.append(grid)
        return contact_sheet(grid, out)

    monkeypatch.setattr(use, "contact_sheet", kept)
    (tmp_path / "photos").mkdir()
    for k, image in enumerate(pictures(5)):
        Image.fromarray(image).save(tmp_path / "photos" / f"photo {k}.png")
    shown = []
    for mode in ("fast", "parity"):
        out, _, drawn = use.sheet(tmp_path / "photos", tmp_path / f"{mode}.png", {}, sets={"augmentation": mode}, rows=3)
        assert drawn["names"] == [f"photo {k}.png" for k in drawn["pictures"]] and len(drawn["names"]) == 3
        assert [row[0].name for row in grids[-1].rows] == drawn["names"]
        shown.append(np.asarray(Image.open(out)))
    assert shown[0].shape == shown[1].shape and (shown[0] != shown[1]).mean() > 0.01


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("photo 1.png", "photo 1.png"),
        ("a folder/of long names/and one more/IMG_20230101_0001.jpg", "...one more/IMG_20230101_0001.jpg"),
        ("one\ntwo\x1b[31m\u202egpj.png", "one\\ntwo\\x1b[31m\\u202egpj.png"),
        ("\udcff.png", "\\udcff.png"),
        ("\u732b.png", "\\u732b.png"),
    ],
)
def test_names_are_printable_and_keep_their_end(name: str, wanted: str) -> None:
    """Signs that the font has no letter for are written as numbers: two such names would look the same."""
    font = ImageFont.load_default(sheet_module.LETTER)
    got = sheet_module.name_line(name, sheet_module.SIDE, font)
    assert font.getlength(got) <= sheet_module.SIDE and got.isprintable()
    assert got == wanted or (got.startswith("...") and wanted.endswith(got[3:]) and len(got) > 20)


def test_a_row_begins_with_the_name_of_its_picture(tmp_path: Path) -> None:
    pack = open_pack(open_source(pictures(4)), short_side=None)
    names = ["first.png", "x" * 100_000, "\u0301" * 500 + "\n" * 500, "last/of/all.png"]
    grid = view_grid(pack, (View(),), 16, rows=3, repeats=1, names=names)
    assert [row[0].name for row in grid.rows] == [names[k] for k in grid.drawn["pictures"]]
    assert not any(cell.name for row in grid.rows for cell in row[1:])
    bare = view_grid(pack, (View(),), 16, rows=3, repeats=1)
    named, plain = (
        np.asarray(Image.open(contact_sheet(g, tmp_path / f"{k}.png"))).astype(int) for k, g in enumerate((grid, bare))
    )
    differs = (named != plain).any(2)
    step = sheet_module.SIDE + sheet_module.GAP
    for r in range(3):
        top = sheet_module.HEAD + sheet_module.GAP + r * (step + sheet_module.LINES * sheet_module.LINE) + sheet_module.SIDE
        words = differs[top : top + sheet_module.LINE + 2, :step]
        assert words.any()
        differs[top : top + sheet_module.LINE + 2, :step] = False
    assert not differs.any()  # neither over a picture nor beside it


def test_a_sheet_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = view_grid(open_pack(open_source(pictures(2)), short_side=None), (View(),), 16, rows=1, repeats=1)

    def fail(image: Image.Image, file: object, *_: object, **__: object) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"half a picture")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(SmallviewError, match=r"cannot write .*sheet\.png: No space left"):
        contact_sheet(grid, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_words_fit_below_a_picture() -> None:
    """Nothing that was drawn is cut off, whatever the order that the words come in."""
    random, font = np.random.default_rng(0), ImageFont.load_default(sheet_module.LETTER)
    for _ in range(300):
        p = replace(
            neutral(np.array([[0.0, 0.0, *random.uniform(60, 200, 2)]]), np.array([True]), 64),
            **{name: random.uniform(0.6, 1.4, 1) for name in ("brightness", "contrast", "saturation")},
            hue=random.uniform(-0.1, 0.1, 1),
            grayscale=np.array([True]),
            blur_sigma=random.uniform(0.3, 9.0, 1),
            solarize=np.array([True]),
            order=random.permutation(4)[None],
        )
        words = told(View(noise=0.25), p, 0, 40_000.0, masked=True, mode="parity")
        assert ", ".join(sheet_module.lines_of(words, sheet_module.SIDE, font)) == ", ".join(words)
