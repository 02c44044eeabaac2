"""What can be judged and embedded: a run folder, an encoder folder, a timm name or a module; and labeled data to judge it on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from smallview.data.arrays import load_npz
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import Source, open_source
from smallview.errors import DataError, UsageError, suggest
from smallview.evaluation.bench import Labeled
from smallview.evaluation.channels import ThreeChannels
from smallview.evaluation.features import Judged, weights_hash
from smallview.evaluation.judge import match_classes
from smallview.networks.encoders import EncoderConfig, build_encoder, count_features, describe, load_encoder
from smallview.networks.foreign import Coverage, fit_weights
from smallview.networks.weight_files import read_weights
from smallview.records import Pictures
from smallview.views.view import centre_side

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_subject(
    what: str | Path | nn.Module,
    *,
    size: int | None = None,
    stem: str = "auto",
    weights: str | Path | None = None,
    weights_coverage: float = 1.0,
    say: Callable[[str], None] | None = None,
) -> Judged:
    """The encoder to judge, with how to feed it.

    A run or encoder folder says all itself; `size` shows it pictures of another one. A timm name means timm's pretrained weights, found
    on this machine only (nothing is downloaded). A module [B, C, S, S] -> [B, F] is fed pictures of `size` (default 32), normalised by
    mean 0.5 and deviation 0.25; C is the first `in_channels` of its layers, or 3. weights: a file of them that others wrote, for the encoder of
    this name or the module; with stem, the least share that they must cover, and how that is told, as for `with_weights`.

    Raises:
        UsageError: none of these. SmallviewError: damaged or missing weights.
    """
    if weights is not None:
        subject, coverage = with_weights(what, weights, size=size, stem=stem, weights_coverage=weights_coverage)
        if say is not None:
            stem_told = "; with the small-image stem (--stem standard for the usual one)" * (subject.config.stem == "small")
            say(coverage.sentence() + stem_told)
        return subject
    if isinstance(what, nn.Module):
        taken = (getattr(layer, "in_channels", None) for layer in what.modules())  # a dictionary of patches is no Conv2d
        in_channels = next((channels for channels in taken if isinstance(channels, int)), 3)
        config = describe(what, in_channels=in_channels, size=size or 32)
        half = (0.5,) * in_channels, (0.25,) * in_channels
        return Judged(what, EncoderConfig(**{**vars(config), "mean": half[0], "std": half[1]}), type(what).__name__, 0, {})
    path = Path(what)
    if not path.exists() and len(path.parts) == 1 and "." in str(what):
        return _pretrained(str(what))
    encoder, config = load_encoder(path)
    if size is not None and size != config.size:
        if count_features(encoder, config.in_channels, size) != config.features:
            raise UsageError(f"{path} has other features at {size} px than at {config.size}; wanted --size {config.size}")
        config = replace(config, size=size, made_for=config.made_for or config.size)
    seed, cost = 0, {}
    if (path / "summary.json").is_file():
        try:
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            seed, cost = int(summary["seed"]), dict(summary["cost"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path / 'summary.json'} is damaged ({error}); name {path / 'encoder'} instead") from error
    return Judged(encoder, config, path.resolve().name, seed, cost)


def check_untouched(folder: Path, subject: Judged) -> None:
    """Whether the encoder in a run folder is the one that its run wrote: one fine-tuned since then is not what the run made.

    Raises:
        DataError: it is another one.
    """
    try:
        told = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("encoder_sha256")
    except (OSError, ValueError, AttributeError):
        return  # an older run, or one without a summary: open_subject has spoken of damage
    if told is not None and told != weights_hash(subject.encoder):
        raise DataError(
            f"the encoder in {folder / 'encoder'} is not the one that this run made: its weights were changed since the run ended; "
            f"use it as what it is, an encoder of its own (copy {folder / 'encoder'} elsewhere and name that), or restore the run's"
        )


def with_weights(
    what: str | Path | nn.Module,
    weights: str | Path,
    *,
    size: int | None = None,
    stem: str = "auto",
    in_channels: int = 3,
    weights_coverage: float = 1.0,
) -> tuple[Judged, Coverage]:
    """An encoder by its name or a module, with weights from a file that others wrote, and how much of it they cover.

    Pictures are normalised by ImageNet's statistics, as most such files expect. size: 32 by default. stem: auto is the one of the
    size's rule, unless the file has weights for the other one.

    Raises:
        UsageError: weights that cover less than this share of the encoder. DataError: a file that cannot be used.
    """
    if isinstance(what, nn.Module):
        net, config = what, describe(what, in_channels=in_channels, size=size or 32)
    else:
        net, config = build_encoder(str(what), in_channels=in_channels, size=size or 32, stem=stem)
    tensors = read_weights(weights)
    one_stem = isinstance(what, nn.Module) or stem != "auto" or not 0.0 < weights_coverage <= 1.0
    try:
        coverage = fit_weights(net, tensors, least=weights_coverage if one_stem else 1.0)
    except UsageError:
        if one_stem:
            raise
        net, config, coverage = _other_stem(str(what), config, tensors, weights_coverage)
    mean, std = IMAGENET if in_channels == 3 else ((0.5,) * in_channels, (0.25,) * in_channels)
    return Judged(net.eval(), replace(config, mean=mean, std=std), Path(weights).stem, 0, {}), coverage


def _other_stem(
    name: str, config: EncoderConfig, tensors: Mapping[str, Tensor], least: float
) -> tuple[nn.Module, EncoderConfig, Coverage]:
    """The encoder with the stem that the rule does not give, where all its weights are there; else with the rule's, as far as allowed."""
    other = "standard" if config.stem == "small" else "small"
    for stem, share in ((other, 1.0), (config.stem, least)):
        try:
            net, described = build_encoder(name, in_channels=config.in_channels, size=config.size, stem=stem)
            return net, described, fit_weights(net, tensors, least=share)
        except UsageError:
            if stem == config.stem:
                raise
    raise AssertionError("one of the two was returned or raised")


