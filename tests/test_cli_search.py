"""`smallview search` and `smallview cluster` as one types them: what is nearest, what belongs together, sheets, and one line for each error."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_embedded
from PIL import Image

import smallview as sv
from smallview.cli import main

pytestmark = pytest.mark.usefixtures("apart")
COLOURS = {"red": (200, 40, 30), "green": (40, 190, 50), "blue": (40, 60, 210)}
EACH = 6


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of three colours, in their own folders, an encoder that sees colours, and pictures to ask with."""
    random = np.random.default_rng(0)

    def draw(path: str, colour: tuple[int, int, int]) -> None:
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shade = np.array(colour) + random.integers(-25, 26, 3)
        Image.fromarray(np.uint8(np.clip(shade + random.integers(-9, 10, (10, 14, 3)), 0, 255))).save(place)

    for name, colour in COLOURS.items():
        for i in range(EACH):
            draw(f"photos/{name}/{i}.png", colour)
        draw(f"asked/{name}.png", colour)
    test_embedded.save(tmp_path / "encoder")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    capsys.readouterr()
    code = 0
    try:
        main([*words, "--threads", "1"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, *capsys.readouterr()


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_neighbours_are_of_the_same_colour_and_stand_on_a_sheet(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "search", "encoder", "asked/red.png", "--in", "photos", "--top", "5", "--out", "sheet.png")
    assert code == 0 and out.count("red/") == 5 and out.splitlines()[-1] == "sheet.png" and "itself" not in err
    with Image.open("sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90)
    # five pictures of 14 x 10, whole, 144 pixels wide, and the query
    assert 6 * 144 * 102 * 0.9 < red.sum() < 6 * 144 * 104 * 1.1
    found = told(capsys, "search", "encoder", "asked", "--in", "photos", "--top", "4", "-q")
    assert [each["query"] for each in found["queries"]] == ["blue.png", "green.png", "red.png"] and found["sheet"] is None
    for each in found["queries"]:
        scores = [near["score"] for near in each["neighbours"]]
        assert scores == sorted(scores, reverse=True) and each["itself"] is None
        assert {near["class"] for near in each["neighbours"]} == {each["query"].removesuffix(".png")}
        assert all(near["name"].startswith(near["class"]) for near in each["neighbours"])


def test_several_queries_as_files(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "search", "encoder", "asked/red.png", "asked/blue.png", "broken.png", "--in", "photos")
    assert [each["query"] for each in found["queries"]] == ["asked/red.png", "asked/blue.png"] and found["left_out"] == [
        "broken.png"
    ]


def test_a_query_is_left_out_of_its_own_neighbours(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "search", "encoder", "photos/red/3.png", "--in", "photos", "--top", "5")
    assert code == 0 and "3.png is in photos itself, as red/3.png; it is left out" in err and "red/3.png" not in out
    # a copy of it under another name is a neighbour, and the nearest; which of the two is asked for decides
    shutil.copy("photos/red/3.png", "photos/blue/again.png")
    for query, other in (("photos/red/3.png", "blue/again.png"), ("photos/blue/again.png", "red/3.png")):
        (each,) = told(capsys, "search", "encoder", query, "--in", "photos")["queries"]
        assert each["itself"] == query.removeprefix("photos/") and each["neighbours"][0]["name"] == other
        assert each["neighbours"][0]["score"] > 0.99999 and len(each["neighbours"]) == 12
    # the same name with other pixels is another picture
    (desk / "elsewhere").mkdir()
    shutil.copy("asked/red.png", "elsewhere/3.png")
    assert told(capsys, "search", "encoder", "elsewhere/3.png", "--in", "photos")["queries"][0]["itself"] is None


def test_all_are_told_where_there_are_fewer_than_asked_for(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "search", "encoder", "photos/red/0.png", "--in", "photos", "--top", "99", "--out", "s.png")
    assert code == 0 and "photos has 17 other pictures, fewer than --top 99; all are told" in err


def test_written_embeddings_are_searched_and_sorted(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "embed", "encoder", "photos", "--out", "e", "-q")[0] == 0
    for data in ("e", "photos"):
        found = told(capsys, "search", "encoder", "asked/green.png", "--in", data, "--out", "s.png")
        assert {near["class"] for near in found["queries"][0]["neighbours"][:EACH]} == {"green"}
    index = [json.loads(line)["name"] for line in Path("e/index.jsonl").read_text().splitlines()]
    near = told(capsys, "search", "encoder", "asked/green.png", "--in", "e")["queries"][0]["neighbours"][0]
    assert index[near["position"]] == near["name"]
    shutil.move("photos", "moved")
    assert run(capsys, "search", "encoder", "asked/green.png", "--in", "e")[0] == 0  # names need no pictures
    code, _, err = run(capsys, "search", "encoder", "asked/green.png", "--in", "e", "--out", "s.png", "-q")
    assert code == 3 and "name them with --pictures" in err
    assert run(capsys, "search", "encoder", "asked/green.png", "--in", "e", "--out", "s.png", "--pictures", "moved")[0] == 0
    assert told(capsys, "cluster", "encoder", "e", "--pictures", "moved", "--out", "c", "--k", "3", "-q")["k"] == 3


def test_search_from_python(desk: Path) -> None:
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((desk / "photos").rglob("*.png"))])
    found = sv.search("encoder", pictures[[2, 16]], pictures, top=3, threads=1)
    assert found.itself == ("02", "16") and found.queries == ("0", "1")
    for own, names, scores, positions in zip((2, 16), found.names, found.scores, found.positions, strict=True):
        assert len(names) == len(scores) == 3 and [int(name) for name in names] == positions.tolist()
        assert own not in positions and set(positions // EACH) == {own // EACH} and scores.dtype == np.float32


def test_clusters_are_the_colours(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("photos").rglob("*")}
    code, out, _ = run(capsys, "cluster", "encoder", "photos", "--k", "3", "--out", "c")
    assert (
        code == 0
        and "NMI 1.00, 100 % right" in out
        and {path: path.stat().st_mtime_ns for path in Path("photos").rglob("*")} == before
    )
    names = ["cluster-00.png", "cluster-01.png", "cluster-02.png", "clusters.csv", "overview.png", "summary.json"]
    assert sorted(path.name for path in Path("c").iterdir()) == names
    with open("c/clusters.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["name"] for line in table] == sorted(f"{name}/{i}.png" for name in COLOURS for i in range(EACH))
    for c in range(3):
        members = sorted(
            (int(line["rank"]), float(line["distance"]), line["name"]) for line in table if line["cluster"] == str(c)
        )
        assert [rank for rank, _, _ in members] == list(range(1, EACH + 1)) and len(
            {name.split("/")[0] for _, _, name in members}
        ) == 1
        assert [far for _, far, _ in members] == sorted(far for _, far, _ in members)
        assert json.loads(Path("c/summary.json").read_text())["most_typical"][c][0] == members[0][2]
    first = Path("c/clusters.csv").read_bytes()
    assert run(capsys, "cluster", "encoder", "photos", "--k", "2", "--out", "c")[0] == 0
    assert not Path("c/cluster-02.png").exists() and Path("c/clusters.csv").read_bytes() != first
    Path("c/cluster-99.png").write_bytes(b"someone's own")
    assert run(capsys, "cluster", "encoder", "photos", "--k", "3", "--out", "c")[0] == 0
    assert Path("c/clusters.csv").read_bytes() == first and Path("c/cluster-99.png").exists()


def test_auto_says_what_it_chose(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = np.concatenate(
        [np.stack([np.asarray(Image.open(p)) for p in sorted(Path("photos", name).iterdir())]) for name in COLOURS]
    )
    found = sv.cluster("encoder", np.concatenate([pictures, pictures // 2 * 2, pictures | 1]), threads=1)
    assert found.k == 3 and found.sizes == (18, 18, 18) and list(found.silhouettes) == [2, 3, 4, 5]
    _, out, err = run(capsys, "cluster", "encoder", "photos", "--out", "c", "--json")
    assert err.splitlines()[-1].startswith(f"k is {json.loads(out)['k']}, whose silhouette is highest (")


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ("search encoder notes.txt --in photos", "notes.txt is no set of pictures", 3),
        ("search encoder broken.png --in photos", "broken.png", 3),
        ("search encoder nowhere.png --in photos", "there is no nowhere.png", 3),
        ("search encoder asked/red.png --in nowhere", "there is no nowhere", 3),
        ("search nothing asked/red.png --in photos", "nothing", 2),
        ("search encoder --in photos", "no query; wanted a picture", 2),
        ("search encoder asked/red.png", "--in", 2),
        ("search encoder asked/red.png --in photos --top 0", "--top is 0; wanted 1 or more", 2),
        ("search encoder asked/red.png --in photos --out sheet.doc", "ending in .png", 2),
        ("search encoder asked/red.png --in photos --pictures photos", "pictures already", 2),
        ("search other asked/red.png --in e", "are of another encoder (encoder, ", 3),
        ("cluster other e --out c", "are of another encoder (encoder, ", 3),
        ("cluster encoder photos --out c --k 0", "--k is 0; wanted auto", 2),
        ("cluster encoder photos --out c --k some", "--k is some; wanted auto", 2),
        ("cluster encoder photos --out c --k 19", "--k is 19 and photos has 18 pictures to sort", 2),
        ("cluster encoder copies --out c --k 2", "1 different pictures to the encoder", 2),
        ("cluster encoder copies --out c", "4 or more to choose a number", 3),
        ("cluster encoder photos --out notes.txt", "a file is in its place", 1),
    ],
)
def test_one_line_for_what_cannot_be_meant(
    desk: Path, capsys: pytest.CaptureFixture[str], words: str, message: str, code: int
) -> None:
    test_embedded.save(desk / "other", seed=1)
    (desk / "copies").mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy("asked/red.png", desk / "copies" / name)
    if " e" in words:
        sv.embed("encoder", "photos", out="e", threads=1, quiet=True)
    got, out, err = run(capsys, *words.split())
    assert (got, out) == (code, "") and message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("smallview: ") and "Traceback" not in err and not Path("c").exists()
