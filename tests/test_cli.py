"""The command line as its users meet it: what goes wrong is told in one line with the right exit code, and what works says where."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from smallview import shell
from smallview.cli import main
from smallview.config import RunConfig
from smallview.settings import from_tables, load_toml

TINY = "--encoder dense_small:8-16-32 --size 16 --batch-size 16 --epochs 1 --threads 1"


class Told(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


Call = Callable[[str], Told]


def picture(path: Path, side: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the commands below are given; they run in it."""
    desk = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    for i in range(12):
        picture(desk / "photos" / f"{i}.png", 20, rng)
    picture(desk / "one" / "0.png", 20, rng)
    for i in range(6):
        picture(desk / "odd 'q\" ü" / "日本" / f"{i}.png", 16, rng)
        for part in ("train", "test"):
            for name in ("a", "b"):
                picture(desk / "labeled" / part / name / f"{i}.png", 16, rng)
        for name in ("a", "c"):
            picture(desk / "others" / name / f"{i}.png", 16, rng)
    (desk / "empty").mkdir()
    (desk / "words.txt").write_text("hello\n")
    (desk / "file").write_text("in the way\n")
    images = rng.integers(0, 255, (64, 16, 16, 3), dtype=np.uint8)
    np.save(desk / "array.npy", images)
    np.save(desk / "turned.npy", images[::-1])
    np.save(desk / "float.npy", images.astype(np.float32))
    np.savez(desk / "labeled.npz", images=images, labels=np.arange(64) % 2)
    for name, text in {
        "key": "epochs = 1\nepoch = 3\n",
        "deep": "[optimizer]\nlr = 1.0\nlrr = 3\n",
        "syntax": "seed = 1\nepochs = \n",
        "type": 'epochs = "x"\n',
        "version": "format_version = 9\n",
        "method": 'method = "simcrl"\n',
    }.items():
        (desk / f"{name}.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setenv("SMALLVIEW_CACHE", str(desk / "cache"))
        yield desk


@pytest.fixture
def call(desk: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(line: str) -> Told:
        capsys.readouterr()
        code = 0
        try:
            main(shlex.split(line))
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        assert "Traceback" not in told.err + told.out
        assert "\x1b" not in told.err + told.out
        return Told(code, told.out, told.err)

    return run


@pytest.fixture(scope="module")
def finished(desk: Path) -> Path:
    """A finished run, made once."""
    main(shlex.split(f"pretrain array.npy {TINY} --out finished --quiet"))
    return desk / "finished"


def snapshot(desk: Path) -> set[str]:
    return {str(path.relative_to(desk)) for path in desk.rglob("*") if "cache" not in path.parts}


BAD = [
    # data that cannot be used
    ("pretrain empty --out new", 3, "no pictures in empty | 0 images | wanted | check the path"),
    ("pretrain missing --out new", 3, "there is no missing | wanted a folder of pictures"),
    ("pretrain photo --out new", 3, 'there is no photo | did you mean "photos"?'),
    ("pretrain words.txt --out new", 3, "words.txt is no set of pictures | text | wanted"),
    ("pretrain one --out new", 3, "one holds 1 picture | wanted at least 2"),
    ("pretrain float.npy --out new", 3, "float.npy is float32 | wanted uint8"),
    ("views empty", 3, "no pictures in empty"),
    # names
    ("pretrain photos --method simcrl --out new", 2, 'no method is called "simcrl" | did you mean "simclr"?'),
    ("pretrain photos --method zzz --out new", 2, "there are: barlow_twins, byol, | vicreg"),
    ("pretrain photos --encoder resnt18 --out new", 2, 'no encoder is called "resnt18" | did you mean "resnet18"?'),
    ("pretrain photos --encoder zzz --out new", 2, 'no encoder is called "zzz" | wanted dense_small, patches or a timm name'),
    ("pretrain photos --encoder zzz --print-config", 2, 'no encoder is called "zzz"'),
    ("pretrain photos --encoder custom:Net --out new", 2, "module of your own | pass it"),
    # flags
    ("pretrian photos", 2, 'Unknown command "pretrian" | Did you mean "pretrain"?'),
    ("pretrain", 2, "DATA requires an argument | smallview pretrain --help"),
    ("pretrain photos more", 2, "more: more than this command takes | quote"),
    ("pretrain photos --epoch 3 --out new", 2, "Unknown option: --epoch | Did you mean --epochs?"),
    ("pretrain photos --epochs -1 --out new", 2, "epochs is -1 | wanted a number above 0"),
    ("pretrain photos --epochs 0 --out new", 2, "epochs is 0 | wanted a number above 0"),
    ("pretrain photos --epochs nan --out new", 2, "epochs | nan | wanted a number"),
    ("pretrain photos --epochs inf --out new", 2, "epochs is inf | wanted a number above 0"),
    ("pretrain photos --epochs abc --out new", 2, '--epochs | "abc"'),
    ("pretrain photos --epochs 1 --minutes 1 --out new", 2, "epochs is 1.0 and minutes is 1.0 | wanted one of the two"),
    ("pretrain photos --minutes 0 --out new", 2, "minutes is 0 | wanted"),
    ("pretrain photos --batch-size 1 --out new", 2, "batch_size is 1 | wanted 2 or more"),
    ("pretrain photos --batch-size 3.5 --out new", 2, '--batch-size | "3.5" is no whole number'),
    ("pretrain photos --batch-size 13 --out new", 2, "batch_size is 13 | 12 readable pictures | --batch-size 12"),
    ("pretrain photos --size 3 --out new", 2, "size is 3 | wanted 4 to 1024"),
    ("pretrain photos --seed -1 --out new", 2, "seed is -1 | wanted 0 to"),
    ("pretrain photos --threads 0 --out new", 2, "threads is 0 | wanted 1 or more"),
    ("pretrain photos --save-every 0 --out new", 2, "save_every is 0 | wanted"),
    ("pretrain photos --device gpu --out new", 2, '"gpu" | wanted auto, cpu, cuda or mps'),
    ("pretrain photos --stem big --out new", 2, "stem is 'big' | wanted auto, standard or small"),
    # settings by path and by file
    ("pretrain photos --set optimzer.lr=1 --out new", 2, 'unknown key "optimzer" | did you mean "optimizer"?'),
    ("pretrain photos --set optimizer.lrr=1 --out new", 2, 'unknown key "lrr" in optimizer | did you mean "lr"?'),
    ("pretrain photos --set optimizer.lr --out new", 2, '--set is "optimizer.lr" | wanted path=value'),
    ("pretrain photos --set optimizer.lr=abc --out new", 2, 'optimizer.lr | "abc" | wanted a number'),
    ("pretrain photos --set method.views.7.blur=1 --out new", 2, "method.views | 2 entries"),
    ("pretrain photos --set method.negatives=Quee(size=3) --out new", 2, '"Quee" | did you mean "Queue"?'),
    ("pretrain photos --set preset=byol --out new", 2, "--set preset is no setting | --method"),
    ("pretrain photos --config none.toml --out new", 2, "cannot read none.toml | TOML file"),
    ("pretrain photos --config photos --out new", 2, "cannot read photos | directory"),
    ("pretrain photos --config key.toml --out new", 2, 'key.toml line 2 | unknown key "epoch" | did you mean "epochs"?'),
    ("pretrain photos --config deep.toml --out new", 2, 'deep.toml line 3 | unknown key "lrr"'),
    ("pretrain photos --config syntax.toml --out new", 2, "syntax.toml line 2 | TOML was wanted"),
    ("pretrain photos --config type.toml --out new", 2, 'type.toml line 1 | received "x", wanted a number'),
    ("pretrain photos --config version.toml --out new", 2, "format_version 9 | reads 1 to 2"),
    ("pretrain photos --config method.toml --out new", 2, 'no method is called "simcrl"'),
    # folders that cannot be written
    ("pretrain photos --out file", 1, "cannot make the folder file | a file is in its place | --out"),
    ("pretrain photos --out file/deeper", 1, "a file is in its place | --out"),
    ("pretrain photos --out file --fresh", 1, "a file is in its place | --out"),
    ("pretrain photos --out photos", 2, "photos holds other files | choose an empty or a new folder"),
    ("demo --out file", 1, "cannot make the folder file | a file is in its place"),
    ("views photos --out sheet.xyz", 2, '"sheet.xyz" | ending in .png'),
    ("views photos --out file/sheet.png", 1, "a file is in its place"),
    ("views photos --pictures 0", 2, "--pictures is 0 | wanted 1 or more"),
    # encoders and labels
    (
        "evaluate none --train labeled/train --test labeled/test",
        2,
        "no run or encoder folder at none | wanted one, or a timm name",
    ),
    ("evaluate photos --train labeled/train --test labeled/test", 2, "photos holds no encoder | wanted a run folder"),
    ("embed none photos --out new", 2, "no run or encoder folder at none | wanted one, or a timm name"),
]


@pytest.mark.parametrize(("line", "code", "words"), BAD, ids=[line for line, _, _ in BAD])
def test_bad_input_is_one_line_with_its_exit_code_and_leaves_nothing(
    call: Call, desk: Path, line: str, code: int, words: str
) -> None:
    before = snapshot(desk)
    told = call(line)
    assert told.code == code, told.err
    assert told.out == ""
    assert len(told.lines) == 1 and told.err.startswith("smallview: ")
    for word in words.split(" | "):
        assert word in told.err
    assert snapshot(desk) == before


AFTER_A_RUN = [
    ("evaluate finished --train labeled/train --test labeled/test --protocols knnn", 2, 'no protocol is called "knnn" | "knn"'),
    ("evaluate finished --train labeled/train --test labeled/test --threads -1", 2, "threads is -1"),
    ("evaluate finished --train labeled/train --test labeled/test --device gpu", 2, "wanted auto, cpu, cuda or mps"),
    ("evaluate finished --train photos --test labeled/test", 3, "photos has no labels | wanted class folders"),
    ("evaluate finished --train labeled/train --test others", 3, "c | wanted the same class folders"),
    ("embed finished photos --out file", 1, "cannot make the folder file | --out"),
    ("embed finished photos --out new --threads 0", 2, "threads is 0"),
    ("embed finished empty --out new", 3, "no pictures in empty"),
    (f"pretrain array.npy {TINY} --seed 1 --out finished", 2, "seed: 0 -> 1 | repeat its settings | --fresh"),
    (f"pretrain array.npy {TINY} --method byol --out finished", 2, 'preset: "simclr" -> "byol" | more); repeat | --fresh'),
    (f"pretrain array.npy {TINY} --set optimizer.lr=9 --out finished", 2, "optimizer.lr: | -> 9.0"),
    (f"pretrain turned.npy {TINY} --out finished", 3, "the pictures changed | --fresh"),
    ("pretrain array.npy --size 16 --batch-size 16 --epochs 2 --out finished", 2, "epochs: 1.0 -> 2.0 | --fresh"),
]


@pytest.mark.parametrize(("line", "code", "words"), AFTER_A_RUN, ids=[line for line, _, _ in AFTER_A_RUN])
def test_bad_input_for_a_finished_run(call: Call, desk: Path, finished: Path, line: str, code: int, words: str) -> None:
    test_bad_input_is_one_line_with_its_exit_code_and_leaves_nothing(call, desk, line, code, words)


def test_a_damaged_run_record_or_encoder_is_named(call: Call, desk: Path) -> None:
    main(shlex.split(f"pretrain array.npy {TINY} --out hurt --quiet"))
    (desk / "hurt" / "encoder" / "model.safetensors").write_bytes(b"\x00" * 40)
    told = call("embed hurt photos --out new")
    assert (told.code, len(told.lines)) == (1, 1) and "hurt/encoder is damaged" in told.err
    for text in ("seed = \n", "", "seed = 0\n"):
        (desk / "hurt" / "run.toml").write_text(text)
        told = call(f"pretrain array.npy {TINY} --out hurt")
        assert (told.code, len(told.lines)) == (2, 1)
        assert "hurt/run.toml" in told.err and "--fresh" in told.err
    (desk / "hurt" / "encoder" / "model.safetensors").unlink()
    told = call("embed hurt photos --out new")
    assert told.code == 2 and "the run has not finished" in told.err


def test_pictures_smaller_than_the_views_are_told(call: Call) -> None:
    told = call("pretrain photos --size 32 --batch-size 12 --epochs 1 --threads 1 --out enlarged")
    assert told.code == 0
    assert "12 of 12 pictures are smaller than the views (32 px) and will be enlarged" in told.err


def test_the_same_command_after_the_end_says_so(call: Call, finished: Path) -> None:
    before = (finished / "encoder" / "model.safetensors").stat().st_mtime_ns
    told = call(f"pretrain array.npy {TINY} --out finished")
    assert (told.code, told.out) == (0, "finished\n")
    assert "finished is finished" in told.err
    assert (finished / "encoder" / "model.safetensors").stat().st_mtime_ns == before


def test_fresh_moves_on_and_deletes_nothing(call: Call, finished: Path) -> None:
    for n in (2, 3):
        told = call(f"pretrain array.npy {TINY} --out finished --fresh --quiet")
        assert (told.code, told.out, told.err) == (0, f"finished-{n}\n", "")
    weights = [finished.with_name(name) / "encoder" / "model.safetensors" for name in ("finished", "finished-2", "finished-3")]
    assert len({path.read_bytes() for path in weights}) == 1


@pytest.mark.parametrize("method", ["simclr", "moco_v2", "byol"])
def test_printed_settings_are_a_config_file_that_gives_them_back(call: Call, desk: Path, method: str) -> None:
    options = f"--method {method} --epochs 3 --set optimizer=AdamW(lr=0.01) --set method.views.1.blur=0"
    (desk / "printed.toml").write_text(call(f"pretrain array.npy {options} --print-config").out)
    wanted = json.loads(call(f"pretrain array.npy {options} --print-config --json").out)
    again = json.loads(call("pretrain array.npy --config printed.toml --print-config --json").out)
    assert wanted["settings"] == again["settings"]
    assert wanted["settings"]["optimizer"]["kind"] == "AdamW"
    assert wanted["settings"]["method"]["views"][1]["blur"] == 0.0
    assert {wanted["reasons"][name] for name in ("preset", "epochs", "optimizer")} == {"given", "--set"}


def test_every_printed_setting_has_its_reason_beside_it(call: Call) -> None:
    printed = call("pretrain array.npy --seed 3 --set method.views.1.blur=0 --print-config").out.splitlines()
    assert "seed = 3  # given" in printed
    assert [line for line in printed if line.startswith("blur =")] == ["blur = 0.5", "blur = 0.0  # --set"]
    assert any(line.startswith("size = 16  # the pictures' side") for line in printed)


def test_a_length_given_by_path_replaces_the_other(call: Call) -> None:
    settings = json.loads(call("pretrain array.npy --set minutes=5 --print-config --json").out)["settings"]
    assert (settings["minutes"], settings["epochs"]) == (5.0, "none")


def test_a_runs_record_is_a_config_file_whose_steps_follow_the_length(call: Call, desk: Path, finished: Path) -> None:
    assert call("pretrain array.npy --config finished/run.toml --epochs 2 --out longer --quiet").code == 0
    tables = load_toml(desk / "longer" / "run.toml")
    assert (tables["epochs"], tables["steps"]) == (2.0, 8)
    assert call("pretrain array.npy --config finished/run.toml --out again --quiet").code == 0
    assert (desk / "again" / "encoder" / "model.safetensors").read_bytes() == (
        finished / "encoder" / "model.safetensors"
    ).read_bytes()


def test_run_toml_gives_the_same_settings_back(finished: Path) -> None:
    tables = load_toml(finished / "run.toml")
    recorded = tables.pop("recorded")
    assert tables.pop("format_version") == 2
    config = from_tables(RunConfig, tables)
    assert (config.size, config.batch_size, config.steps, config.threads) == (16, 16, 4, 1)
    assert recorded["pictures"] == 64


def test_json_is_one_object_on_stdout(call: Call, finished: Path) -> None:
    for line, keys in (
        (f"pretrain array.npy {TINY} --out finished --json", {"run", "encoder", "rows"}),
        ("evaluate finished --train labeled.npz --test labeled.npz --protocols knn --threads 1 --json", {"run", "rows"}),
        ("embed finished photos --out embedded --threads 1 --json", {"embeddings", "index", "rows", "features", "left_out"}),
        (
            "views photos --out sheets/json.png --json",
            {"sheet", "size", "method", "names", "pictures", "heights", "widths", "views"},
        ),
        ("methods --json", {"methods"}),
    ):
        told = call(line)
        assert told.code == 0 and told.out.count("\n") == 1
        assert set(json.loads(told.out)) == keys


def test_judging_adds_rows_with_both_floors_to_the_run(call: Call, desk: Path) -> None:
    main(shlex.split(f"pretrain array.npy {TINY} --out judged --quiet"))
    told = call("evaluate judged --train labeled/train --test labeled/test --threads 1 --quiet")
    assert told.code == 0 and told.err == ""
    assert "raw pixels" in told.out and "untrained encoder" in told.out
    rows = [json.loads(line) for line in (desk / "judged" / "rows.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows} == {"knn20 top-1 %", "knn200 top-1 %", "linear top-1 %"}
    assert all(0 <= row[name] <= 100 for row in rows for name in ("value", "floor_pixels", "floor_untrained"))


def test_embedding_writes_a_row_for_every_name(call: Call, desk: Path, finished: Path) -> None:
    assert call("embed finished labeled/train --out rows --threads 1 --normalize").code == 0
    features = np.load(desk / "rows" / "embeddings.npy")
    index = [json.loads(line) for line in (desk / "rows" / "index.jsonl").read_text().splitlines()]
    assert features.shape == (12, 32) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5)
    assert [entry["row"] for entry in index] == list(range(12))
    assert [entry["name"] for entry in index] == sorted(f"{c}/{i}.png" for c in "ab" for i in range(6))
    assert [entry["label"] for entry in index] == ["a"] * 6 + ["b"] * 6


def test_embedding_says_which_pictures_it_left_out(call: Call, desk: Path, finished: Path) -> None:
    rng = np.random.default_rng(1)
    for i in range(3):
        picture(desk / "part" / f"{i}.png", 16, rng)
    (desk / "part" / "1.png").write_bytes((desk / "part" / "1.png").read_bytes()[:60])
    told = call("embed finished part --out part-embedded --threads 1")
    assert told.code == 0 and "1 unreadable picture left out" in told.err
    assert np.load(desk / "part-embedded" / "embeddings.npy").shape == (2, 32)
    assert json.loads((desk / "part-embedded" / "bad_files.jsonl").read_text())["path"] == "1.png"


def test_the_sheet_has_a_row_per_picture_and_a_column_per_view(call: Call, desk: Path) -> None:
    assert call("views photos --out sheets/views.png --pictures 3 --repeats 2 --size 16").out == "sheets/views.png\n"
    with Image.open(desk / "sheets" / "views.png") as sheet:
        assert sheet.size == (5 * 148 + 4, 3 * (148 + 60) + 4 + 18)
    assert [path.name for path in (desk / "sheets").iterdir() if path.name.startswith(".")] == []


def test_odd_names_work(call: Call, desk: Path) -> None:
    name = "odd 'q\" ü"
    told = call(f"pretrain {shlex.quote(name)} --size 16 --epochs 1 --threads 1 --out {shlex.quote(name + '/../ö n')}")
    assert told.code == 0 and shlex.quote(name) in told.err
    assert (desk / "ö n" / "encoder" / "model.safetensors").exists()


def test_control_signs_in_names_do_not_reach_the_terminal(call: Call) -> None:
    told = call("pretrain 'none\x1b[31m\n.png'")
    assert told.code == 3 and len(told.lines) == 1 and "\\x1b[31m\\n" in told.err


def test_what_goes_on_with_a_fresh_run_names_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for tokens in (["--out", "a b", "--fresh", "-q"], ["--fresh", "--out=a b", "-q"], ["--fresh", "-q"]):
        monkeypatch.setattr(shell, "_tokens", ["pretrain", "x", *tokens])
        assert shell.go_on(Path("a b-2")) == "smallview pretrain x -q --out 'a b-2'"
    monkeypatch.setattr(shell, "_tokens", ["pretrain", "x", "--out", "a b"])
    assert shell.go_on(Path("a b")) == "smallview pretrain x --out 'a b'"


def test_an_unexpected_failure_is_one_line_and_its_details_are_in_a_file(
    call: Call, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("smallview.use.sheet", broken)
    told = call("views photos")
    assert (told.code, len(told.lines)) == (1, 1)
    assert "unexpected RuntimeError: first line" in told.err and "crash.txt" in told.err
    assert "second line" in (desk / "crash.txt").read_text()
    (desk / "crash.txt").unlink()


def test_ctrl_c_before_the_steps_ends_with_the_command_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smallview.run.open_source", interrupted)
    told = call("pretrain photos --out 'never begun'")
    assert (told.code, len(told.lines)) == (75, 1)
    assert "go on with: smallview pretrain photos --out 'never begun'" in told.err
    monkeypatch.setattr("smallview.use.sheet", interrupted)
    assert call("views photos").code == 130


def test_threads_of_the_caller_stay(call: Call, desk: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert call(f"pretrain array.npy {TINY} --out threads --quiet").code == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_real_process_in_a_plain_locale(desk: Path, finished: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "SMALLVIEW_CACHE": str(desk / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "smallview", "embed", "finished", "odd 'q\" ü", "--out", "plain ü", "--threads", "1"],
        cwd=desk,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"6 pictures, 32 features each" in done.stderr
    assert np.load(desk / "plain ü" / "embeddings.npy").shape == (6, 32)


def test_colour_is_only_for_terminals_that_want_it(desk: Path) -> None:
    pty = pytest.importorskip("pty")
    import os

    def shown(**more: str) -> bytes:
        parent, child = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **more}
        process = subprocess.Popen(
            [sys.executable, "-m", "smallview", "--help"], stdout=child, stderr=child, stdin=child, env=environment
        )
        os.close(child)
        seen = b""
        with open(parent, "rb", buffering=0) as stream:
            while True:
                try:
                    part = stream.read(65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                seen += part
        assert process.wait() == 0
        return seen

    assert b"\x1b[" in shown()
    assert b"\x1b" not in shown(NO_COLOR="1")
    assert b"\x1b" not in shown(TERM="dumb")


@pytest.mark.parametrize(
    ("words", "environment", "wanted"),
    [
        ("", {"SMALLVIEW_PRETRAIN_EPOCHS": "7"}, "epochs = 7.0"),
        ("--epochs 2", {"SMALLVIEW_PRETRAIN_EPOCHS": "7"}, "epochs = 2.0"),
        ("--config nine.toml", {"SMALLVIEW_PRETRAIN_EPOCHS": "7"}, "epochs = 7.0"),
        ("--config nine.toml", {}, "epochs = 9.0"),
    ],
)
def test_flags_stand_over_the_environment_and_that_over_the_file(
    words: str,
    environment: dict[str, str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("array.npy", np.zeros((4, 8, 8, 3), np.uint8))
    Path("nine.toml").write_text("epochs = 9\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main(["pretrain", "array.npy", "--print-config", *words.split()])
    assert f"\n{wanted}  #" in capsys.readouterr().out
