"""What can be judged and embedded: a run folder, an encoder folder, a timm name or a module; and labeled data to judge it on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import Source, open_source
from smallview.errors import DataError, UsageError
from smallview.evaluation.features import Judged
from smallview.evaluation.protocol import Labeled, match_classes
from smallview.networks.encoders import EncoderConfig, describe, load_encoder

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_subject(what: str | Path | nn.Module, *, size: int | None = None, in_channels: int = 3) -> Judged:
    """The encoder to judge, with how to feed it.

    A run or encoder folder says all itself. A timm name means timm's pretrained weights, found on this machine only (nothing is
    downloaded). A module [B, C, S, S] -> [B, F] is fed pictures of `size` (default 32), normalised by mean 0.5 and deviation 0.25.

    Raises:
        UsageError: none of these. SmallviewError: damaged or missing weights.
    """
    if isinstance(what, nn.Module):
        config = describe(what, in_channels=in_channels, size=size or 32)
        half = (0.5,) * in_channels, (0.25,) * in_channels
        return Judged(what, EncoderConfig(**{**vars(config), "mean": half[0], "std": half[1]}), type(what).__name__, 0, {})
    path = Path(what)
    if not path.exists() and len(path.parts) == 1 and "." in str(what):
        return _pretrained(str(what))
    encoder, config = load_encoder(path)
    seed, cost = 0, {}
    if (path / "summary.json").is_file():
        try:
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            seed, cost = int(summary["seed"]), dict(summary["cost"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path / 'summary.json'} is damaged ({error}); name {path / 'encoder'} instead") from error
    return Judged(encoder, config, path.resolve().name, seed, cost)


def _pretrained(name: str) -> Judged:
    """Timm's pretrained weights of that name, from this machine's cache only."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import timm

    if not timm.list_models(name, pretrained=True):
        raise UsageError(
            f'there is no run folder "{name}" and timm has no weights of that name; wanted a run folder or a timm name with tag'
        )
    try:
        net = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f'the weights of "{name}" are not on this machine and smallview downloads nothing by itself; '
            f"fetch them with timm.create_model({name!r}, pretrained=True) once"
        ) from error
    given: Any = net.pretrained_cfg
    config = describe(net, in_channels=3, size=int(given["input_size"][-1]))
    mean, std = tuple(given.get("mean", IMAGENET[0])), tuple(given.get("std", IMAGENET[1]))
    architecture = name.split(".")[0]
    return Judged(
        net.eval(), EncoderConfig(**{**vars(config), "architecture": architecture, "mean": mean, "std": std}), name, 0, {}
    )


def evaluation_pack(
    data: Any, config: EncoderConfig, *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> tuple[Source, Pack]:
    """The source and the pack of any data, as large as the encoder's centre view needs.

    Raises:
        DataError: data that cannot be used, or channels that differ from the encoder's.
    """
    source = open_source(data)
    if source.channels != config.in_channels:
        raise DataError(
            f"{source.name} has {source.channels} channel{'s' * (source.channels != 1)} and the encoder was trained on "
            f"{config.in_channels}; convert the pictures, or train an encoder on such"
        )
    return source, open_pack(source, short_side=math.ceil(config.size / 0.875), threads=threads, progress=progress)


def open_labeled(train: Any, test: Any, config: EncoderConfig, *, threads: int = 2) -> tuple[Labeled, Labeled]:
    """The labeled training and test parts, test classes matched to training classes by name.

    Raises:
        DataError: a part without labels, or test classes that the training part does not have.
    """
    packs = []
    for flag, data in (("--train", train), ("--test", test)):
        source, pack = evaluation_pack(data, config, threads=threads)
        if pack.labels is None:
            raise DataError(
                f"{flag} {source.name} has no labels; wanted class folders, (images, labels), or an .npz with labels"
            )
        packs.append(pack)
    moved = match_classes(packs[0].classes, packs[1].classes)
    test_labels = np.asarray(packs[1].labels, np.int64)
    if moved is not None:
        test_labels = np.asarray([moved[int(label)] for label in test_labels], np.int64)
    return (
        Labeled(packs[0], np.asarray(packs[0].labels, np.int64), packs[0].name),
        Labeled(packs[1], test_labels, packs[1].name),
    )
