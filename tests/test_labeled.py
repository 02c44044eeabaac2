"""`select --by labels`: what labels say is used, rounds are gone on from, and nothing that was filled in is lost."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import smallview as sv
from smallview.cli import main
from smallview.errors import DataError, UsageError
from smallview.labeled import several

pytestmark = pytest.mark.usefixtures("one_thread")
FLAT = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())


def shades(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pictures brighter at the left or at the right, and some that are neither; their labels; which ones are neither)."""
    random = np.random.default_rng(seed)
    side = np.concatenate([np.repeat([-1.0, 1.0], n // 3), random.uniform(-0.2, 0.2, n // 3)])
    slope = side[:, None, None, None] * np.linspace(-40, 40, 16)[None, None, :, None]
    x = 128 + slope + random.normal(0, 20, (n, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(x, 0, 255).astype(np.uint8), (side > 0).astype(int), np.arange(n) >= 2 * (n // 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures under numbers, in no class folders."""
    root = tmp_path_factory.mktemp("pictures")
    for i, picture in enumerate(shades()[0]):
        Image.fromarray(picture).save(root / f"{i:02}.png")
    return root


KNOWN = {i: "left" for i in range(6)} | {i: "right" for i in range(30, 36)}


def test_what_the_labels_leave_unsure_is_chosen_first() -> None:
    x, _, middle = shades()
    said: list[str] = []
    blind = sv.select(FLAT, x, 10, labeled=KNOWN, threads=1, keep=False)
    aware = sv.select(FLAT, x, 10, labeled=KNOWN, by="labels", threads=1, keep=False, say=said.append)
    assert middle[aware.positions].mean() > 0.8 and middle[aware.positions].sum() > middle[blind.positions].sum() and said == []
    assert (blind.by, blind.classes, blind.right, blind.chosen[0].unsure) == ("coverage", {}, None, None)
    assert (aware.by, aware.classes, aware.labeled, aware.right) == ("labels", {"left": 6, "right": 6}, 12, 1.0)
    assert not set(aware.positions) & set(KNOWN) and all(0 <= one.unsure <= 1 for one in aware.chosen if one.unsure is not None)
    four = sv.select(FLAT, x, 4, labeled=KNOWN, by="labels", threads=1, keep=False)
    assert four.positions.tolist() == aware.positions[:4].tolist()
    # which labels these are matters, what they are called does not
    renamed = {i: {"left": 7, "right": 3}[label] for i, label in KNOWN.items()}
    again = sv.select(FLAT, x, 10, labeled=renamed, by="labels", threads=1, keep=False)
    assert again.chosen == aware.chosen and again.classes == {"3": 6, "7": 6}


def test_the_blind_choice_looks_at_no_label() -> None:
    x, labels, _ = shades()
    first = sv.select(FLAT, x, 10, labeled=list(KNOWN), threads=1, keep=False)
    for values in (KNOWN, dict.fromkeys(KNOWN, "one"), [*KNOWN.items(), (0, "right")]):
        assert sv.select(FLAT, (x, labels), 10, labeled=values, threads=1, keep=False).chosen == first.chosen


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({}, "0 labels of 0 classes"),
        ({3: "cat"}, "1 label of 1 class cannot"),
        (dict.fromkeys(range(9), "cat"), "9 labels of 1 class cannot"),
        ({1: "cat", 2: "cat", 31: "dog"}, "3 labels of 2 classes"),
        ({1: "", 2: None, 3: float("nan"), 4: " "}, "0 labels of 0 classes"),
    ],
)
def test_with_too_few_labels_it_is_coverage_and_said(labels: dict[int, object], told: str) -> None:
    x, said = shades()[0], []
    made = sv.select(FLAT, x, 5, labeled=labels, by="labels", threads=1, keep=False, say=said.append)
    had = [i for i, label in labels.items() if str(label).strip() not in ("", "None", "nan")]
    blind = sv.select(FLAT, x, 5, labeled=had, threads=1, keep=False)
    assert made == blind and made.by == "coverage"
    assert [line for line in said if line.startswith(f"chosen by coverage: {told}")] == said and len(said) == 1


def test_lists_mappings_folders_and_arrays_say_the_same(folder: Path, tmp_path: Path) -> None:
    x, said = shades()[0], []
    names = {f"{i:02}.png": label for i, label in KNOWN.items()}
    half = dict(list(names.items())[:8])
    (tmp_path / "a.csv").write_text("name;label\n" + "".join(f"{name};{label}\n" for name, label in half.items()) + "40.png;\n")
    rest = {name: label for name, label in names.items() if name not in half} | {"00.png": "left", "gone.png": "left"}
    (tmp_path / "b.csv").write_text("label,name\n" + "".join(f"{label},{name}\n" for name, label in rest.items()))
    first = sv.select(FLAT, folder, 8, labeled=KNOWN, by="labels", threads=1)
    files = [tmp_path / "a.csv", str(tmp_path / "b.csv")]
    assert sv.select(FLAT, folder, 8, labeled=files, by="labels", threads=1, say=said.append).chosen == first.chosen
    assert [line for line in said if "gone.png" in line] == [f"1 of 6 names in {files[1]} are not in {folder.name} (gone.png)"]
    for value in (
        names,
        list(names.items()),
        list(KNOWN.items()),
        [files[0], rest],
        [half, {i: KNOWN[i] for i in (32, 33, 34, 35)}],
    ):
        assert sv.select(FLAT, folder, 8, labeled=value, by="labels", threads=1).chosen == first.chosen
    # other pictures, in class folders or with labels beside them
    for i, label in KNOWN.items():
        (tmp_path / "had" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i]).save(tmp_path / "had" / label / f"{i}.png")
    others = [i for i in range(90) if i not in KNOWN]
    numbers = np.array([int(label == "right") for label in KNOWN.values()])
    by_folder = sv.select(FLAT, x[others], 8, labeled=tmp_path / "had", by="labels", threads=1, keep=False)
    by_array = sv.select(FLAT, x[others], 8, labeled=(x[list(KNOWN)], numbers), by="labels", threads=1, keep=False)
    assert (
        by_folder.chosen == by_array.chosen
        and by_folder.classes == {"left": 6, "right": 6}
        and by_array.classes == {"0": 6, "1": 6}
    )
    assert [others[i] for i in by_folder.positions] == first.positions.tolist()
    # names that are labels of the data's own folder and of another count as one class
    both = sv.select(FLAT, x[others], 8, labeled=[tmp_path / "had", {0: "left"}], by="labels", threads=1, keep=False)
    assert both.classes == {"left": 7, "right": 6}


def test_one_picture_has_one_label(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,label\n00.png,cat\n01.png,dog\n")
    (tmp_path / "b.csv").write_text("name,label\n00.png,dog\n01.png,dog\n")
    with pytest.raises(UsageError, match=r'00.png is "cat" in .*a.csv and "dog" in .*b.csv; wanted one label'):
        sv.select(FLAT, folder, 3, labeled=[tmp_path / "a.csv", tmp_path / "b.csv"], by="labels", threads=1)
    with pytest.raises(UsageError, match=r'00.png is ".*" in labeled and ".*" in labeled'):
        sv.select(FLAT, folder, 3, labeled=[("00.png", "cat"), (0, "dog")], by="labels", threads=1)
    said: list[str] = []
    sv.select(FLAT, folder, 3, labeled={0: "cat", 1: "Cat", 2: "cat", 3: "Cat"}, by="labels", threads=1, say=said.append)
    assert '"Cat" and "cat" differ only in capitals and count as two classes' in said


def test_a_list_of_names_alone_takes_no_label_away(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"{i:02}.png\n" for i in (*KNOWN, 50)))
    said: list[str] = []
    for values in ([KNOWN, tmp_path / "names.txt"], [tmp_path / "names.txt", KNOWN]):
        made = sv.select(FLAT, folder, 8, labeled=values, by="labels", threads=1, say=said.append)
        assert (made.labeled, made.classes) == (13, {"left": 6, "right": 6}) and 50 not in made.positions
    # and who asks for no label hears nothing of labels
    sv.select(FLAT, folder, 3, labeled={0: "cat", 1: "Cat"}, threads=1, say=said.append)
    assert not [line for line in said if "kept" not in line]


@pytest.mark.parametrize(
    ("value", "error", "wanted"),
    [
        ({"none.png": "cat"}, DataError, "labeled has 1 name (none.png)"),
        ({90: "cat"}, UsageError, "labeled has positions from 90 to 90; wanted 0 to 89"),
        ({(1, 2): "cat"}, UsageError, "labeled has the key (1, 2); wanted names or positions"),
        (np.arange(91), UsageError, "positions from 0 to 90"),
    ],
)
def test_what_cannot_be_meant_says_so(folder: Path, value: object, error: type[Exception], wanted: str) -> None:
    with pytest.raises(error) as told:
        sv.select(FLAT, folder, 3, labeled=value, by="labels", threads=1)
    assert wanted in str(told.value)


def test_a_list_is_one_value_or_several() -> None:
    for one in ([1, 2], ["a.png", "b.jpg"], [("a.png", "cat")], [["a.png", "cat"], [3, "dog"]]):
        assert several(one) == [one]
    for many in (["a.csv", "b.csv"], ["a.csv", {0: "cat"}], [{0: "cat"}], [Path("folder"), Path("b.csv")], ["a.npz"]):
        assert several(many) == many
    pair = (np.zeros((2, 4, 4)), [0, 1])
    assert several(pair) == [pair] and several(None) == several([]) == several(()) == []


# ---- as one types it ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "run"
    x = shades()[0]
    return sv.pretrain(x, out=place, size=16, encoder="dense_small:8-16", batch_size=16, epochs=1, threads=1, quiet=True).path


def fill(path: Path, classes: int = 2) -> None:
    """Label all of a list, as a person would."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows([{**row, "label": f"class {int(shades()[1][int(row['name'][:2])]) % classes}"} for row in rows])


def said_next(err: str) -> list[str]:
    (line,) = [line for line in err.splitlines() if line.startswith("fill in")]
    return shlex.split(line.partition(", then: smallview ")[2])


def test_round_after_round(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "my list.csv", tmp_path / "s.png"
    words = [
        "select",
        str(run),
        str(folder),
        "--n",
        "30",
        "--by",
        "labels",
        "--threads",
        "1",
        "--out",
        str(out),
        f"--sheet={sheet}",
    ]
    names: set[str] = set()
    for turn in (1, 2, 3):
        main(words)
        told = capsys.readouterr()
        assert ("chosen by coverage: 0 labels" in told.err) == (turn == 1)
        assert ("by 30 labels of 2 classes, of which a probe from the others tells " in told.err) == (turn == 2)
        with out.open(newline="") as file:
            chosen = {row["name"]: row for row in csv.DictReader(file)}
        assert not names & set(chosen) and all((row["unsure"] != "") == (turn > 1) for row in chosen.values())
        names |= set(chosen)
        assert sheet.is_file()
        if turn == 3:
            break
        fill(out)
        words = said_next(told.err)
        files = [words[i + 1] for i, word in enumerate(words) if word == "--labeled"]
        assert files[-1] == str(out) and len(files) == turn
        out, sheet = tmp_path / f"my list-{turn + 1}.csv", tmp_path / f"s-{turn + 1}.png"
        assert words[words.index("--out") + 1] == str(out) and f"--sheet={sheet}" in words
    assert len(names) == 90 and "fill in" not in told.err  # nothing is left to choose


def test_labels_that_were_filled_in_are_never_lost(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    words = ["select", str(run), str(folder), "--n", "5", "--threads", "1", "--out", str(out)]
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["next"].endswith(f"--labeled {out} --out {tmp_path / 'a-2.csv'}")
    main(words)  # no label yet: it may be written anew
    fill(out)
    capsys.readouterr()
    kept = out.read_bytes()
    for data in (kept, kept.replace(b",", b";"), b"name,size\na.png,3\n", b"notes\nof mine\n"):
        out.write_bytes(data)
        with pytest.raises(SystemExit) as ended:
            main(words)
        told = capsys.readouterr()
        assert ended.value.code == 2 and out.read_bytes() == data and told.out == "" and len(told.err.splitlines()) == 1
        assert ("has 5 labels filled in, which would be lost" if b"class" in data else "was not written by") in told.err
    out.write_bytes(b"")
    main(words)
    assert out.stat().st_size > 100


def test_labels_filled_in_while_it_is_at_work_are_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"

    class Meanwhile(nn.Module):
        def forward(self, x: object) -> object:
            out.write_text("order,name,label\n1,00.png,cat\n")
            return FLAT(x)

    with pytest.raises(UsageError, match="has 1 label filled in"):
        sv.select(Meanwhile(), folder, 3, out=out, threads=1, keep=False)
    assert out.read_text() == "order,name,label\n1,00.png,cat\n"


LISTS = {
    "odd": "picture\n1\n",
    "two": "name,label\n00.png,cat\n",
    "one": "name,label\n00.png,dog\n",
    "away": "name,label\nx.png,cat\n",
}


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (("--by", "label"), 2, 'by is "label"; did you mean "labels"?'),
        (("--labeled", "none.csv"), 3, "there is no none.csv"),
        (("--labeled", "odd.csv", "--by", "labels"), 2, "--labeled odd.csv has no column `name`"),
        (("--labeled", "two.csv", "--labeled", "one.csv", "--by", "labels"), 2, 'and "dog" in one.csv; wanted one label'),
        (("--labeled", "away.csv", "--by", "labels"), 3, "has none of them; wanted names as in 00.png"),
    ],
)
def test_bad_lists_are_one_line(
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
    for name, text in LISTS.items():
        Path(f"{name}.csv").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["select", str(run), str(folder), "--n", "2", "--threads", "1", "--out", "o.csv", "-q", *words])
    told = capsys.readouterr()
    assert ended.value.code == code and wanted in told.err and told.out == "" and len(told.err.splitlines()) == 1
    assert not Path("o.csv").exists()
