"""`report`: runs, and what their encoder makes of pictures, as one page to look at, to mail and to print."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smallview import __version__
from smallview.account import Account, Group, figure, private, read_account, without_paths
from smallview.comparing import read_trained, sentences, table
from smallview.continuing import stored_config
from smallview.errors import DataError, SmallviewError, UsageError
from smallview.evaluation.comparison import Comparison, Trained
from smallview.evaluation.comparison import compare as compared
from smallview.files import check_folder, jsonl_lines, write_text
from smallview.output import markup
from smallview.output.html_report import Section, page
from smallview.output.markup import Child, Markup, join, tag
from smallview.report_doubles import doubles_part
from smallview.report_parts import curves, facts, missing, settings
from smallview.report_pictures import Sample, atlas_part, sample_of, views_part
from smallview.report_verdict import results, verdict
from smallview.settle import kept_threads, thread_count

MOST_BYTES = 5_000_000
# bytes for the pictures on the map, less where the rest of the page is large
ROOM = (2_900_000, 1_500_000, 500_000)
VIEWS_ROOM, DOUBLES_ROOM = 400_000, 300_000
TWICE = "Pictures that are there twice"
LONGEST = 48  # letters of a group's name
Say = Callable[[str], None]


def _quiet(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class _Privacy:
    """What stands for a place on a disk, in all that is shown."""

    known: tuple[Path, ...]
    paths: bool

    def text(self, text: object) -> str:
        return str(text) if self.paths else without_paths(str(text), self.known)

    def account(self, run: Account) -> Account:
        if self.paths:
            return replace(run, name=str(run.folder))
        rows = tuple(
            replace(
                row, protocol=self.text(row.protocol), metric=self.text(row.metric), settings=private(row.settings, self.known)
            )
            for row in run.rows
        )
        return replace(
            run,
            name=self.text(run.name),
            settings=private(run.settings, self.known),
            recorded=private(run.recorded, self.known),
            summary=private(run.summary, self.known),
            rows=rows,
            missing=tuple(self.text(line) for line in run.missing),
        )


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    data: Any = None,
    *,
    paths: bool = False,
    threads: int | None = None,
    say: Say = _quiet,
) -> Path:
    """Write one HTML file about runs that opens anywhere, needs no network and stays under 5 MB: verdict, cost, curves, pictures, settings.

    runs: a run folder or several; those that differ by their seed alone are taken together, and groups are set against the first.
    What a folder lacks, or what is damaged in it, is said in the page. out: the file, by default report.html in the folder of a single
    run, else in the present one. data: the pictures to show, as for pretrain; by default those of the first run where they still are.
    More than 2,000 are drawn from. paths: show folders in full; without it names are relative, and no place on a disk is told.

    Raises:
        UsageError: no run there, or a file that cannot be meant. DataError: `data` that cannot be used. SmallviewError: a file that
        cannot be written.

    Example:
        >>> import numpy as np, smallview as sv, tempfile
        >>> pictures = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = sv.pretrain(pictures, epochs=1, out=f"{folder}/run", quiet=True)
        ...     report(run.path, data=pictures).name
        'report.html'
    """
    folders = [runs] if isinstance(runs, (str, os.PathLike)) else list(runs)
    if not folders:
        raise UsageError("no run is named; wanted run folders")
    accounts = [read_account(folder) for folder in folders]
    if len({run.folder.resolve() for run in accounts}) < len(accounts):
        raise UsageError("a run is named twice; wanted each once")
    target = _checked(out, accounts)
    hidden = _Privacy(_places(accounts, data), paths)
    named = _told_apart([hidden.account(run) for run in accounts])
    threads = thread_count(threads)
    notes: list[str] = []
    groups, found = _grouped(accounts, named, notes)
    with kept_threads():
        torch.set_num_threads(threads)
        sample = _sample(accounts, data, threads, notes, say)
        text = ""
        for room in ROOM:
            text = _page(accounts, named, groups, found, sample, list(notes), hidden, room, say)
            if len(text.encode("utf-8")) < MOST_BYTES:
                break
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as error:
        raise SmallviewError(f"cannot write {target}: {error.strerror}; choose another --out") from error
    return target


def _checked(out: str | Path | None, runs: Sequence[Account]) -> Path:
    target = Path(out) if out is not None else (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
        raise UsageError(f'--out is "{target}"; wanted a file ending in .html')
    check_folder(target.parent)
    return target


def _places(runs: Sequence[Account], data: Any) -> tuple[Path, ...]:
    """Folders that may be told of in what is shown, such as in messages."""
    named = [run.folder for run in runs] + ([Path(data)] if isinstance(data, (str, os.PathLike)) else [])
    named += [Path(place) for run in runs if isinstance(place := run.settings.get("data"), str)]
    around = [parent for place in named for parent in (place, place.absolute(), *list(place.absolute().parents)[:-1])]
    return tuple(dict.fromkeys([*around, Path.cwd()]))


def _told_apart(runs: Sequence[Account]) -> list[Account]:
    """The same with a number after a name that several have."""
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=f"{run.name} #{i}") for i, run in enumerate(runs, 1)]


def _grouped(runs: Sequence[Account], named: Sequence[Account], notes: list[str]) -> tuple[list[Group], Comparison | None]:
    """Runs that differ by their seed alone, together; and all set against the first group, where that can be."""
    if len(runs) == 1:
        return [Group(named[0].name, (named[0],))], None
    whole = [run for run in runs if run.sound]
    of: dict[str, str] = {}
    found = None
    try:
        trained = _short(read_trained([run.folder for run in whole]), runs, named)
        of = {one.name: one.group for one in trained}
        if any(one.rows for one in trained):
            found = compared(trained)
    except SmallviewError as error:
        notes.append(f"Not compared: {error}.")
    together: dict[str, list[Account]] = {}
    for run, shown in zip(runs, named, strict=True):
        together.setdefault(of.get(str(run.folder), shown.name), []).append(shown)
    return [Group(name, tuple(members)) for name, members in together.items()], found


def _short(trained: Sequence[Trained], runs: Sequence[Account], named: Sequence[Account]) -> list[Trained]:
    """The same, with a group of a long name called by its method and its first run."""
    shown = {str(run.folder): name for run, name in zip(runs, named, strict=True)}
    called: dict[str, str] = {}
    for one in trained:
        run = shown[one.name]
        kind = run.settings.get("preset", run.summary.get("method"))
        called.setdefault(one.group, one.group if len(one.group) <= LONGEST else f"{kind} as in {run.name}")
    return [replace(one, group=called[one.group]) for one in trained]


def _sample(runs: Sequence[Account], data: Any, threads: int, notes: list[str], say: Say) -> Sample | None:
    """Pictures seen by the first encoder there is; data that were named have to be usable, those of the run need not be there."""
    run = next((run for run in runs if (run.folder / "encoder" / "config.json").is_file()), None)
    if run is None:
        notes.append("No pictures are shown: there is no encoder yet.")
        return None
    place = data
    if data is None:
        own = run.settings.get("data")
        if not isinstance(own, str) or not Path(own).exists():
            notes.append("No pictures are shown: those of the run are not at hand (--data names them).")
            return None
        place = own
    try:
        sample = sample_of(place, run.folder, threads, say)
        if data is None and (told := _others(run, len(sample.source))):
            notes.append(told)
        return sample
    except SmallviewError as error:
        if data is not None and isinstance(error, DataError):
            raise
        notes.append(f"No pictures are shown: {error}.")
        return None


def _others(run: Account, there: int) -> str:
    """Whether what lies in the run's place now can be the run's pictures, by their number; a part of them tells nothing."""
    known = figure(run.recorded, "pictures")
    if known is None or any(run.settings.get(name) not in (None, "none") for name in ("subset", "exclude")):
        return ""
    broken = run.folder / "bad_files.jsonl"
    most = known + (sum(1 for _ in jsonl_lines(broken)) if broken.is_file() else 0)
    if known <= there <= most:
        return ""
    return f"{run.name} was trained on {known:,.0f} pictures, and {there:,} lie in their place now: those shown may be others."


def _page(
    runs: Sequence[Account],
    named: Sequence[Account],
    groups: Sequence[Group],
    found: Comparison | None,
    sample: Sample | None,
    notes: list[str],
    hidden: _Privacy,
    room: int,
    say: Say,
) -> str:
    shown = [replace(group, name=hidden.text(group.name)) for group in groups]
    sections = [Section("Verdict", verdict(shown))]
    if found is not None and len(found.groups) > 1:
        sections.append(Section("Comparison", _comparison(found, hidden)))
    sections += [
        Section("What it is", facts(named)),
        Section("Results", results(shown)),
        Section("Training", curves(named, shown)),
    ]
    if sample is not None:
        sections += _pictures(runs, named, sample, notes, room, say)
    sections.append(Section("Settings", settings(shown)))
    gaps = missing(named, [hidden.text(note) for note in notes])
    if gaps is not None:
        sections.insert(1, Section("What is missing", gaps))
    title = named[0].name if len(named) == 1 else f"{len(named)} runs"
    kind = " · ".join(dict.fromkeys(_kind(run) for run in named))
    made_by = f"smallview {__version__}. One file: it asks for nothing and sends nothing."
    return page(title, kind, sections, made_by)


def _kind(run: Account) -> str:
    names = run.settings.get("preset", run.summary.get("method")), run.settings.get("encoder", run.summary.get("encoder"))
    told = ", ".join(str(name) for name in names if name)
    pictures = run.recorded.get("pictures")
    if told and isinstance(pictures, int):
        return f"{told}, {pictures:,} pictures of {run.settings.get('data', '?')}"
    return told or "a run without settings"


def _comparison(found: Comparison, hidden: _Privacy) -> Markup:
    head, rows = table(found)
    cells: list[list[Child]] = [[hidden.text(cell) for cell in row] for row in rows]
    words = 2 if head[1] == "on" else 1
    said = [tag("li", markup.name_of(hidden.text(text))) for text in sentences(found)]
    return join(
        markup.table(
            "Mean ± standard deviation over seeds", [hidden.text(title) for title in head], cells, words=words, class_="figures"
        ),
        tag("ul", said, class_="notes") if said else None,
    )


def _pictures(
    runs: Sequence[Account], named: Sequence[Account], sample: Sample, notes: list[str], room: int, say: Say
) -> list[Section]:
    content, css = atlas_part(sample, room)
    k = next(k for k, run in enumerate(runs) if (run.folder / "encoder" / "config.json").is_file())
    whose = tag("p", "As seen by the encoder of ", markup.name_of(named[k].name), ".") if len(runs) > 1 else None
    out = [Section("Pictures", join(whose, content), css)]
    try:
        say("report: pictures that are there twice")
        doubles, its_css = doubles_part(sample.source, sample.pack, sample.positions, DOUBLES_ROOM, torch.get_num_threads())
        out.append(Section(TWICE, doubles, its_css))
    except SmallviewError as error:
        notes.append(f"Pictures that are there twice were not looked for: {error}.")
    try:
        config = stored_config(runs[k].folder)
        if config is not None:
            views, its_css = views_part(sample, config, VIEWS_ROOM, say)
            out.append(Section("Views", views, its_css))
    except SmallviewError as error:
        notes.append(f"No views are shown: {error}.")
    return out
