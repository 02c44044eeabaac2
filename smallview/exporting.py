"""An encoder handed over: to timm, torchvision, ONNX, torch.export or a model hub, checked to be the same there before it is kept."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from smallview.config import RunConfig
from smallview.continuing import finished, stored_config
from smallview.errors import DataError, SmallviewError, UsageError, suggest
from smallview.evaluation.features import Judged, weights_hash
from smallview.evaluation.subject import check_untouched, open_part, open_subject
from smallview.files import check_folder, close_path, read_jsonl, write_text
from smallview.networks.encoders import EncoderConfig, load_encoder
from smallview.output.model_card import Past, model_card, name_of_data
from smallview.output.parity import PICTURES, TOLERANCE, Parity, Shown, compare, features_of, made_pictures
from smallview.output.targets import CARD, Handed, check_holds, is_export, target_of
from smallview.output.traced import INPUTS
from smallview.presets import PRESETS
from smallview.records import Pictures, Row
from smallview.seeds import generator
from smallview.settings import diff, load_toml, to_tables
from smallview.settle import thread_count
from smallview.single import Run
from smallview.views.making import centre_part, centre_views
from smallview.views.view import CENTRE

SMALL = 32
Say = Callable[[str], None]


def _quiet(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Exported:
    """A finished export: its folder, the target, the files in it, and how it compared with the encoder in this library."""

    path: Path
    to: str
    files: tuple[str, ...]
    parity: Parity

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        parity = {**asdict(self.parity), "relative": self.parity.relative}
        return {"out": str(self.path), "to": self.to, "files": list(self.files), "parity": parity}


def export(
    run: str | Path | Run,
    to: str,
    out: str | Path,
    *,
    pictures: Any = None,
    input: str = "normalised",
    into: nn.Module | None = None,
    weights: str | Path | None = None,
    weights_coverage: float = 1.0,
    size: int | None = None,
    stem: str = "auto",
    threads: int | None = None,
    say: Say = _quiet,
) -> Exported:
    """Write the encoder of a run so that others open it without this library, once it has been checked to give the same features there.

    run: a finished run, its folder, or an encoder folder. to: timm, torchvision, onnx, torch-export or hub. out: a new or empty folder,
    or one with an earlier export, which is replaced. pictures: what to check with, 64 of any data; without it, made ones. input: what a
    program of onnx or torch-export takes: `normalised` images [B, C, S, S], `float` ones in [0, 1], or `uint8` pictures [B, S, S, C].
    into: the module, where the run's encoder is one of your own. weights: a file of weights, for the encoder whose name `run` then is, at
    this size and with this stem; at least this share of its tensors must be there.

    The check: the greatest difference of a feature must be under 1e-4 of the features' root mean square in batches of 1 to 5, and every
    picture must keep its nearest neighbour. Nothing is left in `out` where it fails.

    Raises:
        UsageError: no such target, an encoder that it cannot hold, no finished run, or a folder that holds something else.
        DataError: pictures that cannot be used, or weights that were changed since their run ended.
        SmallviewError: damaged weights, or an export that is not equal.

    Example:
        >>> from smallview.networks.encoders import build_encoder, save_encoder
        >>> net, config = build_encoder("dense_small:8-16", size=16)
        >>> config = EncoderConfig(**{**asdict(config), "mean": (0.5,) * 3, "std": (0.25,) * 3})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_encoder(net, config, Path(folder) / "encoder")
        ...     export(f"{folder}/encoder", "hub", f"{folder}/out").files
        ('README.md', 'config.json', 'load.py', 'model.safetensors')
    """
    target = target_of(to)
    if input not in INPUTS:
        raise UsageError(f'--input is "{input}"{suggest(input, INPUTS)}')
    place = _free(out)
    source = run.path if isinstance(run, Run) else Path(run)
    if into is None and isinstance(run, Run) and not isinstance(run.encoder, nn.Identity):
        into = run.encoder
    if weights is None:
        net, config = _finished_encoder(source, copy.deepcopy(into))
    else:
        named = str(run) if into is None else copy.deepcopy(into)
        subject = open_subject(named, size=size, stem=stem, weights=weights, weights_coverage=weights_coverage, say=say)
        net, config = subject.encoder, subject.config
    shown = None if pictures is None else open_part(pictures, config, threads=thread_count(threads))
    past = past_of(source, net) if weights is None else Past()
    handed = Handed(net, config, _crop(config, None if shown is None else shown.pictures, past), input)
    check_holds(to, handed)
    if shown is None:
        looked_at, words = made_pictures(config.size, config.mean, config.std), "gradients and noise"
    else:
        looked_at, words = _drawn(shown.pictures, config), name_of_data(shown.name)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=_ancestor(place)) as stage:
        made = Path(stage) / "made"
        made.mkdir()
        target.write(handed, made)
        parity = compare(features_of(net, config.mean, config.std), target.open(made), looked_at, words)
        if not parity.holds:
            raise SmallviewError(
                f"the export to {to} is not equal, and was not kept: {parity.sentence()}; wanted a difference of at most {TOLERANCE:g} "
                "of the scale and no other neighbour; please report it"
            )
        write_text(made / CARD, model_card(to, handed, past, parity))
        shutil.rmtree(made / "__pycache__", ignore_errors=True)
        _move(made, place)
    return Exported(Path(out), to, tuple(sorted(path.name for path in place.iterdir())), parity)


def _free(out: str | Path) -> Path:
    """The folder to write, which is new, empty, or an earlier export."""
    check_folder(out)
    place = Path(out).resolve()
    if place.is_dir() and any(place.iterdir()) and not is_export(place):
        raise UsageError(f"{out} is not empty and holds no earlier export alone; choose another --out")
    return place


def _ancestor(place: Path) -> Path:
    """The nearest folder above that is there: on the same disk, and nothing is made before all is well."""
    return next(folder for folder in place.parents if folder.is_dir())


def _move(made: Path, place: Path) -> None:
    """Put the new folder in its place; an earlier export is set aside until it stands there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made.chmod(0o777 & ~_umask())
    if place.is_dir() and not any(place.iterdir()):
        for path in sorted(made.iterdir()):  # a folder that was made for this stays, with whoever stands in it
            path.rename(place / path.name)
        return
    earlier = made.with_name("earlier")
    if place.exists():
        place.rename(earlier)
    try:
        made.rename(place)
    except OSError:
        if earlier.exists():
            earlier.rename(place)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finished_encoder(folder: Path, into: nn.Module | None) -> tuple[nn.Module, EncoderConfig]:
    """The encoder in a folder; of a run, the one that it ended with.

    Raises:
        UsageError: no encoder, one whose run has not ended, or one that does not say how it is fed.
    """
    if not folder.exists():
        raise UsageError(f"no run or encoder folder at {folder}{close_path(folder)}; wanted one")
    if (folder / "run.toml").exists() and not finished(folder):
        raise UsageError(f"the run in {folder} has not finished; run the same pretrain command to go on, then export")
    net, config = load_encoder(folder, into)
    if not config.mean or not config.std:
        raise UsageError(
            f"the config.json of {folder} has no mean and std; wanted those of the pictures that it was trained on"
        )
    if (folder / "run.toml").exists():
        check_untouched(folder, Judged(net, config, folder.name, 0, {}))
    return net, config


