"""The foregrounds of a run's pictures: which estimator, which masks of the user, found once and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.config import RunConfig
from smallview.data.decoding import Pixels
from smallview.data.mask_files import kept_foregrounds
from smallview.data.masking import (
    Bools,
    Estimate,
    MaskRule,
    as_mask,
    find_foregrounds,
    masks_in_folder,
    masks_of_array,
    no_foregrounds,
)
from smallview.data.pack import Pack
from smallview.errors import DataError, UsageError, suggest
from smallview.networks.encoders import load_encoder
from smallview.networks.feature_maps import feature_map
from smallview.records import Foregrounds
from smallview.settings import load_toml
from smallview.views.saliency import ESTIMATORS, VERSION, Estimator, FeatureComponent, foreground
from smallview.views.view import check_background

# A name, encoder:RUN or a folder of masks; a function of a batch [B, C, H, W] to [B, 1, H, W]; all masks as one array [N, H, W].
Masks = str | os.PathLike[str] | Callable[[Tensor], Any] | npt.NDArray[Any]
Say = Callable[[str], None]
GIVEN, NONE, ENCODER = "given", "none", "encoder:"
LEAST_MAP = 14


def settings_with_masks(masks: Masks | None, sets: Mapping[str, object] | None) -> dict[str, object]:
    """The settings by path, with the source of the masks among them; what is passed in Python is `given`."""
    if masks is None:
        return dict(sets or {})
    name = os.fspath(masks) if isinstance(masks, (str, os.PathLike)) else GIVEN
    return {"masks.source": name, **(sets or {})}


def masks_background(config: RunConfig) -> bool:
    """Whether a view of the method masks the background."""
    return any(view.mask_background > 0.0 for view in config.method.views)


def check_masks(config: RunConfig, masks: Masks | None, say: Say) -> RunConfig:
    """The settings of a run whose masks can be had; masks that no view wants are told of and left out.

    Raises:
        UsageError: a source that nobody knows, masks passed in Python that are not passed now, or a threshold that they cannot have.
    """
    if not config.masks.source.strip():
        raise UsageError(
            f"masks are named {config.masks.source!r}; wanted {', '.join((*ESTIMATORS, NONE))}, encoder:RUN, or a folder"
        )
    source = str(Path(config.masks.source))  # "masks/" is "masks"
    config = replace(config, masks=replace(config.masks, source=source))
    if not masks_background(config):
        if masks is not None or config.masks != MaskRule():
            say(
                f"{'masks are given' if masks is not None else 'masks.* is set'} and no view of {config.preset} masks the background; "
                "--set method.views.0.mask_background=0.1 would"
            )
        return replace(config, masks=MaskRule())
    if source == GIVEN:
        if masks is None or isinstance(masks, (str, os.PathLike)):
            raise UsageError(
                "masks.source is given, that is a function or an array of yours; pass it in Python: masks=function"
            )
    elif source.startswith(ENCODER):
        load_encoder(source.removeprefix(ENCODER))
    elif source not in (*ESTIMATORS, NONE) and not Path(source).expanduser().is_dir():
        close = suggest(source[:80], [*ESTIMATORS, NONE])
        raise UsageError(
            f'no masks are called "{source[:80]}" and no folder is there{close}, encoder:RUN, or a folder of masks'
        )
    if config.masks.threshold == "otsu" and not (
        source in (*ESTIMATORS, NONE) or source.startswith(ENCODER) or callable(masks)
    ):
        raise UsageError(
            "masks.threshold is otsu, which cuts the maps of an estimator or a function; masks that are there already, in a folder or "
            "an array, are cut at a number: --set masks.threshold=0.5, or auto"
        )
    return config


def foregrounds_of(
    pack: Pack, config: RunConfig, masks: Masks | None, say: Say, progress: Callable[[int, int], None] | None = None
) -> Foregrounds | None:
    """What stands in front in every picture, where a view wants it; found once and kept in the cache, unless masks are given.

    Raises:
        UsageError, DataError: masks, or a colour of the background, that do not fit the pictures.
    """
    if not masks_background(config):
        return None
    for v, view in enumerate(config.method.views):
        if view.mask_background > 0.0:
            check_background(view.background, pack.channels, f"method.views.{v}.background")
    rule = config.masks
    if rule.source == NONE:
        say("masks are switched off: every picture keeps its background")
        return no_foregrounds(len(pack))
    threads = torch.get_num_threads()
    at_once = config.threads if rule.source in ESTIMATORS else 1
    try:
        if rule.source in ESTIMATORS:
            torch.set_num_threads(1)  # batches run side by side, and the same bits come out for any number of threads
        estimate, told = _estimate(rule, masks, pack)

        def find(out: IO[bytes] | None) -> Foregrounds:
            return find_foregrounds(pack, estimate, rule.area, threads=at_once, progress=progress, out=out)[0]

        found = find(None) if told is None or not pack.hash else kept_foregrounds(_key(pack, rule, told), find)
    finally:
        torch.set_num_threads(threads)
    share = float(found.usable.mean())
    low, high = (100 * part for part in rule.area)
    rest = f"; the others have a foreground under {low:g} % or over {high:g} % of the area and stay as they are"
    say(f"masks by {rule.source}: {100 * share:.0f} % of {len(pack):,} pictures have a foreground{rest if share < 1.0 else ''}")
    return found


def check_same_masks(folder: Path, found: Foregrounds | None) -> None:
    """Whether they are the foregrounds that the run in the folder began with.

    Raises:
        DataError: they are others.
    """
    recorded = load_toml(folder / "run.toml").get("recorded", {})
    if recorded.get("masks_hash") != (None if found is None else found.hash):
        raise DataError(
            f"the masks changed since {folder} began: they leave other pixels of the pictures; "
            "give the old ones to go on, or add --fresh to start anew"
        )


def _key(pack: Pack, rule: MaskRule, told: str) -> str:
    """The name under which foregrounds are kept: of the pictures, the rule and what the estimator is."""
    return hashlib.sha256(json.dumps([pack.hash, asdict(rule), told]).encode()).hexdigest()[:32]


def _estimate(rule: MaskRule, masks: Masks | None, pack: Pack) -> tuple[Estimate, str | None]:
    """(what finds masks, what tells it from others; None where nothing does)."""
    number = 0.5 if isinstance(rule.threshold, str) else rule.threshold
    if rule.source in ESTIMATORS:
        return _cut(ESTIMATORS[rule.source], rule, pack), f"version {VERSION}"
    if rule.source.startswith(ENCODER):
        component, weights = encoder_component(rule.source.removeprefix(ENCODER), pack.channels)
        return _cut(component, rule, pack), f"version {VERSION} of {weights}"
    if rule.source != GIVEN:
        return masks_in_folder(Path(rule.source).expanduser(), pack.names, number)
    if callable(masks):
        return _cut(masks, rule, pack), None
    return masks_of_array(np.asarray(masks), len(pack), number), None


def _cut(function: Callable[[Tensor], Any], rule: MaskRule, pack: Pack) -> Estimate:
    """Masks from the maps of a function uint8 [B, C, H, W] -> [B, 1, H, W], by the threshold of the rule."""
    threshold = rule.threshold
    if isinstance(threshold, str):
        threshold = 0.5 if rule.source == GIVEN and threshold == "auto" else "otsu"

    def estimate(batch: Pixels, index: npt.NDArray[np.int64]) -> Bools:
        b, height, width = batch.shape[:3]
        out = function(torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))))
        maps = np.asarray(out.detach().cpu() if isinstance(out, Tensor) else out)
        if maps.shape not in ((b, 1, height, width), (b, height, width)):
            raise UsageError(
                f"masks gave {list(maps.shape)} for {b} pictures [{b}, {batch.shape[3]}, {height}, {width}]; wanted "
                f"[{b}, 1, {height}, {width}]; a function of one picture goes into smallview.views.saliency.per_picture(function)"
            )
        maps = maps.reshape(b, height, width)
        number = threshold if isinstance(threshold, float) else 0.5
        found = np.stack(
            [
                as_mask(m, (height, width), f"the mask of picture {i} ({pack.names[int(i)]})", number)
                for i, m in zip(index, maps, strict=True)
            ]
        )
        if threshold == "otsu" and maps.dtype != np.bool_:
            return foreground(torch.from_numpy(maps.astype(np.float32))[:, None], "otsu")[:, 0].numpy()
        return found

    return estimate


def encoder_component(run: str | Path, channels: int) -> tuple[Estimator, str]:
    """(the estimator by the first component of an encoder's feature map, what tells its weights from others).

    run: a run or encoder folder whose encoder takes pictures of this many channels.

    Raises:
        UsageError: no encoder there, or one of another number of channels.
    """
    net, config = load_encoder(run)
    if config.in_channels != channels:
        raise UsageError(f"the encoder in {run} takes {config.in_channels} channels and the pictures have {channels}")
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    features = feature_map(net)
    # the map of a training view is a few places wide: too coarse for outlines
    nodes = features(torch.zeros(1, config.in_channels, config.size, config.size)).shape[2]
    side = config.size * -(-LEAST_MAP // nodes)
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return FeatureComponent(lambda images: features((images - mean) / std), side), digest.hexdigest()