def _pretrained(name: str) -> Judged:
    """Timm's pretrained weights of that name, from this machine's cache only."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import timm

    if not timm.list_models(name, pretrained=True):
        close = suggest(name[:80], timm.list_models(pretrained=True)).partition("; there are")[0]
        raise UsageError(
            f'there is no run folder "{name}" and timm has no weights of that name{close}; '
            "wanted a run folder or a timm name with tag"
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
    data: Any,
    config: EncoderConfig,
    *,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
    labels: bool = True,
) -> tuple[Source, Pack]:
    """The source and the pack of any data, as large as the encoder's centre view needs; without their labels if so asked.

    Raises:
        DataError: data that cannot be used, or channels that differ from the encoder's.
    """
    source = open_source(data, labels=labels)
    if source.channels != config.in_channels and not (source.channels == 1 and config.in_channels == 3):
        raise DataError(
            f"{source.name} has {source.channels} channel{'s' * (source.channels != 1)} and the encoder was trained on "
            f"{config.in_channels}; convert the pictures, or train an encoder on such"
        )
    return source, open_pack(source, short_side=centre_side(config.size), threads=threads, progress=progress)


def open_part(data: Any, config: EncoderConfig, *, threads: int = 2, needed: str | None = None) -> Labeled:
    """Pictures with their targets: class folders, .npz, (images, targets); targets may be several labels or numbers a picture.

    Gray pictures are shown to an encoder of three channels as three equal ones. needed: the flag that asked, where labels must be.

    Raises:
        DataError: data that cannot be used, or no labels where they must be.
    """
    images, targets = _apart(data)
    source, pack = evaluation_pack(images, config, threads=threads, labels=targets is None)
    if targets is not None and len(targets) != len(source):
        raise DataError(f"{len(targets):,} rows of targets for {len(source):,} pictures of {source.name}; wanted one row each")
    found = pack.labels if targets is None else targets[pack.index]
    if found is None and needed is not None:
        raise DataError(f"{needed} {source.name} has no labels; wanted class folders, (images, labels), or an .npz with labels")
    pictures: Pictures = pack if pack.channels == config.in_channels else ThreeChannels(pack)
    named = pack.name if pictures is pack else f"{pack.name} (gray as three channels)"
    return Labeled(pictures, found, named, pack.classes if targets is None else None, pack.names)


def _apart(data: Any) -> tuple[Any, npt.NDArray[Any] | None]:
    """(pictures, targets): targets None where labels, if any, are one class a picture, which the source reads itself."""
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[1], (str, os.PathLike)):
        targets = _several(data[1])
        return (data, None) if targets is None else (data[0], targets)
    if isinstance(data, (str, os.PathLike)) and str(data).endswith(".npz") and Path(data).is_file():
        images, values = load_npz(Path(data))
        targets = None if values is None else _several(values)
        return (data, None) if targets is None else (images, targets)
    return data, None


def _several(values: Any) -> npt.NDArray[Any] | None:
    """Several labels bool [N, K] or numbers float32 [N, D]; None for one class a picture."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.dtype.kind == "f":
        return array.astype(np.float32).reshape(len(array), -1)
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "iub":
        if not np.isin(array, (0, 1)).all():
            raise DataError(
                f"targets [{len(array):,}, {array.shape[1]}] hold {array.min()} to {array.max()}; wanted 0 and 1 for several labels a "
                "picture, or floats for numbers to predict"
            )
        return array.astype(np.bool_)
    return None


def open_labeled(
    train: Any, test: Any, config: EncoderConfig, *, threads: int = 2, needed: bool = True
) -> tuple[Labeled, Labeled]:
    """The training and test parts, test classes matched to training classes by name.

    Raises:
        DataError: a part without labels where they are needed, or test classes that the training part does not have.
    """
    flags = ("--train", "--test") if needed else (None, None)
    parts = [open_part(data, config, threads=threads, needed=flag) for flag, data in zip(flags, (train, test), strict=True)]
    return parts[0], matched(parts[0], parts[1])


def matched(train: Labeled, test: Labeled) -> Labeled:
    """The test part with its classes numbered as those of the training part.

    Raises:
        DataError: test classes that the training part does not have.
    """
    moved = match_classes(train.classes, test.classes)
    if moved is None or test.labels is None:
        return test
    return replace(test, labels=np.asarray([moved[int(label)] for label in test.labels], np.int64))