def _crop(config: EncoderConfig, pictures: Pictures | None, past: Past) -> float:
    """How much of the short side a centre view covers: by the pictures given, those it was judged on, those it was trained on, or the size."""
    if pictures is not None:
        return centre_part(pictures, config.size)
    if past.rows:
        return 1.0 if any("of the whole picture" in row.protocol for row in past.rows) else CENTRE
    if past.centre is not None:
        return past.centre
    return 1.0 if config.size <= SMALL else CENTRE


def _drawn(pictures: Pictures, config: EncoderConfig) -> Shown:
    """Up to 64 pictures of a set as their centre views, uint8 [B, S, S, C].

    Raises:
        DataError: fewer than two.
    """
    if len(pictures) < 2:
        raise DataError(
            f"--pictures holds {len(pictures)} picture{'s' * (len(pictures) != 1)}; wanted 2 or more, best {PICTURES}"
        )
    draw = generator(0, "pictures of an export")
    which = np.sort(draw.choice(len(pictures), min(PICTURES, len(pictures)), replace=False)).astype(np.int64)
    plain = [0.0] * config.in_channels, [1.0] * config.in_channels
    views = np.concatenate([part.numpy() for part in centre_views(pictures, config.size, *plain, which=which)])
    return np.ascontiguousarray((255.0 * views.clip(0.0, 1.0)).round().astype(np.uint8).transpose(0, 2, 3, 1))


def past_of(folder: Path, net: nn.Module) -> Past:
    """What a run folder says of how its encoder came about; nothing for an encoder folder.

    Raises:
        SmallviewError: damaged records.
    """
    config = stored_config(folder)
    if config is None:
        return Past()
    recorded = load_toml(folder / "run.toml").get("recorded", {})
    for stage in sorted(folder.glob("stages/*/run.toml"), key=lambda path: int(path.parent.name.split("-")[0])):
        recorded = {**recorded, "centre": load_toml(stage).get("recorded", {}).get("centre")}
    try:
        cost = dict(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["cost"])
        records = read_jsonl(folder / "rows.jsonl") if (folder / "rows.jsonl").exists() else []
        rows = [Row(**record) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SmallviewError(
            f"summary.json or rows.jsonl in {folder} is damaged ({error}); export {folder / 'encoder'}"
        ) from error
    own = weights_hash(net)
    last = {(row.metric, row.protocol): row for row in rows if row.settings.get("encoder_sha256", own) == own}
    return Past(
        data=name_of_data(config.data),
        pictures=recorded.get("pictures"),
        method=config.preset,
        length=_length(config),
        settings=_differing(config),
        rows=list(last.values()),
        cost=cost,
        machine=recorded.get("machine"),
        centre=recorded.get("centre"),
    )


def _length(config: RunConfig) -> str:
    if config.stages:
        return f"{len(config.stages)} stages of {', '.join(str(stage.size) for stage in config.stages)} px"
    length = f"{config.minutes:g} minutes" if config.epochs is None else f"{config.epochs:g} epoch{'s' * (config.epochs != 1)}"
    return f"{length} in batches of {config.batch_size} pictures, seed {config.seed}"


def _differing(config: RunConfig) -> list[str]:
    """The settings of method and optimizer that are not the preset's, its batch size and length where it has some, and what a run may add."""
    added = [] if config.weights_from is None else [f"weights_from: {name_of_data(config.weights_from)}"]
    if config.exclude is not None:
        added.append(f"exclude: {name_of_data(config.exclude)}")
    if config.subset is not None:
        chosen = {name: value for name, value in to_tables(config.subset).items() if value not in ("none", False)}
        added += [f"subset.{name}: {name_of_data(str(value))}" for name, value in chosen.items()]
    if config.preset not in PRESETS:
        return added
    preset = PRESETS[config.preset]()
    names = [name for name in ("batch_size", "epochs") if getattr(preset, name) is not None]

    def tables(value: Any) -> Mapping[str, Any]:
        found = {"method": to_tables(value.method), "optimizer": to_tables(value.optimizer)}
        return found | {name: getattr(value, name) for name in names}

    return added + diff(tables(preset), tables(config))
