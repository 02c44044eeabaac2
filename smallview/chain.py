"""A run of several stages: each is a training in a folder of its own, RUN/stages/1-56px, and begins with what the one before has left.

Nothing but the folders says how far it has come, so that a run which was killed anywhere, between two stages too, goes on to the same bits.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smallview.choosing import LIST
from smallview.collectives import rank, tell, wait_for_all
from smallview.config import RunConfig, smallest_side, stage_settings
from smallview.continuing import finished, going_on, stages_of, stored_config, write_config
from smallview.data.sources import Source
from smallview.data.subsets import taken
from smallview.evaluation.features import recalibrate, weights_hash
from smallview.files import jsonl_line, write_text
from smallview.foresight import check_chain
from smallview.networks.encoders import build_encoder, load_encoder, save_encoder
from smallview.pictures import changed_pictures, changed_source, decoded, record_source
from smallview.single import Call, Link, Run, Start, as_it_is, run_training
from smallview.training.cost import forward_macs
from smallview.training.handover import Ended
from smallview.training.log import read_jsonl
from smallview.training.processes import in_turn
from smallview.training.progress import clock

SUMMED = ("train_seconds", "forecast_seconds", "flops", "steps", "epochs", "images", "epochs_224")
GREATEST = ("peak_memory_mib", "forecast_memory_mib")


def run_stages(source: Source, start: Start, call: Call) -> Run:
    """Train stage after stage, from where the folders say that it stands."""
    config, folder = start.config, start.folder
    leads, count = rank() == 0, len(config.stages)
    if start.began and _told(finished(folder)):
        _check_same_pictures(source, start, call)
        return as_it_is(folder, call.encoder, call.say)
    named = not isinstance(call.encoder, nn.Module) and not config.encoder.startswith("custom:")
    if named and config.stem == "auto":
        # one stem for all stages, that of the pictures which the encoder will see in the end
        config = replace(config, stem=build_encoder(config.encoder, in_channels=source.channels, size=config.size)[1].stem)
    if not start.began:
        with torch.random.fork_rng(devices=[]):
            check_chain(config, source, call.encoder, start.batch_given)
    if leads and not start.began:
        write_config(folder, config, {"pictures": len(source), "fingerprint": source.fingerprint or ""})
        record_source(folder, source)
    wait_for_all()
    command = call.command
    of_stage = replace(call, command=None if command is None else lambda _: command(folder))
    places = [folder / "stages" / f"{k + 1}-{stage.size}px" for k, stage in enumerate(config.stages)]
    for k, place in enumerate(places):
        if _told(finished(place)):
            continue
        settings = stage_settings(config, k)
        link = _link(config, places, k, call.encoder)
        begun = _told((place / "run.toml").exists())
        if k and not begun and link.data_of is None:
            link = replace(link, changed=in_turn(lambda: changed_source(folder, source, call.accept_data_change)))
        if leads:
            place.mkdir(parents=True, exist_ok=True)
            stored = stored_config(place, settings)
            if stored is not None:
                settings = going_on(replace(settings, steps=stored.steps), stored, set(), place, call.say)
        wait_for_all()
        length = (
            f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)}"
            if settings.epochs is not None
            else f"{settings.minutes:g} minutes"
        )
        call.say(f"{link.name}: {settings.size} px, {length}" + (f", depth {settings.depth}" if settings.depth else ""))
        this = Start(
            settings, place, begun, False, start.batch_given or config.stages[k].batch_size is not None, None, source, link
        )
        told = Start.told(this if leads else None)
        this = this if leads else replace(told, source=source, link=link)
        run_training(source, this, of_stage)
        wait_for_all()
        if leads and k + 1 < count:
            _join_metrics(folder, places[: k + 1])
    if leads:
        _join_metrics(folder, places)
        _finish(folder, config, places, source, call)
        call.say(_sentence(folder))
    wait_for_all()
    return as_it_is(folder, call.encoder, lambda message: None)


def _link(config: RunConfig, places: Sequence[Path], k: int, encoder: object) -> Link:
    """How stage k, from 0, of a run with these settings stands in it."""
    own = copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else None
    before = None if k == 0 else Ended.of(places[k - 1], own)
    same = _same_pictures(config, places, k)
    return Link(k + 1, len(places), config.seed, smallest_side(config), config.size, before, same)


def link_of(folder: Path, encoder: object) -> Link | None:
    """How the stage in this folder stands in its run, for a training that goes on from one of its checkpoints; None for a run of its own.

    Raises:
        UsageError: the stage before it is gone, which says what is normalised and frozen.
    """
    whole, places = folder.resolve().parent.parent, stages_of(folder.resolve().parent.parent)
    config = stored_config(whole) if folder.resolve() in places else None
    return None if config is None else _link(config, places, places.index(folder.resolve()), encoder)


def _told(value: bool) -> bool:
    """What process 0 sees, on every process."""
    return bool(json.loads(tell(json.dumps(value))))


def _same_pictures(config: RunConfig, places: Sequence[Path], k: int) -> Path | None:
    """The folder of the stage before, if it trains on the same pictures: they must not have changed since it began."""
    if k == 0 or stage_settings(config, k).subset != stage_settings(config, k - 1).subset:
        return None
    return places[k - 1]


def _check_same_pictures(source: Source, start: Start, call: Call) -> None:
    """Whether these are the pictures of the finished run in the folder: those that its last stage was trained on.

    Raises:
        DataError: they are others.
    """
    settings, place = stage_settings(start.config, len(start.config.stages) - 1), stages_of(start.folder)[-1]
    if settings.subset is not None:
        listed = json.loads((place / LIST).read_text(encoding="utf-8"))
        if listed["pictures"] == len(source):
            source = taken(source, np.array(listed["positions"], np.int64), f"{source.name}-{len(listed['positions'])}")
    pack = in_turn(lambda: decoded(source, settings, None, lambda message: None, smallest_side(start.config)))
    changed_pictures(place, source, pack, call.accept_data_change)


def _finish(folder: Path, config: RunConfig, places: Sequence[Path], source: Source, call: Call) -> None:
    """The last stage's encoder is the run's; what all of them cost is what it cost.

    Where the run's size is another one than the last stage's, its BatchNorm layers get the statistics of that stage's pictures at it.
    """
    summaries = [json.loads((place / "summary.json").read_text(encoding="utf-8")) for place in places]
    own = copy.deepcopy(call.encoder) if isinstance(call.encoder, nn.Module) else None
    encoder, described = load_encoder(places[-1], own)
    if described.size != config.size:
        settings = stage_settings(config, len(places) - 1)
        if settings.subset is not None:  # what is left out of the training is left out of the statistics
            listed = json.loads((places[-1] / LIST).read_text(encoding="utf-8"))["positions"]
            source = taken(source, np.array(listed, np.int64), f"{source.name}-{len(listed)}")
        pack = decoded(source, config, None, call.say)
        described = replace(described, size=config.size, made_for=None)
        recalibrate(encoder, described, pack)
        call.say(f"for pictures of {config.size} px the encoder has got the BatchNorm statistics of such")
    save_encoder(encoder, described, folder / "encoder")
    last = summaries[-1]
    summed = total_cost([summary["cost"] for summary in summaries])
    cost = {**{name: value for name, value in last["cost"].items() if name not in (*SUMMED, *GREATEST)}, **summed}
    stages = [
        {"stage": k + 1, "size": stage.size, "folder": f"stages/{place.name}", "cost": summary["cost"]}
        for k, (stage, place, summary) in enumerate(zip(config.stages, places, summaries, strict=True))
    ]
    cost["forward_mmacs"] = round(forward_macs(encoder, described.in_channels, described.size) / 1e6, 2)
    told = {**last, "seed": config.seed, "encoder_sha256": weights_hash(encoder), "cost": cost, "stages": stages}
    write_text(folder / "summary.json", json.dumps(told, indent=2) + "\n")


def total_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several trainings cost together: sums, and the greatest memory.

    Example:
        >>> total_cost([{"steps": 2, "peak_memory_mib": 5}, {"steps": 3, "peak_memory_mib": 4}])
        {'steps': 5, 'peak_memory_mib': 5}
    """
    out: dict[str, Any] = {}
    for name in SUMMED:
        if all(name in cost for cost in costs):
            whole = sum(cost[name] for cost in costs)
            out[name] = whole if isinstance(whole, int) else float(f"{whole:.6g}")
    for name in GREATEST:
        if all(name in cost for cost in costs):
            out[name] = max(cost[name] for cost in costs)
    return out


def _join_metrics(folder: Path, places: Sequence[Path]) -> None:
    """The run's metrics.jsonl: those of its stages, with steps, images, seconds and FLOPs counted through."""
    lines, before = [], dict.fromkeys(("step", "images", "seconds", "flops", "epoch"), 0.0)
    for k, place in enumerate(places, 1):
        last = dict(before)
        for record in read_jsonl(place / "metrics.jsonl"):
            through = {name: before[name] + record[name] for name in before if isinstance(record.get(name), (int, float))}
            whole = {name: int(value) if name in ("step", "images") else value for name, value in through.items()}
            lines.append(jsonl_line({**record, **whole, "stage": k}).decode())
            last |= through
        before = last
    write_text(folder / "metrics.jsonl", "".join(lines))


def _sentence(folder: Path) -> str:
    cost = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["cost"]
    count = len(stages_of(folder))
    several = f"{count} stage{'s' * (count != 1)}"
    return f"finished: {several}, {cost['steps']:,} steps in {clock(cost['train_seconds'])}; the encoder is in {folder / 'encoder'}"
