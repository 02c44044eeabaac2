"""What people do with an encoder: load it, embed with it; and look at the views it will be trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from smallview.config import RunConfig, smallest_side
from smallview.data.loading import channel_statistics
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.foregrounds import Masks, check_masks, foregrounds_of, settings_with_masks
from smallview.networks.encoders import load_encoder
from smallview.output.embed import embed_pack
from smallview.output.sheet import check_sheet, contact_sheet, view_grid
from smallview.pictures import telling
from smallview.settle import settle, thread_count


def _quiet(message: str) -> None:
    """Say nothing."""


def embed(
    what: str | Path | nn.Module, data: Any, *, normalize: bool = False, size: int | None = None, threads: int | None = None
) -> npt.NDArray[np.float32]:
    """Backbone features float32 [N, F] of any data, in the source's order; what cannot be decoded is left out and said on stderr.

    what: a run folder, an encoder folder, the name of timm's weights on this machine, or a module [B, C, S, S] -> [B, F], which is fed
    pictures of `size` (32), normalised by mean 0.5 and deviation 0.25. data: as for `pretrain`; of each picture one centre view.
    normalize: rows of unit length. size: pixels of the view's side, where it is not the encoder's own.

    Raises:
        DataError: data that cannot be used, or of another number of channels. UsageError: nothing that can embed. SmallviewError:
            damaged weights.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> embed(net, np.zeros((5, 8, 8, 3), np.uint8), size=8).shape
        (5, 4)
    """
    features, pack = embed_pack(what, data, normalize=normalize, size=size, threads=thread_count(threads))
    for bad in pack.bad:
        print(f"left out: {bad.name} ({bad.reason})", file=sys.stderr)
    return features


def load(path: str | Path, into: nn.Module | None = None) -> nn.Module:
    """The encoder of a run or encoder folder in evaluation mode: float [B, C, H, W], normalised -> features [B, F].

    Pixels in [0, 1] are normalised by the mean and std of encoder/config.json, one of each for a channel. into: a module of your own,
    where the run trained one; its weights are replaced.

    Raises:
        UsageError: no run or encoder folder, an unfinished run, or a module of your own that was not passed. SmallviewError: damaged
            files, or weights that do not fit.

    Example:
        >>> import tempfile, torch
        >>> from smallview import pretrain
        >>> pictures = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pretrain(pictures, encoder="dense_small:8-16", epochs=1, out=f"{folder}/run", quiet=True)
        ...     load(run.path)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 16])
    """
    return load_encoder(path, into)[0]


def sheet(
    data: Any,
    out: str | Path,
    given: Mapping[str, Any],
    *,
    config: str | None = None,
    sets: Mapping[str, object] | None = None,
    rows: int = 8,
    repeats: int = 3,
    masks: Masks | None = None,
    say: Callable[[str], None] = _quiet,
) -> tuple[Path, RunConfig, dict[str, Any]]:
    """Write the contact sheet of a run's views: each picture's centre, its foreground, then every view in `repeats` epochs.

    masks: as for pretrain. Also returned: the settings, and all that was drawn as plain values.
    """
    check_sheet(out)
    source = open_source(data)
    settled, _ = settle(data, source, given, config, settings_with_masks(masks, sets))
    settled = check_masks(settled, masks, say)
    pack = open_pack(source, short_side=smallest_side(settled), kind=settled.pack, threads=settled.threads)
    found = foregrounds_of(pack, settled, masks, say, telling("masking", say))
    of_mean = any(view.mask_background > 0.0 and view.background == "mean" for view in settled.method.views)
    grid = view_grid(
        *(pack, settled.method.views, settled.size),
        seed=settled.seed,
        rows=rows,
        repeats=repeats,
        foregrounds=found,
        mode="parity" if settled.augmentation == "parity" else "fast",
        mean=channel_statistics(pack, settled.seed)[0].tolist() if of_mean else None,
        names=pack.names,
    )
    names = [pack.names[i] for i in grid.drawn["pictures"]]
    return contact_sheet(grid, out), settled, {"names": names, **grid.drawn}
