"""Views that change their size, in a run: resumed to the same bits, timed over the whole training; and patches of a run's pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smallview as sv
from smallview import parts as making
from smallview import timing
from smallview.config import RunConfig, smallest_side
from smallview.data.loading import batches
from smallview.data.pack import Pack
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import StoppedError, UsageError
from smallview.parts import PROBE_EPOCHS
from smallview.schedules import Ramp, Steps
from smallview.settings import from_tables, load_toml
from smallview.settle import settle
from smallview.views.making import ViewMaker
from smallview.views.view import View

GROWING = {"method.views.0.size": "Ramp(0.5, 1.0, until=0.6)", "method.views.1.size": 0.75}


pytestmark = pytest.mark.usefixtures("apart")


def pictures(n: int = 32, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, side, side, 3), dtype=np.uint8)


def tiny(**more: Any) -> dict[str, Any]:
    return {"encoder": "dense_small:8-16-32", "batch_size": 16, "threads": 1, "quiet": True, "epochs": 4, **more}


def config_of(data: np.ndarray, **sets: object) -> RunConfig:
    given = {"batch_size": 8, "threads": 1, "epochs": 1, "device": "cpu"}
    return settle(data, open_source(data), given, sets={name.replace("__", "."): value for name, value in sets.items()})[0]


def pack_of(data: np.ndarray) -> Pack:
    return open_pack(open_source(data), short_side=None)


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def test_resumed_in_the_middle_of_a_ramp(
    stop_after: Callable[[pytest.MonkeyPatch, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 steps; the sizes change until the fifth, and the run is stopped after 2, 4 and 6."""
    whole = sv.pretrain(pictures(), out=tmp_path / "whole", sets=GROWING, **tiny())
    sides = []
    call = ViewMaker.__call__

    def watched(self: ViewMaker, batch: Any, slot: int | None = None) -> Any:
        views = call(self, batch, slot)
        if batch.epoch not in PROBE_EPOCHS:
            sides.append((batch.step, *(view.images.shape[2] for view in views)))
        return views

    with monkeypatch.context() as patch:
        patch.setattr(ViewMaker, "__call__", watched)
        stop_after(patch, 2)
        for step in (2, 4, 6):
            with pytest.raises(StoppedError, match=f"stopped at step {step} of 8"):
                sv.pretrain(pictures(), out=tmp_path / "parts", sets=GROWING, **tiny())
    parts = sv.pretrain(pictures(), out=tmp_path / "parts", sets=GROWING, **tiny())
    assert weights(parts.path) == weights(whole.path)
    wanted = {0: 8, 1: 10, 2: 12, 3: 12, 4: 14, 5: 16, 6: 16, 7: 16}
    assert sides and all((first, second) == (wanted[step], 12) for step, first, second in sides)
    assert {step for step, *_ in sides} >= set(range(6))
    fixed = sv.pretrain(pictures(), out=tmp_path / "fixed", sets={"method.views.1.size": 0.75}, **tiny())
    assert weights(fixed.path) != weights(whole.path)


def test_run_toml_holds_the_sizes(tmp_path: Path) -> None:
    run = sv.pretrain(pictures(), out=tmp_path / "a", sets=GROWING, **tiny(epochs=1))
    tables = load_toml(run.path / "run.toml")
    for name in ("format_version", "recorded"):
        tables.pop(name)
    assert [view.size for view in from_tables(RunConfig, tables).method.views] == [Ramp(0.5, 1.0, until=0.6), 0.75]
    again = sv.pretrain(pictures(), out=tmp_path / "b", config=str(run.path / "run.toml"), quiet=True)
    assert weights(again.path) == weights(run.path)


def test_pictures_are_packed_for_the_largest_view_of_all() -> None:
    base = config_of(pictures())
    scale = (0.25, 1.0)
    for size, wanted in (
        (None, 32),
        (0.5, 19),  # the view of evaluation decides
        (64, 128),
        (Ramp(0.5, 1.0), 32),
        (Ramp(64.0, 16.0), 128),
        (Steps((16.0, 80.0, 16.0), (0.4, 0.6)), 160),
    ):
        method = replace(base.method, views=(View(size=size, scale=scale), View(size=4)))
        assert smallest_side(replace(base, method=method)) == wanted, size


def built(data: np.ndarray, config: RunConfig) -> making.Parts:
    said: list[str] = []
    return making.build(config, pack_of(data), None, said.append)[1]


