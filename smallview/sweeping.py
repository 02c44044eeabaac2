"""`sweep`: many trainings that differ in some settings, chosen on a part of the training pictures, never on a test part.

A trial is a choice of settings; each of its seeds is an ordinary run, so that a sweep that was stopped goes on where it was, and its
runs can be compared, judged and used like any other.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from smallview.assess import opened
from smallview.data.sources import Source, open_source
from smallview.data.subsets import cut
from smallview.errors import DivergedError, SmallviewError, UsageError
from smallview.evaluation.cache import FeatureCache
from smallview.evaluation.judge import judge
from smallview.evaluation.subject import open_part
from smallview.files import check_folder, write_text
from smallview.run import pretrain
from smallview.seeds import generator
from smallview.settle import kept_threads, thread_count

PART = 0.1
MOST_TRIALS = 10_000
FLAGS = ("method", "encoder", "epochs", "minutes", "size", "batch_size", "stem")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One choice of settings and what its seeds came to on the validation part; a seed that diverged has no score."""

    number: int
    settings: dict[str, str]
    scores: dict[int, float | None]
    folders: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """The mean score; None where a seed diverged: settings that fail now and then are not the best."""
        known = list(self.scores.values())
        return (
            None if not known or any(score is None for score in known) else fmean(score for score in known if score is not None)
        )

    @property
    def std(self) -> float | None:
        """The spread over seeds; None of one."""
        known = [score for score in self.scores.values() if score is not None]
        return stdev(known) if len(known) > 1 else None


@dataclass(frozen=True)
class Sweep:
    """All trials, the best first; those that diverged last."""

    metric: str
    trials: tuple[Trial, ...]
    command: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        told = [
            {"settings": t.settings, "mean": t.mean, "std": t.std, "scores": t.scores, "folders": list(t.folders)}
            for t in self.trials
        ]
        return {"metric": self.metric, "trials": told, "command": self.command}


def read_over(pairs: Sequence[str]) -> dict[str, list[str]]:
    """What `--over path=v1,v2` asks for: values by path. Commas inside brackets stay.

    Raises:
        UsageError: no path=values, or a path named twice.

    Example:
        >>> read_over(["optimizer.lr=0.1,0.3", "method.views.0.scale=(0.2, 1),(0.5, 1)"])
        {'optimizer.lr': ['0.1', '0.3'], 'method.views.0.scale': ['(0.2, 1)', '(0.5, 1)']}
    """
    out: dict[str, list[str]] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        values = [value for value in _split(text) if value]
        if not equals or not path or not values:
            raise UsageError(f'--over is "{pair}"; wanted path=v1,v2,..., as in --over optimizer.lr=0.1,0.3')
        if path in out:
            raise UsageError(f"--over names {path} twice; wanted all its values in one, as in {path}=v1,v2")
        out[path] = values
    if not out:
        raise UsageError("nothing to go over; wanted --over path=v1,v2, as in --over optimizer.lr=0.1,0.3")
    return out


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def choices(over: Mapping[str, Sequence[str]], random: int | None, seed: int) -> list[dict[str, str]]:
    """Every combination of the values; with `random`, so many different ones of them, drawn by the seed.

    Raises:
        UsageError: more combinations than anyone can mean, without `random`.
    """
    count = math.prod(len(values) for values in over.values())
    if random is None:
        if count > MOST_TRIALS:
            raise UsageError(f"{count:,} combinations; wanted {MOST_TRIALS:,} at most, or --random N of them")
        return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    if random < 1:
        raise UsageError(f"--random is {random}; wanted 1 or more")
    draw = generator(seed, "sweep")
    wanted = min(random, count)
    picked: dict[tuple[int, ...], None] = {}
    while len(picked) < wanted:
        picked[tuple(int(draw.integers(len(values))) for values in over.values())] = None
    return [{path: values[i] for (path, values), i in zip(over.items(), which, strict=True)} for which in picked]


