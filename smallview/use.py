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
    """Backbone features float32 [N, F] of any data, in the source's order; what cannot be decoded is left out and said.

    what: a run folder, an encoder folder, a timm name, or a module [B, C, S, S] -> [B, F].

    Raises:
        DataError: data that cannot be used. UsageError: nothing that can embed.
    """
    features, pack = embed_pack(what, data, normalize=normalize, size=size, threads=thread_count(threads))
    for bad in pack.bad:
        print(f"left out: {bad.name} ({bad.reason})", file=sys.stderr)
    return features


def load(path: str | Path, into: nn.Module | None = None) -> nn.Module:
    """The encoder of a run or encoder folder in evaluation mode: [B, C, H, W] normalised -> [B, F].

    Pictures in [0, 1] are normalised by the mean and std of encoder/config.json. A module of your own is passed as `into`.
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