@pytest.mark.parametrize(("size", "wanted"), [(None, 300), (Ramp(0.5, 1.0), 100)])
def test_minutes_are_reckoned_by_the_mean_of_the_whole_ramp(
    size: Ramp | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 2, 2, 2, 2, 2 and 26 s in a run of 600 s: by the median 300, by the mean 100. The first step of a new size does not count."""
    base = config_of(pictures())
    config = replace(base, method=replace(base.method, views=(View(size=size), View())))
    parts = built(pictures(), config)
    seen = []

    def train(state: Any, method: Any, feed: Any, *, on_step: Any, **_: Any) -> bool:
        true = (2.0, 2.0, 2.0, 2.0, 2.0, 26.0)
        times = true if size is None else tuple(s for second in true for s in (50.0, second))
        for (batch, views), seconds in zip(feed, (90.0, 90.0, *times), strict=True):
            seen.append((batch.progress, views[0].images.shape[2]))
            on_step(type("Report", (), {"seconds": seconds}))
        return True

    monkeypatch.setattr(timing, "train", train)
    assert timing.calibrate(parts, 10.0, lambda message: None) == wanted
    each = 1 if size is None else 2
    assert [progress for progress, _ in seen[2:]] == pytest.approx([(i // each + 0.5) / 6 for i in range(6 * each)])
    sides = [16] * 6 if size is None else [8, 10, 12, 12, 14, 16]
    assert [side for _, side in seen[2:]] == [side for side in sides for _ in range(each)]


def test_feed_tells_the_progress_to_the_views() -> None:
    base = config_of(pictures())
    config = replace(base, method=replace(base.method, views=(View(size=Ramp(0.5, 1.0)), View())))
    parts = built(pictures(), config)
    fed = list(parts.feed(1, 4, 4))
    assert [batch.progress for batch, _ in fed] == [0.25, 0.5, 0.75]
    assert [views[0].images.shape[2] for _, views in fed] == [10, 12, 14]
    for (batch, _), other in zip(fed, batches(32, 8, config.seed, 1, 4), strict=True):
        np.testing.assert_array_equal(batch.index, other.index)


def test_patches_are_plain_crops_of_the_pictures() -> None:
    """Pictures of one colour each: whose patch it is can be seen, and so can any disturbance."""
    data = np.broadcast_to(np.arange(10, 250, 30, dtype=np.uint8)[:, None, None, None], (8, 16, 16, 3))
    parts = built(np.ascontiguousarray(data), config_of(np.ascontiguousarray(data)))
    cut = making.patches_of(parts.pack, parts.config, parts.encoder_config, torch.device("cpu"))
    patches = cut((5, 0), 3, (0.05, 0.25))
    assert patches.shape == (6, 3, 16, 16) and patches.dtype == torch.float32
    mean, std = (torch.tensor(values)[:, None, None] for values in (parts.encoder_config.mean, parts.encoder_config.std))
    levels = (patches * std + mean) * 255
    wanted = torch.tensor([160.0] * 3 + [10.0] * 3)[:, None, None, None].expand(6, 3, 16, 16)
    torch.testing.assert_close(levels, wanted, atol=1e-3, rtol=0)


def test_patches_belong_to_the_seed_and_the_position() -> None:
    data = pictures(8)
    parts = built(data, config_of(data))

    def cut(seed: int = 0) -> Any:
        return making.patches_of(parts.pack, replace(parts.config, seed=seed), parts.encoder_config, torch.device("cpu"))

    patches = cut()((5, 0), 3, (0.05, 0.25))
    assert torch.equal(patches, cut()((5, 0), 3, (0.05, 0.25)))
    assert torch.equal(patches[3:5], cut()((0,), 2, (0.05, 0.25)))
    flat = patches.flatten(1)
    assert float((flat[:, None] - flat[None]).abs().amax(2).fill_diagonal_(9.0).min()) > 0.1  # six different patches
    assert float((patches - cut(seed=1)((5, 0), 3, (0.05, 0.25))).abs().amax((1, 2, 3)).min()) > 0.1
    whole = cut()((2,), 1, (1.0, 1.0))  # of a square picture all, or a centre part: nothing is turned round
    mean, std = (torch.tensor(values)[:, None, None] for values in (parts.encoder_config.mean, parts.encoder_config.std))
    shown = ((whole * std + mean) * 255)[0].permute(1, 2, 0).numpy()
    plain, flipped = (np.abs(shown - image).mean() for image in (data[2], data[2][:, ::-1]))
    assert plain < 0.8 * flipped


@pytest.mark.parametrize("position", [8, -1])
def test_a_picture_that_is_not_there_cannot_be_cut(position: int) -> None:
    data = pictures(8)
    parts = built(data, config_of(data))
    cut = making.patches_of(parts.pack, parts.config, parts.encoder_config, torch.device("cpu"))
    with pytest.raises(UsageError, match=f"picture {position} is to be cut .* has 8 pictures; wanted positions from 0 to 7"):
        cut((0, position), 1, (0.05, 0.25))
