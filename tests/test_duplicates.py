"""`smallview duplicates` and `smallview select`: planted copies in their kind, files that scripts use, one line for what cannot be meant."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import smallview as sv
from smallview.cli import main
from smallview.errors import DataError, SmallviewError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")
FLAT = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())


def scenes(n: int, seed: int = 0) -> list[Image.Image]:
    """Smooth pictures, each another one."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (n, 7, 7, 3), np.uint8)
    return [Image.fromarray(one).resize((64, 48), Image.Resampling.BICUBIC) for one in small]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for label in ("a", "b"):
        (root / label).mkdir()
    for i, picture in enumerate(scenes(40)):
        picture.save(root / "ab"[i % 2] / f"{i:02}.png")
    one, two, three, four, five = scenes(5)
    one.save(root / "a" / "exact.bmp")
    two.resize((32, 24), Image.Resampling.LANCZOS).save(root / "b" / "smaller.png")
    three.save(root / "b" / "worse.jpg", quality=60)  # and another label
    four.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "b" / "turned.png")
    five.crop((4, 3, 64, 48)).save(root / "a" / "part.png")
    (root / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return root


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[sv.Duplicates, Path]:
    out = tmp_path_factory.mktemp("found")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))
    made = sv.duplicates(FLAT, folder, out=out, threads=1)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")) == before, "nothing is touched"
    return made, out


def names(groups: tuple[tuple[object, ...], ...]) -> list[list[str]]:
    return sorted([one.name for one in group] for group in groups)  # type: ignore[attr-defined]


def test_planted_copies_are_found_in_their_kind(found: tuple[sv.Duplicates, Path]) -> None:
    made, _ = found
    assert names(made.exact) == [["a/00.png", "a/exact.bmp"]]
    assert names(made.near) == [
        ["a/02.png", "b/worse.jpg"],
        ["a/04.png", "a/part.png"],
        ["b/01.png", "b/smaller.png"],
        ["b/03.png", "b/turned.png"],
    ]
    assert made.semantic == ()
    assert (made.pictures, made.broken, made.unknown) == (45, 1, 0)
    words = {one.name: one.differs for group in (*made.near, *made.semantic) for one in group}
    assert words["b/smaller.png"][0] == "32 x 24 px, not 64 x 48" and words["b/turned.png"][0] == "mirrored"
    assert words["b/worse.jpg"][0] == "label b, not a" and words["a/part.png"][0] == "cropped to 94 %"
    assert words["a/02.png"] == ()


def test_what_is_written_can_be_used(found: tuple[sv.Duplicates, Path], folder: Path) -> None:
    made, out = found
    lines = (out / "duplicates.txt").read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert listed == list(made.spare) == ["a/exact.bmp", "a/part.png", "b/smaller.png", "b/turned.png", "b/worse.jpg"]
    assert lines[0].startswith(f"# 5 of 45 pictures of {folder}") and "--exclude" in lines[1]
    assert all((folder / name).is_file() for name in listed)
    for kind in ("exact", "near", "semantic"):
        sheet = np.asarray(Image.open(out / f"{kind}.png"))
        assert sheet.shape[1] > 300 and sheet.std() > 30
    json.dumps(made.as_dict())


def test_the_limits_are_limits(folder: Path) -> None:
    strict = sv.duplicates(FLAT, folder, semantic=0.0, mirrored=False, threads=1)
    assert not strict.semantic and ["b/03.png", "b/turned.png"] not in names(strict.near)
    uncropped = sv.duplicates(FLAT, folder, cropped=False, threads=1)
    assert names(uncropped.semantic) == [["a/04.png", "a/part.png"]] and len(uncropped.near) == 3
    loose = sv.duplicates(FLAT, folder, semantic=1.0, threads=1)
    assert sum(map(len, loose.semantic)) > 2 and strict.exact == loose.exact
    for given in ({"near": 1.0}, {"near": 0.5}, {"semantic": -0.1}, {"semantic": 1.5}, {"near": float("nan")}):
        with pytest.raises(UsageError, match=r"wanted .*default"):
            sv.duplicates(FLAT, folder, threads=1, **given)


