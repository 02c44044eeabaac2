"""Judging an encoder, whoever trained it: what is judged, on which pictures, by which protocols, and where the rows go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallview.config import RunConfig
from smallview.continuing import checkpoints_of, finished, stages_of, stored_config
from smallview.errors import UsageError
from smallview.evaluation.bench import Bench, Contestant, Labeled
from smallview.evaluation.cache import FeatureCache
from smallview.evaluation.features import Judged, Training
from smallview.evaluation.judge import judge
from smallview.evaluation.labelled import supervised
from smallview.evaluation.masks import read_masks
from smallview.evaluation.protocols import choose_protocols, protocols_of
from smallview.evaluation.subject import check_untouched, matched, open_labeled, open_part, open_subject
from smallview.files import check_folder, jsonl_line, write_text
from smallview.networks.encoders import save_encoder
from smallview.networks.online_target import projector_of
from smallview.records import Row
from smallview.settle import kept_threads, thread_count
from smallview.training import checkpoint
from smallview.training.log import append_row
from smallview.training.precision import choose_device, cpu_flags, fixed_rule

Say = Callable[[str], None]


def _quiet(message: str) -> None:
    """Say nothing."""


def evaluate(
    what: str | Path | nn.Module,
    train: Any,
    test: Any,
    protocols: str | tuple[str, ...] = ("knn", "linear"),
    *,
    sets: Mapping[str, Any] | None = None,
    transfer: Mapping[str, tuple[Any, Any]] | None = None,
    shifted: Mapping[str, Any] | None = None,
    masks: tuple[Any, Any] | None = None,
    weights: str | Path | None = None,
    weights_coverage: float = 1.0,
    size: int | None = None,
    stem: str = "auto",
    threads: int | None = None,
    device: str = "auto",
    leaks: bool = True,
    cache: bool = True,
    say: Say = _quiet,
) -> list[Row]:
    """Judge an encoder on labeled data: every row beside raw pixels and the untrained encoder under the same protocol.

    what: the folder of a run (rows are added to its rows.jsonl), an encoder folder, a timm name, or a module. train, test: folders of
    class folders, (images, targets), .npz with labels, CIFAR .bin or idx files; targets may be classes, several labels bool [N, K],
    or numbers float [N, D]; without any there is the protocol label_free alone. sets: settings of protocols by their path, as in
    {"linear_sgd.epochs": 30}. transfer: more (train, test) pairs by name, judged by the same protocols. shifted: more test parts
    of the same classes by name, for `robust`. masks: of train and of test, a class for each pixel, for `dense`. weights: a file of
    weights for the named encoder; one that has less than `weights_coverage` of its tensors is refused. size, stem: of an encoder that does
    not say them itself. leaks: look for test pictures that the training part has as well. cache: keep features between calls.
    Each Row holds protocol, metric, value, both floors, interval, seed, counts, settings and cost; docs/evaluation.md says what they mean.

    Raises:
        DataError: data without labels or with other classes. UsageError: an unknown protocol or no encoder. SmallviewError: weights
            that changed while they were judged, or since the run that made them ended.

    Example:
        >>> import numpy as np
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> pictures = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8)
        >>> train, test = (pictures[:30], [0, 1] * 15), (pictures[30:], [0, 1] * 5)
        >>> rows = evaluate(net, train, test, "linear", size=8, cache=False)
        >>> rows[0].metric, rows[0].n_train, rows[0].n_test, rows[0].floor_pixels is None
        ('linear top-1 %', 30, 10, False)
    """
    chosen, values = choose_protocols(protocols), protocols_of(sets)
    threads, place = thread_count(threads), choose_device(device)
    rows: list[Row] = []
    with kept_threads():
        torch.set_num_threads(threads)
        subject = opened(what, size=size, stem=stem, weights=weights, weights_coverage=weights_coverage, say=say)
        rule = fixed_rule(subject.encoder, place, cpu_flags())
        needed = any(getattr(values, name).kinds for name in chosen)
        kept = FeatureCache.usual() if cache else FeatureCache(None)
        pairs: dict[str, tuple[Any, Any]] = {"": (train, test), **(transfer or {})}
        for name, (one, other) in pairs.items():
            labeled = open_labeled(one, other, subject.config, threads=threads, needed=needed)
            if masks is not None and not name:
                found = read_masks(masks, labeled, ("--train-masks", "--test-masks"))
                labeled = replace(labeled[0], masks=found[0]), replace(labeled[1], masks=found[1])
            if name:
                labeled = replace(labeled[0], name=f"{name} train"), replace(labeled[1], name=f"{name} test")
            more = (
                {}
                if name
                else {key: _shifted(labeled[0], key, data, subject, threads) for key, data in (shifted or {}).items()}
            )
            rows += judge(
                subject,
                *labeled,
                chosen,
                values=values,
                device=place,
                memory_format=rule.memory_format,
                threads=threads,
                cache=kept,
                shifted=more,
                leaks=leaks,
                on_leaks=None if isinstance(what, nn.Module) else _leaks_into(Path(what)),
                say=say,
            )
    if not isinstance(what, nn.Module) and (Path(what) / "summary.json").exists():
        for row in rows:
            append_row(Path(what) / "rows.jsonl", row)
    return rows


def _shifted(train: Labeled, name: str, data: Any, subject: Judged, threads: int) -> Labeled:
    part = open_part(data, subject.config, threads=threads, needed=f"--shifted {name}")
    return replace(matched(train, part), name=name)


def _leaks_into(folder: Path) -> Callable[[list[dict[str, Any]], str], str | None]:
    """What writes pairs of nearly equal pictures into a run folder, and says where."""

    def write(records: list[dict[str, Any]], name: str) -> str | None:
        if not (folder / "run.toml").exists():
            return None
        path = folder / "near_duplicates.jsonl"
        write_text(path, "".join(jsonl_line(record).decode() for record in records))
        return str(path)

    return write


def opened(
    what: str | Path | nn.Module,
    *,
    size: int | None = None,
    stem: str = "auto",
    weights: str | Path | None = None,
    weights_coverage: float = 1.0,
    say: Say = _quiet,
) -> Judged:
    """The encoder to judge; of a run, checked to be the one that the run made, and with its projector.

    Raises:
        UsageError: nothing that can be judged. DataError: weights that were changed since their run ended.
    """
    subject = open_subject(what, size=size, stem=stem, weights=weights, weights_coverage=weights_coverage, say=say)
    if weights is not None or isinstance(what, nn.Module) or not (Path(what) / "run.toml").exists():
        return subject
    folder = Path(what)
    check_untouched(folder, subject)
    config = stored_config(folder) if finished(folder) else None
    if config is None:
        return subject
    return replace(subject, projector=_projector(folder, config, subject), training=_training(folder, config, subject.cost))


def _training(folder: Path, config: RunConfig, cost: Mapping[str, Any]) -> Training:
    """How a run was trained, stage by stage where it had several."""
    places = stages_of(folder)
    if not places:
        steps = int(cost.get("steps", config.steps or 0))
        return Training(config.method.views, config.optimizer, config.batch_size, steps, depth=config.depth)
    stages: list[Training] = []
    for place in places:
        own = stored_config(place)
        assert own is not None and own.steps is not None, "a finished run has finished stages"
        stages.append(Training(own.method.views, own.optimizer, own.batch_size, own.steps, own.size, own.depth, own.encoder))
    return replace(stages[-1], before=tuple(stages[:-1]))


def train_supervised(
    run: str | Path,
    train: Any,
    out: str | Path,
    *,
    seed: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    say: Say = _quiet,
) -> Path:
    """The encoder of a run from fresh weights, trained with labels in the run's own views, batch and steps; as a folder to judge.

    Labels are used here and nowhere in pretraining. Returns `out`, which `evaluate` and `embed` take.

    Raises:
        UsageError: no finished run there. DataError: data without labels.
    """
    threads, place = thread_count(threads), choose_device(device)
    folder = Path(out)
    check_folder(folder)
    with kept_threads():
        torch.set_num_threads(threads)
        subject = opened(run)
        if subject.training is None:
            raise UsageError(f"{run} is no finished run; wanted one, whose views and steps the training with labels takes over")
        part = open_part(train, subject.config, threads=threads, needed="train")
        rule = fixed_rule(subject.encoder, place, cpu_flags())
        bench = Bench(part, part, subject.seed, place, rule.memory_format, threads, say=say)
        who = Contestant("encoder", subject.encoder, subject.config, training=subject.training)
        started = time.monotonic()
        net = supervised(who, part, bench, subject.training, subject.seed if seed is None else seed)
        save_encoder(net.encoder, subject.config, folder / "encoder")
    known = ("flops", "forward_mmacs", "parameters", "steps", "images")
    cost = {**{k: v for k, v in subject.cost.items() if k in known}, "train_seconds": round(time.monotonic() - started, 2)}
    summary = {"finished": True, "seed": subject.seed if seed is None else seed, "method": "supervised", "cost": cost}
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return folder


def _projector(folder: Path, config: RunConfig, subject: Judged) -> nn.Module | None:
    """The online projector of a finished run's last checkpoint; None where none is left."""
    place = checkpoints_of(folder)
    loaded = checkpoint.load_latest(place) if place.is_dir() else None
    if loaded is None:
        return None
    prefix = "networks.online.projector."
    found = {name[len(prefix) :]: value for name, value in loaded[1].items() if name.startswith(prefix)}
    projector = projector_of(subject.encoder, subject.config.features, config.method.heads)
    try:
        projector.load_state_dict(found)
    except RuntimeError as error:
        raise UsageError(f"the projector in {place} does not fit {folder / 'run.toml'}: {error}") from error
    return projector.eval()
