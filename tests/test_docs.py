"""The documentation is true: every command, program and settings file in it runs in miniature, every name and link in it exists.

Pages are written for people: real folders, real lengths. Here each runs, block after block, in a folder with a few small pictures under
the names that the pages use. What is made smaller, what a page presumes and what cannot run here stand in the tables of miniature.py, each
entry with its reason; an entry that no page needs any more fails.
"""

from __future__ import annotations
import __future__

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import FunctionType
from typing import Any

import manual
import numpy as np
import pytest
from manual import PAGES, ROOT, SHELL, Block
from miniature import ENVIRONMENT, LEFT_OUT, LENGTHS, NOT_WRITTEN, ONE_OF_THESE, OTHERS, PRESUMED, READY, SHRINK, SMALL
from PIL import Image

import smallview
from smallview import cli
from smallview.config import RunConfig
from smallview.evaluation.protocols import NAMES, Protocols
from smallview.joint_embedding import Method

FILE = re.compile(r"[\w./*{}<>-]+(?:\.(?:jsonl|json|toml|npy|npz|html|safetensors|png|pt2|onnx|csv|py|tar)|(?<!\.)/)")


def options(verb: str) -> set[str]:
    """The options of a verb, as its help lists them."""
    found = cli.app[verb].assemble_argument_collection()
    return {name for argument in found for name in argument.names if name.startswith("--")} | {"--debug"}


VERBS = [name for name in cli.app if not name.startswith("-")]


def draw(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8).repeat(12, 0).repeat(12, 1)).save(path)


def shards(folder: Path, pictures: Path) -> None:
    """Four tar shards of these pictures."""
    folder.mkdir()
    for k in range(4):
        with tarfile.open(folder / f"photos-{k:03}.tar", "w") as tar:
            for path in sorted(pictures.rglob("*.png"))[k::4]:
                tar.add(path, f"{path.stem}.png")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that pages presume: pictures, one of them broken, masks, labeled and held-out ones."""
    desk, rng = tmp_path_factory.mktemp("desk"), np.random.default_rng(0)
    for part, number in (("photos", 24), ("labeled/train", 16), ("labeled/test", 8), ("held-out", 8)):
        for i in range(number):
            draw(desk / part / "ab"[i % 2] / f"{i}.png", rng)
    for path in (desk / "photos").rglob("*.png"):
        mask = desk / "masks" / path.relative_to(desk / "photos")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8([[0, 255], [0, 255]]).repeat(12, 0).repeat(12, 1)).save(mask)
    pictures = rng.integers(0, 256, (24, 24, 24, 3), np.uint8)
    np.save(desk / "array.npy", pictures)
    np.savez(desk / "labeled.npz", images=pictures, labels=np.arange(24) % 2)
    shards(desk / "shards", desk / "photos")
    broken = desk / "photos" / "a" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setenv("SMALLVIEW_CACHE", str(desk / "cache"))
        for verb in VERBS:
            for option, value in (("--threads", "1"), ("--device", "cpu")):  # a GPU would have another encoder and folder
                if option in options(verb):
                    patch.setenv(f"SMALLVIEW_{verb.upper()}_{option[2:].upper()}", value)
        yield desk


@pytest.fixture
def clean(desk: Path) -> Iterator[Path]:
    """The desk; what a page leaves on it goes."""
    before = set(desk.iterdir()) | {desk / "cache"}
    yield desk
    for path in set(desk.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def ready(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Puts a finished and judged run at a place of READY where nothing is yet."""
    shelf = tmp_path_factory.mktemp("shelf")

    def put(place: str) -> None:
        if place not in READY or Path(place).exists():
            return
        method, seed, encoder = READY[place]
        made = shelf / f"{method}-{seed}-{encoder}"
        if not made.exists():
            stem = "--stem standard" if encoder != "dense_small" else ""
            invoke(
                f"pretrain photos --method {method} --seed {seed} --encoder {encoder} {stem} --size 16 --batch-size 8 --epochs 1 --out {made}"
            )
            invoke(f"evaluate {made} --train labeled/train --test labeled/test")
            invoke(f"embed {made} photos --out {made}/embeddings")
        shutil.copytree(made, place)

    return put