def test_what_a_crop_is_told_beside(tmp_path: Path) -> None:
    whole = scenes(30)
    part = whole[3].crop((6, 4, 60, 46))
    part.save(tmp_path / "a.png")
    part.resize((40, 31), Image.Resampling.LANCZOS).save(tmp_path / "a2.png")
    whole[3].save(tmp_path / "b.png")
    whole[3].crop((0, 0, 50, 48)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.png")
    for k in range(4, 30):
        whole[k].save(tmp_path / f"d{k}.png")
    found = sv.duplicates(FLAT, tmp_path, threads=1)
    (group,) = found.near
    assert [one.name for one in group] == ["b.png", "a.png", "a2.png", "c.png"], (
        "the whole picture leads, though its part comes first"
    )
    assert found.spare == ("a.png", "a2.png", "c.png"), "and is what a list of all others keeps"
    assert group[1].differs[0].startswith("cropped to 8") and group[1].differs[1] == "54 x 42 px, not 64 x 48"
    assert group[2].differs[0] == "beside a.png" and group[2].differs[1] == "40 x 31 px, not 54 x 42"
    assert "mirrored" in group[3].differs and any(word == "cropped to 78 by 100 %" for word in group[3].differs)


def test_two_witnesses_find_small_copies_that_thumbnails_alone_miss(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (60, 32, 32, 3))
    x = np.stack([np.asarray(Image.fromarray(np.uint8(np.clip(128 + 50 * one, 0, 255)))) for one in x])
    noisy = np.uint8(np.clip(x[8].astype(int) + random.normal(0, 9, (32, 32, 3)), 0, 255))
    for mode, same in (("copy", True), ("other", False)):
        y = x.copy()
        y[50] = noisy if same else x[50]
        near = sv.duplicates(FLAT, y, threads=1, keep=False).near
        assert [[one.position for one in group] for group in near] == ([[8, 50]] if same else []), mode


def test_select_looks_at_no_label_and_every_beginning_is_a_choice(folder: Path, tmp_path: Path) -> None:
    x = np.stack([np.asarray(one) for one in scenes(40)])
    first = sv.select(FLAT, x, 20, threads=1, keep=False)
    for labels in (np.zeros(40, int), np.arange(40) % 7, np.random.default_rng(1).integers(0, 3, 40)):
        assert sv.select(FLAT, (x, labels), 20, threads=1, keep=False).positions.tolist() == first.positions.tolist()
    assert sv.select(FLAT, x, 7, threads=1, keep=False).positions.tolist() == first.positions[:7].tolist()
    assert sum(one.stands_for for one in first.chosen) == 40 and first.chosen[0].order == 1


def test_labels_that_are_filled_in_are_gone_on_from(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "first.csv", tmp_path / "first.png"
    whole = sv.select(FLAT, folder, 20, out=out, sheet=sheet, threads=1)
    with Image.open(sheet) as shown:
        assert shown.width > 1000
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [one.name for one in whole.chosen] and {row["label"] for row in rows} == {""}
    rest = sv.select(FLAT, folder, 10, labeled=out, threads=1)
    assert rest.labeled == 0 and rest.chosen[0].name == whole.chosen[0].name
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows([{**row, "label": "cat" if int(row["order"]) <= 10 else " "} for row in rows])
    rest = sv.select(FLAT, folder, 10, labeled=out, threads=1)
    assert [one.name for one in rest.chosen] == [one.name for one in whole.chosen[10:]] and rest.labeled == 10
    (tmp_path / "list.txt").write_text("\n".join([*(row["name"] for row in rows[:10]), "gone.png"]))
    said: list[str] = []
    again = sv.select(FLAT, folder, 10, labeled=tmp_path / "list.txt", threads=1, say=said.append)
    assert again.chosen == rest.chosen and any("1 of 11 names" in line and "gone.png" in line for line in said)
    for positions in (whole.positions[:10], whole.positions[:10].tolist()):
        assert sv.select(FLAT, folder, 10, labeled=positions, threads=1).chosen == rest.chosen
    with pytest.raises(UsageError, match=r"positions from 3 to 99; wanted 0 to 45"):
        sv.select(FLAT, folder, 10, labeled=[3, 99], threads=1)


def test_other_pictures_with_labels_are_covered_already(tmp_path: Path) -> None:
    x = np.stack([np.asarray(one) for one in scenes(40)])
    (tmp_path / "had").mkdir()
    first = sv.select(FLAT, x, 1, threads=1, keep=False).positions[0]
    Image.fromarray(x[first]).save(tmp_path / "had" / "x.png")
    rest = sv.select(FLAT, x, 39, labeled=tmp_path / "had", threads=1, keep=False)
    assert first not in rest.positions[:20] and rest.labeled == 1 and rest.before > 0


def test_names_that_a_spreadsheet_would_compute_come_back(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, picture in zip(
        ("=cmd().png", "+1.png", "a,b.png", os.fsdecode(b"\xff.png"), "plain.png"), scenes(5), strict=True
    ):
        picture.save(tmp_path / "set" / name)
    sv.select(FLAT, tmp_path / "set", 5, out=tmp_path / "a.csv", threads=1)
    raw = (tmp_path / "a.csv").read_bytes()
    assert b",'=cmd().png," in raw and b',"a,b.png",' in raw
    (tmp_path / "b.csv").write_bytes(raw.replace(b",\n", b",dog\n"))
    with pytest.raises(UsageError, match="has 0 to choose from"):
        sv.select(FLAT, tmp_path / "set", 1, labeled=tmp_path / "b.csv", threads=1)


def code_of(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = np.stack([np.asarray(one) for one in scenes(16)])
    place = tmp_path_factory.mktemp("run") / "run"
    return sv.pretrain(x, out=place, size=16, encoder="dense_small:8-16", batch_size=8, epochs=1, threads=1, quiet=True).path


def test_the_verbs_as_one_types_them(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["duplicates", str(run), str(folder), "--out", str(tmp_path / "d"), "--threads", "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["exact"][0]] == ["a/00.png", "a/exact.bmp"] and told["limits"]["near"] == 0.995
    assert all(Path(path).is_file() for path in (told["list"], *told["sheets"]))
    main(["duplicates", str(run), str(folder), "--out", str(tmp_path / "d"), "-q"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "exact: 1 group, 1 beside the first of each; the same pixels" and lines[-1] == str(
        tmp_path / "d" / "semantic.png"
    )
    main(["select", str(run), str(folder), "--n", "3", "--out", str(tmp_path / "s.csv"), "--json", "-q"])
    told = json.loads(capsys.readouterr().out)
    assert [one["order"] for one in told["chosen"]] == [1, 2, 3] and told["csv"] == str(tmp_path / "s.csv")
    # what embed wrote does as well, and what belongs to another encoder does not
    main(["embed", str(run), str(folder), "--out", str(tmp_path / "e"), "-q"])
    main(["select", str(run), str(tmp_path / "e"), "--n", "3", "--out", str(tmp_path / "t.csv"), "-q"])
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (("select", "RUN", "FOLDER", "--n", "999", "--out", "s.csv"), 2, "999 pictures are asked for and"),
        (("select", "RUN", "FOLDER", "--n", "0", "--out", "s.csv"), 2, "wanted 1 or more pictures to label"),
        (("select", "RUN", "FOLDER", "--out", "s.txt"), 2, "wanted a file ending in .csv"),
        (("select", "RUN", "FOLDER", "--out", "s.csv", "--sheet", "s.gif"), 2, "wanted a picture file"),
        (
            ("select", "RUN", "FOLDER", "--n", "2", "--out", "s.csv", "--labeled", "names.txt"),
            3,
            "has none of them; wanted names as in a/00.png",
        ),
        (("select", "RUN", "FOLDER", "--n", "2", "--out", "s.csv", "--labeled", "other.csv"), 2, "has no column `name`"),
        (("select", "RUN", "empty", "--n", "2", "--out", "s.csv"), 3, "no pictures in"),
        (("select", "none", "FOLDER", "--n", "2", "--out", "s.csv"), 2, "none"),
        (("duplicates", "RUN", "empty", "--out", "d"), 3, "no pictures in"),
        (("duplicates", "RUN", "FOLDER", "--out", "names.txt"), 1, "a file is in its place"),
        (("duplicates", "RUN", "FOLDER", "--out", "d", "--near", "2"), 2, "near is 2; wanted"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    words: tuple[str, ...],
    code: int,
    wanted: str,
    run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("names.txt").write_text("not/there.png\n")
    Path("other.csv").write_text("picture,class\n1,2\n")
    assert code_of(*(str(run) if word == "RUN" else str(folder) if word == "FOLDER" else word for word in words)) == code
    said = capsys.readouterr()
    assert wanted in said.err and said.out == "" and "Traceback" not in said.err
    assert sorted(os.listdir()) == ["empty", "names.txt", "other.csv"]


def test_features_in_which_there_is_nothing(tmp_path: Path) -> None:
    class Blind(nn.Module):
        def forward(self, x: object) -> object:
            return FLAT(x) * 0  # type: ignore[operator]

    x = np.stack([np.asarray(one) for one in scenes(12)])
    for work in (
        lambda: sv.duplicates(Blind(), x, threads=1, keep=False),
        lambda: sv.select(Blind(), x, 2, threads=1, keep=False),
    ):
        with pytest.raises(DataError, match="gives no picture of"):
            work()
    with pytest.raises(SmallviewError):
        sv.select(FLAT, x[:0], 1, threads=1, keep=False)