def sweep(
    data: Any,
    over: Mapping[str, Sequence[str]],
    *,
    out: str | Path,
    seeds: int = 1,
    random: int | None = None,
    by: str | None = None,
    given: Mapping[str, Any] | None = None,
    sets: Mapping[str, Any] | None = None,
    seed: int = 0,
    threads: int | None = None,
    say: Say = lambda message: None,
) -> Sweep:
    """Train every choice of settings with every seed on nine tenths of the pictures, and rank them on the tenth that is left.

    over: values by path; method, encoder, epochs, minutes, size, batch_size and stem are paths too. random: try so many of the
    combinations instead of all. by: `linear` or `knn`, for pictures with labels, or `label_free`; by default linear where there are
    labels. Labels choose settings only; no training sees them. given and sets: as for pretrain, the same for all. What was trained
    and scored before is not trained again.

    Raises:
        UsageError: settings that cannot be meant. DataError: too few pictures, or no labels for a choice by labels.
    """
    if not 1 <= seeds <= 1000:
        raise UsageError(f"--seeds is {seeds}; wanted 1 to 1000")
    source = open_source(data)
    by = by or ("linear" if source.labels is not None else "label_free")
    if by not in ("linear", "knn", "label_free"):
        raise UsageError(f'--by is "{by}"; wanted linear, knn or label_free')
    if by != "label_free" and source.labels is None:
        raise UsageError(f"--by is {by} and {source.name} has no labels; wanted --by label_free, or pictures in class folders")
    folder = Path(out)
    check_folder(folder)
    rest, validation = cut(source, PART, seed)
    tried = []
    picks = choices(over, random, seed)
    say(
        f"{len(picks)} choices x {seeds} seed{'s' * (seeds > 1)}, each trained on {len(rest):,} pictures and scored on {len(validation):,} others"
    )
    metric = ""
    for number, choice in enumerate(picks):
        scores: dict[int, float | None] = {}
        folders = []
        for s in range(seeds):
            place = folder / f"{_folder_name(choice)}-seed{s}"
            metric, scores[s] = _score(
                rest, validation, choice, s, place, by, dict(given or {}), dict(sets or {}), threads, say
            )
            folders.append(str(place))
        trial = Trial(number, choice, scores, tuple(folders))
        tried.append(trial)
        told = "diverged" if trial.mean is None else f"{trial.mean:.2f}" + ("" if trial.std is None else f" ± {trial.std:.2f}")
        say(f"{number + 1} of {len(picks)}: {_words(choice)}: {metric} {told}")
    ranked = sorted(tried, key=lambda t: (t.mean is None, -(t.mean or 0.0), t.number))
    if ranked[0].mean is None:
        raise DivergedError(f"every choice diverged; wanted a smaller learning rate: {folder} holds their logs")
    found = Sweep(metric, tuple(ranked), _command(data, ranked[0].settings, dict(given or {}), dict(sets or {})))
    write_text(folder / "sweep.json", json.dumps(found.as_dict(), indent=2) + "\n")
    return found


def _words(choice: Mapping[str, str]) -> str:
    return ", ".join(f"{path}={value}" for path, value in choice.items())


def _folder_name(choice: Mapping[str, str]) -> str:
    """A readable name that no other choice has."""
    told = "-".join(f"{path.rpartition('.')[2]}{value}" for path, value in choice.items())
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in told)[:60]
    return f"{plain}-{hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:6]}"


def _score(
    rest: Source,
    validation: Source,
    choice: Mapping[str, str],
    seed: int,
    place: Path,
    by: str,
    given: dict[str, Any],
    sets: dict[str, Any],
    threads: int | None,
    say: Say,
) -> tuple[str, float | None]:
    """(metric, score) of one run, trained and scored unless it was; None where it diverged."""
    record = place / "sweep_score.json"
    same = {"by": by, "settings": dict(choice), "given": given, "sets": sets, "pictures": [rest.fingerprint, len(rest)]}
    key = hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()
    if record.is_file():
        try:
            told = json.loads(record.read_text(encoding="utf-8"))
            if told["key"] == key:  # else the training itself says what changed
                return str(told["metric"]), None if told["score"] is None else float(told["score"])
        except (ValueError, KeyError, TypeError):
            say(f"{record} is damaged; scored anew")
    flags = {**given, **{path: _plain(path, value) for path, value in choice.items() if path in FLAGS}}
    deep = {**sets, **{path: value for path, value in choice.items() if path not in FLAGS}}
    method, encoder = flags.pop("method", None), flags.pop("encoder", None)
    metric, score = "", None
    try:
        run = pretrain(rest, method, encoder, out=place, seed=seed, sets=deep, quiet=True, **flags)
    except DivergedError as error:
        say(f"{_words(choice)}, seed {seed}: {error}")
        place.mkdir(parents=True, exist_ok=True)
    else:
        count = thread_count(threads)
        with kept_threads():
            torch.set_num_threads(count)
            subject = opened(run.path)
            fitted, asked = (open_part(part, subject.config, threads=count) for part in (rest, validation))
            rows = judge(subject, fitted, asked, (by,), threads=count, cache=FeatureCache(None), leaks=False, floors=False)
        metric, score = rows[0].metric, rows[0].value
        if by == "label_free":
            row = next((row for row in rows if row.settings.get("recommended")), None)
            if row is None:
                raise SmallviewError("label_free recommends no score; wanted --by linear or knn")
            metric, score = row.metric, row.value
    write_text(record, json.dumps({"key": key, "settings": dict(choice), "metric": metric, "score": score}) + "\n")
    return metric, score


def _plain(path: str, value: str) -> Any:
    """The value of a flag."""
    kinds: dict[str, type] = {"epochs": float, "minutes": float, "size": int, "batch_size": int}
    try:
        return kinds.get(path, str)(value)
    except ValueError:
        raise UsageError(f'--over {path} has "{value}"; wanted a number') from None


def _command(data: Any, best: Mapping[str, str], given: Mapping[str, Any], sets: Mapping[str, Any]) -> str:
    """What trains the best choice on all pictures."""
    words = ["smallview", "pretrain", str(data) if isinstance(data, (str, Path)) else "DATA"]
    for name, value in {**given, **{path: value for path, value in best.items() if path in FLAGS}}.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for path, value in {**sets, **{path: value for path, value in best.items() if path not in FLAGS}}.items():
        words += ["--set", f"{path}={value}"]
    return shlex.join(words)