def invoke(line: str) -> str:
    """Run a command of smallview, which ends well; what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(shlex.split(line))
        except SystemExit as stop:
            assert not stop.code, f"smallview {line}\n{err.getvalue()}"
    return out.getvalue()


def reason(block: Block, line: str) -> str | None:
    """Why a line is left out; None for one that runs."""
    for (page, start), why in LEFT_OUT.items():
        if page == block.page and line.startswith(start) and not (why.startswith("needs ") and installed(why.split()[1])):
            return why
    return None


def installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def shrunk(line: str) -> str:
    for pattern, small in SHRINK.items():
        line = re.sub(pattern, small, line)
    return line


def run_line(block: Block, line: str, ready: Callable[[str], None]) -> None:
    """Run one command of a shell block."""
    line, _, target = shrunk(line).partition(" > ")
    name, *tokens = shlex.split(line)
    for token in tokens:
        ready(token.removeprefix("encoder:"))
    if name == "smallview":
        with pytest.MonkeyPatch.context() as patch:
            if tokens[0] in ("pretrain", "sweep") and not {"--minutes", "--resume-from"} & set(tokens):
                for setting, value in ENVIRONMENT.items():
                    if setting != "epochs" or not set(LENGTHS) & set(tokens):
                        patch.setenv(f"SMALLVIEW_{tokens[0].upper()}_{setting.upper()}", value)
            printed = invoke(shlex.join(tokens))
        if target:
            Path(target.strip()).write_text(printed, "utf-8")
    elif name in ("ls", "cat", "head", "tail", "cp", "mkdir"):
        subprocess.run(["sh", "-c", line], check=True, capture_output=True)
    else:
        pytest.fail(f"{block.place}: no test can run {name}; list the line in LEFT_OUT, with the reason")


def run_python(block: Block, space: dict[str, Any]) -> None:
    """Run a Python block in the names of its page; annotations stay text, as in a sketch of a class."""
    code = compile("\n" * (block.line - 1) + block.text, f"<{block.page}>", "exec", __future__.annotations.compiler_flag)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, space)
        for name, value in list(space.items()):
            if name.startswith("test_") and isinstance(value, FunctionType) and value.__code__.co_filename == f"<{block.page}>":
                value()
                del space[name]


def run_toml(block: Block) -> None:
    Path("settings.toml").write_text(block.text, "utf-8")
    invoke("pretrain photos --config settings.toml --print-config")


@pytest.fixture
def small_pretrain(monkeypatch: pytest.MonkeyPatch) -> None:
    """sv.pretrain with so few and so small pictures that it costs nothing."""
    real = smallview.pretrain
    monkeypatch.setattr(smallview, "pretrain", lambda data, *, minutes=None, **given: real(data, **given | SMALL))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, clean: Path, ready: Callable[[str], None], small_pretrain: None) -> None:
    space: dict[str, Any] = {}
    written: set[str] = set()
    presumed = "\n".join(line.strip() for line in PRESUMED.get(page, "").splitlines())
    exec("import numpy as np, torch\n" + presumed, space)
    for block in manual.blocks(page):
        if block.kind in SHELL:
            for line in manual.commands(block):
                if reason(block, line) is None:
                    before = set(Path("runs").glob("*"))
                    run_line(block, line, ready)
                    written |= names(clean)
                    if block.text.startswith(ONE_OF_THESE):
                        for path in set(Path("runs").glob("*")) - before:
                            shutil.rmtree(path)
        elif block.kind == "python" and reason(block, block.text) is None:
            run_python(block, space)
        elif block.kind == "toml":
            run_toml(block)
        elif block.kind == "json":
            json.loads(block.text)
    written |= names(clean)
    if page == "docs/architecture.md":
        assert [field.name for field in dataclasses.fields(space["Method"])] == [
            field.name for field in dataclasses.fields(Method)
        ]
    if page == "docs/methods.md":
        assert space["method"] == smallview.method("combined")
    ready("runs/a")  # pages without a run of their own speak of some run's files
    written |= names(clean)
    missing = [name for name in files_named(page) if name not in NOT_WRITTEN and not exists(name, written)]
    assert not missing, f"{page} names files that nothing writes: {missing}; mend the page, or list them in NOT_WRITTEN"


def files_named(page: str) -> list[str]:
    return [span for span in manual.spans(page) if FILE.fullmatch(span)]


def names(desk: Path) -> set[str]:
    """All that lies on the desk, folders with a slash behind them."""
    return {path.relative_to(desk).as_posix() + "/" * path.is_dir() for path in desk.rglob("*")}


def exists(name: str, written: set[str]) -> bool:
    """Whether a file of that name is in the repository, or was written by the page."""
    name = name.removeprefix("RUN/")
    kept = (ROOT / name).exists() or (ROOT / "smallview" / name).exists()
    return kept or any(fnmatch("/" + path, "*/" + name) for path in written)


def all_commands() -> list[tuple[Block, str]]:
    return [(b, line) for page in PAGES for b in manual.blocks(page) if b.kind in SHELL for line in manual.commands(b)]


def test_every_block_has_a_kind_that_is_looked_at() -> None:
    kinds = {b.place: b.kind for page in PAGES for b in manual.blocks(page)}
    known = (*SHELL, "python", "toml", "json", "text")
    assert not {place: kind for place, kind in kinds.items() if kind not in known}
    fences = {page: text.count("```") for page, text in PAGES.items()}
    assert fences == {page: 2 * len(manual.blocks(page)) for page in PAGES}


def with_imports(path: Path) -> str:
    """A script's text and that of the scripts beside it that it imports: their options are its own."""
    text = path.read_text("utf-8")
    named = re.findall(r"^(?:from|import) ([\w.]+)(?: import (\w+))?", text, re.MULTILINE)
    beside = {path.with_name(f"{name.split('.')[-1]}.py") for pair in named for name in pair if name}
    return "\n".join([text, *(other.read_text("utf-8") for other in beside if other.is_file())])


