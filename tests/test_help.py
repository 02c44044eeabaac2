"""The help of every verb: commands to copy that parse, options under headings in plain words, exit codes; and how long it takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

import smallview
from smallview import completion
from smallview.cli import app, main
from smallview.evaluation.protocols import NAMES
from smallview.networks.encoders import OWN
from smallview.output.targets import TARGETS
from smallview.output.traced import INPUTS
from smallview.recipes import METRIC
from smallview.views.saliency import ESTIMATORS

ROOT = Path(__file__).parents[1]
VERBS = [name for name in app if not name.startswith("-")]


def shown(verb: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    for one in [app, *(app[name] for name in VERBS)]:  # a console keeps the width that it was made with
        monkeypatch.setattr(one, "_fallback_console", None)
    capsys.readouterr()
    main([verb, "--help"])
    return capsys.readouterr().out


def joined(text: str) -> str:
    """The words of a help page without its frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("verb", VERBS)
def test_help_opens_with_examples_that_parse(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = joined(shown(verb, 80, monkeypatch, capsys))
    head, usage, _ = text.partition(f" Usage: smallview {verb}")
    assert usage and head.startswith("Examples: • smallview ")
    examples = head.split(" • ")[1:]
    assert 2 <= len(examples) <= 3
    for line in examples:
        name, *tokens = shlex.split(line)
        assert (name, tokens[0]) == ("smallview", verb)
        app.parse_args(tokens, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_exit_codes_and_pages_that_there_are(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = joined(shown(verb, 120, monkeypatch, capsys))
    assert "Exit codes: 0 done, " in text and f"SMALLVIEW_{verb.upper()}_" in text
    pages = re.findall(r"docs/[\w-]+\.md", text)
    assert pages and all((ROOT / page).is_file() for page in pages), pages


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_told_in_words_and_no_line_runs_over(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (80, 120):
        text = shown(verb, columns, monkeypatch, capsys)
        assert max(map(len, text.splitlines())) <= columns
        assert "STR" not in text.split() and "env var" not in text
    for argument in app[verb].assemble_argument_collection(parse_docstring=True):
        assert argument.children or argument.parameter.help, f"{verb} {argument.name} is not told"


def test_what_to_type_first_stands_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = joined(shown("--help", 80, monkeypatch, capsys))
    assert text.startswith("Type first: • smallview demo:")
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", text)


def test_words_that_tab_offers_are_those_that_there_are() -> None:
    assert set(completion.METHODS) == set(smallview.methods())
    assert completion.PROTOCOLS == NAMES
    assert set(completion.TARGETS) == set(TARGETS) and tuple(completion.INPUTS) == tuple(INPUTS)
    assert set(completion.TASKS) == set(METRIC)
    assert set(completion.MASKS) == {*ESTIMATORS, "none", "encoder:"}
    import timm

    assert set(completion.ENCODERS) - set(OWN) <= set(timm.list_models())


def test_help_says_how_long_it_takes() -> None:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "smallview", "pretrain", "--help"], check=True, stdout=subprocess.DEVNULL)
    print(f"smallview pretrain --help: {time.perf_counter() - begun:.2f} s")


MEANT = [
    ("pretrian photos", '"pretrain"'),
    ("pretrain photos --epoch 3", "--epochs"),
    ("pretrain phots --print-config", '"photos"'),
    ("pretrain photos --method simcrl", '"simclr"'),
    ("pretrain photos --encoder resnt18", '"resnet18"'),
    ("pretrain photos --set optimzer.lr=1", '"optimizer"'),
    ("pretrain photos --set optimizer.lrr=1", '"lr"'),
    ("plan photos --minutes 1 --task retrieva", '"retrieval"'),
    ("methods simcrl", '"simclr"'),
    ("embed runs/aa photos --out x", '"runs/a"'),
    ("embed resnt18.a1_in1k photos --out x", '"resnet18.a1_in1k"'),
    ("evaluate run/a --train labeled/train --test labeled/test", '"runs/a"'),
    ("evaluate runs/a --train labelled/train --test x --protocols liner", '"linear"'),
    ("evaluate runs/a --train labeled/train --test x --set knn.temprature=1", '"temperature"'),
    ("compare runs/aa", '"runs/a"'),
    ("report runs/aa", '"runs/a"'),
    ("export runs/aa --to timm --out x", '"runs/a"'),
    ("export runs/a --to tim --out x", '"timm"'),
    ("sweep photos --over metod=simclr,byol", '"method"'),
]


@pytest.mark.parametrize(("line", "meant"), MEANT, ids=[line for line, _ in MEANT])
def test_what_was_meant_is_said(
    line: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for i in range(8):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "labeled" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    told = capsys.readouterr().err
    assert stop.value.code in (2, 3)
    assert re.search(rf"[Dd]id you mean {re.escape(meant)}", told), told
