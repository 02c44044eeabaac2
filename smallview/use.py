"""What people do with an encoder: load it; and look at the views it will be trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from smallview.config import RunConfig, smallest_side
from smallview.data.loading import channel_statistics
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.foregrounds import Masks, check_masks, foregrounds_of, settings_with_masks
from smallview.networks.encoders import load_encoder
from smallview.output.sheet import check_sheet, contact_sheet, view_grid
from smallview.pictures import telling
from smallview.settle import settle


def _quiet(message: str) -> None:
    """Say nothing."""


def load(path: str | Path, into: nn.Module | None = None) -> nn.Module:
    """The encoder of a run or encoder folder in evaluation mode: float [B, C, H, W], normalised -> features [B, F].

    Pixels in [0, 1] are normalised by the mean and std of encoder/config.json, one of each for a channel. into: a module of your own,
    where the run trained one; its weights are replaced.

    Raises:
        UsageError: no run or encoder folder, an unfinished run, or a module of your own that was not passed. SmallviewError: damaged
            files, or weights that do not fit.

    Example:
        >>> import tempfile, torch, numpy as np
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