def test_code_outside_fences_is_a_measurement_whose_script_knows_its_options() -> None:
    for page in PAGES:
        for line in manual.indented(page):
            line = line.partition("#")[0].strip()
            found = re.fullmatch(r"(?:\w+=\S+ )*python ((?:benchmarks|experiments)/[\w/]+\.py)( .*)?", line)
            assert found or line.startswith("<"), f"{page}: {line}: code that runs stands in a fence of its kind"
            if found:
                script = with_imports(ROOT / found[1])
                for option in re.findall(r"(?<!\S)--[\w-]+", found[2] or ""):
                    assert f'"{option}"' in script, f"{page}: {found[1]} has no {option}"


def test_what_is_left_out_or_made_smaller_is_still_in_the_pages() -> None:
    python = [(b, b.text) for page in PAGES for b in manual.blocks(page) if b.kind == "python"]
    lines = [(block.page, line) for block, line in all_commands() + python]
    assert not [key for key in LEFT_OUT if not any(page == key[0] and line.startswith(key[1]) for page, line in lines)]
    text = "\n".join(line for _, line in all_commands())
    assert not [pattern for pattern in SHRINK if not re.search(pattern, text)]
    assert not [place for place in READY if not re.search(rf"(?<!\S){place}/?(?!\S)", text)]
    assert not set(PRESUMED) - set(PAGES)
    assert not set(NOT_WRITTEN) - {name for page in PAGES for name in files_named(page)}
    assert not [why for why in LEFT_OUT.values() for test in re.findall(r"tests/[\w/.]+", why) if not (ROOT / test).exists()]


def test_options_in_running_text_exist() -> None:
    known = set().union(*map(options, VERBS)) | {"--help", "--version", "--install-completion"}
    named = {(page, option) for page in PAGES for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", manual.prose(page))}
    assert not {(page, option) for page, option in named if option not in known and option not in OTHERS}
    for option, place in OTHERS.items():
        assert option in {name for _, name in named}
        assert not place.endswith(".py") or f'"{option}"' in (ROOT / place).read_text("utf-8")


def test_commands_in_running_text_have_a_verb_and_its_options() -> None:
    for page in PAGES:
        for span in manual.spans(page):
            if (found := re.match(r"smallview ([a-z]\w*)", span)) is not None:
                assert found[1] in VERBS, f"{page}: {span}"
                named = set(re.findall(r"(?<!\S)--[a-z][\w-]*", span))
                assert named <= options(found[1]), f"{page}: {span}"


def test_settings_in_running_text_exist() -> None:
    known = {field.name for field in dataclasses.fields(RunConfig)}
    for page in PAGES:
        for root, name in re.findall(r"--set '?(\w+)(?:\.(\w+))?", "\n".join(manual.spans(page))):
            if root in NAMES:
                assert hasattr(getattr(Protocols(), root), name), f"{page}: {root}.{name}"
            else:
                assert root in known or root in ("NAME", "path"), f"{page}: {root}"


def test_links_and_their_anchors_lead_somewhere() -> None:
    for page in manual.LINKED:
        for link in manual.links(page):
            if re.match(r"\w+:", link):
                continue
            target, _, anchor = link.partition("#")
            place = Path(os.path.normpath(ROOT / Path(page).parent / target)) if target else ROOT / page
            assert place.exists(), f"{page}: {link}"
            if anchor:
                assert anchor in manual.anchors(place.relative_to(ROOT).as_posix()), f"{page}: {link}"
