"""Whole reports: what they tell, what they keep to themselves, and that nothing in a folder can break or abuse them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path

import chromium
import numpy as np
import pytest
from pages import read
from PIL import Image

import smallview
from smallview import report_pictures, reporting
from smallview.account import Group, read_account
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.evaluation.metrics import t_factor
from smallview.records import Row
from smallview.report_verdict import judged, lead
from smallview.reporting import report

NAMES = [
    *(
        "<script>alert(1)<",
        '"onmouseover=alert(1) x="',
        "'><img src=x onerror=alert(1)>",
        "\u202egnp.exe",
        "new\nline",
        "=cmd()",
    ),
    *("\x1b[31mred", "שלום", "&lt;b&gt;", "javascript:alert(1)", "{{7*7}}", "url(http:"),
]
CLASSES = ["<b>bold<b>", "\u202e<style>*{display:none}", '"><svg onload=alert(2)>']


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of hostile names below one of a person's name, and a run on it that has been judged."""
    root = tmp_path_factory.mktemp("root") / "ann smith"
    draw = np.random.default_rng(0)
    for c, kind in enumerate(CLASSES):
        (root / "photos" / kind).mkdir(parents=True)
        for name in NAMES:
            pixels = np.clip(draw.normal(60 + 60 * c, 30, (20, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / kind / f"{name}.png")
    with open(os.fsencode(root / "photos" / CLASSES[0]) + b"/bad\xff\xfe.png", "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    out = root / "runs" / "<img src=x onerror=alert(3)>"
    smallview.pretrain(
        str(root / "photos"), encoder="dense_small:8-16-32", epochs=2, size=12, batch_size=8, threads=1, out=out, quiet=True
    )
    smallview.evaluate(out, str(root / "photos"), str(root / "photos"), "knn,linear", threads=1)
    return root


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(next((place / "runs").iterdir()), tmp_path / "run"))


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    return report(next((place / "runs").iterdir()), place / "page.html", threads=1).read_text(encoding="utf-8")


def test_all_parts_are_there(page: str) -> None:
    found = read(page)
    titles = re.findall(r'<h2 id="[a-z-]+">([^<]+)</h2>', page)
    assert titles == ["Verdict", "What it is", "Results", "Training", "Pictures", reporting.TWICE, "Views", "Settings"]
    assert "1 of 37 pictures is there already" in found.text and "1 group." in found.text  # the one with bytes in its name
    assert "37 pictures of photos" in found.text and "By linear top-1 %: " in found.text
    assert "test pictures have a near-duplicate among those fitted on" in found.text  # tested on what was fitted on
    assert "frozen backbone features" in found.text and "format_version" in found.text
    assert page.count('class="p h') == 37 and "<caption>" in page and "<figcaption>" in page
    for name, attributes in found.tags:
        if name in ("svg",) or attributes.get("role") == "img":
            assert attributes.get("aria-label"), (name, attributes)
    links = {str(a["href"]) for name, a in found.tags if name == "a"}
    assert links <= {f"#{a['id']}" for _, a in found.tags if "id" in a}


def test_nothing_of_the_data_is_markup(page: str) -> None:
    found = read(page)
    assert all(not key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert [name for name, _ in found.tags].count("script") == 1 and not {"img", "iframe", "link"} & {n for n, _ in found.tags}
    assert all(key not in ("src", "srcset", "action", "data") for _, attributes in found.tags for key in attributes)
    assert all(sign.isprintable() or sign == "\n" for sign in page)
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(str(a["content"]) for n, a in found.tags if n == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'") and f"'sha256-{digest}'" in policy
    assert len(re.findall(r"url\((?!data:image/jpeg;base64,)", page.partition("</style>")[0])) == 0


def test_no_place_on_the_machine_is_told_unless_asked_for(place: Path, page: str) -> None:
    text = read(page).text + str([attributes for _, attributes in read(page).tags])
    for secret in ("ann smith", str(place), str(place.parent), "/tmp", str(Path.home())):
        assert secret not in text, secret
    told = report(next((place / "runs").iterdir()), place / "told.html", paths=True, threads=1).read_text(encoding="utf-8")
    assert str(place / "photos") in told


def test_the_same_again_is_the_same_to_the_byte(place: Path, page: str) -> None:
    assert report(next((place / "runs").iterdir()), place / "again.html", threads=1).read_text(encoding="utf-8") == page


@pytest.mark.skipif(chromium.find() is None, reason="no Chromium here: SMALLVIEW_CHROMIUM names one")
def test_a_browser_asks_for_nothing_and_runs_nothing(place: Path, page: str, tmp_path: Path) -> None:
    browser = chromium.find()
    assert browser is not None
    with chromium.Page(browser, tmp_path / "profile") as shown:
        moved = Path(shutil.copy(place / "page.html", tmp_path / "mailed.html"))
        for width, dark in ((400, False), (1400, True)):
            shown.open(moved, width, dark=dark)
            assert shown.requests() == [] and shown.complaints() == [] and shown.seen("Page.javascriptDialogOpening") == []
            assert shown.run("document.scripts.length") == 1
            assert shown.run("document.documentElement.scrollWidth") <= width
            ink, paper = (shown.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
            assert (sum(map(int, re.findall(r"\d+", paper))) < sum(map(int, re.findall(r"\d+", ink)))) == dark
        first = shown.run("(() => { document.querySelector('.p').focus(); return document.activeElement.ariaLabel })()")
        seen = {first}
        for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
            shown.press(key)
            seen.add(shown.run("document.activeElement.ariaLabel"))
        assert len(seen) > 1 and shown.run("getComputedStyle(document.activeElement, '::after').backgroundImage.length") > 100
        assert shown.run("document.querySelectorAll('.p[tabindex=\"0\"]').length") == 1
        shown.run("document.getElementById('k0').click()")
        assert shown.run("getComputedStyle(document.querySelector('.p:not(.h0)')).pointerEvents") == "none"
        assert shown.complaints() == [] and shown.requests() == []
        # what the policy is for: a script that came into the page does not run
        planted = page.replace("<main", "<script>document.title='mine'</script><img src='http://127.0.0.1:9/x.png'><main")
        (tmp_path / "planted.html").write_text(planted, encoding="utf-8")
        shown.open(tmp_path / "planted.html")
        assert shown.run("document.title") != "mine" and shown.complaints() != []


def test_seeds_are_one_group_and_groups_are_compared(place: Path, tmp_path: Path) -> None:
    pictures = str(place / "photos")
    for name, method, seed in (("a", "simclr", 0), ("b", "simclr", 1), ("c", "byol", 0)):
        smallview.pretrain(
            pictures,
            method,
            "dense_small:8-16-32",
            epochs=1,
            size=12,
            batch_size=16,
            threads=1,
            seed=seed,
            out=tmp_path / name,
            quiet=True,
        )
        smallview.evaluate(tmp_path / name, pictures, pictures, "linear", threads=1)
    text = read(report([tmp_path / "a", tmp_path / "b", tmp_path / "c"], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "simclr, 2 seeds" in text and "byol against simclr" in text and "As seen by the encoder of a." in text
    with pytest.raises(UsageError, match="twice"):
        report([tmp_path / "a", tmp_path / "b/../a"], tmp_path / "r.html")


def test_stages_are_marked_on_the_curves(place: Path, tmp_path: Path) -> None:
    given = {"encoder": "dense_small:8-16-32", "batch_size": 8, "threads": 1, "stages": "8x1,12x1", "quiet": True}
    run = smallview.pretrain(str(place / "photos"), out=tmp_path / "run", **given)
    page = report(run.path, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "from step 4: 8 px" in page and "from step 8: 12 px" in page and 'class="edge"' in page
    assert "2 stages: 8, 12 px" in page


def test_of_many_pictures_some_are_shown(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_pictures, "MOST", 40)
    many = np.random.default_rng(0).integers(0, 255, (100_000, 12, 12, 3), np.uint8)
    page = report(run, tmp_path / "r.html", many).read_text(encoding="utf-8")
    assert "40 pictures of " in page and "drawn at random from 100,000" in page and page.count('class="p h') == 40


def test_pictures_that_are_there_twice_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (30, 6, 6, 3), np.uint8)
    pictures = [Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in small]
    for k, picture in enumerate(pictures):
        (tmp_path / "set").mkdir(exist_ok=True)
        picture.save(tmp_path / "set" / f"{k:02}.png")
    once = report(run, tmp_path / "once.html", tmp_path / "set", threads=1).read_text(encoding="utf-8")
    assert "None of the 30 pictures was found twice." in once
    pictures[3].save(tmp_path / "set" / "3 <b>again.bmp")
    pictures[5].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "set" / "5 <script>alert(9)<.png")
    pictures[8].crop((2, 1, 30, 29)).save(tmp_path / "set" / "8 <img onerror=1>.png")
    page = report(run, tmp_path / "twice.html", tmp_path / "set", threads=1).read_text(encoding="utf-8")
    found = read(page)
    assert "3 of 33 pictures are there already" in found.text and "The same pixels1 group." in found.text
    assert "Nearly the same2 groups." in found.text and re.search(r"a part: 8\d by 8\d %", found.text)
    assert not any(text in page for text in ("<script>alert(9)", "<img", "<b>again"))
    twice = page[page.index(f">{reporting.TWICE}</h2>") :]
    lists = [
        re.findall(r'aria-label="([^"]+)"', part.partition("</ul>")[0]) for part in twice.split('<ul class="thumbs">')[1:4]
    ]
    assert [sorted(name[:2].strip(" .").zfill(2) for name in part) for part in lists] == [["03"] * 2, ["05"] * 2, ["08"] * 2]


def test_a_page_that_would_be_too_large_gets_smaller_pictures(
    run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report(run, tmp_path / "a.html", place / "photos").stat().st_size
    monkeypatch.setattr(reporting, "MOST_BYTES", whole - 1)
    monkeypatch.setattr(reporting, "ROOM", (2_900_000, 3_000))
    assert report(run, tmp_path / "b.html", place / "photos").stat().st_size < whole


def test_other_pictures_in_the_place_of_the_runs_are_said(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 12, 12, 3), np.uint8))
    text = (run / "run.toml").read_text(encoding="utf-8")
    (run / "run.toml").write_text(re.sub("(?m)^data = .*$", f'data = "{tmp_path / "a.npy"}"', text), encoding="utf-8")
    shown = read(report(run, tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "run was trained on 37 pictures, and 3 lie in their place now" in shown


def test_a_torn_line_is_left_out_and_a_damaged_one_is_said(run: Path, tmp_path: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'not json\n{"step": 99, "loss"')
    account = read_account(run)
    assert account.last()["step"] == 8 and any("1 damaged line of metrics.jsonl" in line for line in account.missing)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("metrics.jsonl", "There are no metrics"),
        ("rows.jsonl", "has not been judged"),
        ("run.toml", "There are no settings"),
        ("summary.json", "The run has not ended: its last record is of step 8 of 8"),
        ("encoder", "there is no encoder yet"),
    ],
)
def test_what_is_missing_is_said(run: Path, tmp_path: Path, gone: str, told: str) -> None:
    shutil.rmtree(run / gone) if (run / gone).is_dir() else (run / gone).unlink()
    text = read(report(run, tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "What is missing" in text and told in text


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_damaged_there_is_a_report(run: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "encoder" / "config.json").unlink()  # pictures would only take time
    for name in ("run.toml", "metrics.jsonl", "rows.jsonl", "summary.json"):
        data = bytearray((run / name).read_bytes())
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(data))
            bad = draw.choice([b"\xff", b'"', b"[]", b"{", b"null", b"1e999", b"true", b"\n", b"<script>", b"", b"-"])
            data[at : at + draw.randrange(6)] = bad
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        (run / name).write_bytes(bytes(data))
    for line in (
        b'{"step": 1e400, "loss": [1]}',
        b'{"step": "x"}',
        b'{"step": 5, "stage": 1e9, "lr": -1, "verdict": {}}',
        b"[1]",
    ):
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(line + b"\n")
    found = read(report(run, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [name for name, _ in found.tags].count("script") == 1 and "Verdict" in found.text


def test_wrong_input_is_one_line(run: Path, tmp_path: Path) -> None:
    for wrong, kind in (
        ((tmp_path / "nowhere", None, None), UsageError),
        ((tmp_path, None, None), UsageError),
        (([], None, None), UsageError),
        ((run, tmp_path / "r.txt", None), UsageError),
        ((run, tmp_path / "r.html", tmp_path / "nowhere"), DataError),
        ((run, run / "run.toml" / "r.html", None), SmallviewError),
    ):
        with pytest.raises(kind) as error:
            report(*wrong)
        assert "\n" not in str(error.value)
    (run / "encoder" / "model.safetensors").write_bytes(b"no weights")
    assert "No pictures are shown: " in report(run, tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_difference_is_claimed_only_beyond_what_pictures_and_seeds_would_change(tmp_path: Path) -> None:
    def said(values: list[float], interval: float | None) -> tuple[float | None, str]:
        runs = []
        for seed, value in enumerate(values):
            place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            place.mkdir()
            row = Row("p", "linear top-1 %", value, 50.0, 58.0, seed, 9, 9, {"protocol": "linear", "test": "t"}, {}, interval)
            (place / "rows.jsonl").write_text(json.dumps(row.as_dict()) + "\n")
            runs.append(read_account(place))
        (one,) = judged(Group("g", tuple(runs)))
        return one.margin, lead(one)

    margin, told = said([60.0], 2.0)
    assert margin == pytest.approx(2**0.5 * 2) and told == (
        "By linear top-1 %: better than raw pixels; not shown to be better than the untrained encoder."
    )
    margin, told = said([55.0, 60.0, 65.0], 1.0)
    assert margin == pytest.approx(t_factor(3) * 5 / 3**0.5) and told.endswith("raw pixels or the untrained encoder.")
    assert said([40.0], 1.0)[1] == "By linear top-1 %: worse than raw pixels and the untrained encoder."
    assert "without an interval" in said([60.0], None)[1]
