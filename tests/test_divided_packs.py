"""Views of a pack that several machines share: a picture's are the same in every division."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smallview.data.pack import Pack
from smallview.data.packing import open_pack, read_pack
from smallview.data.sources import open_source
from smallview.errors import UsageError
from smallview.records import Batch
from smallview.views.making import ViewMaker
from smallview.views.view import View

pytestmark = pytest.mark.usefixtures("apart")


@pytest.mark.parametrize("world", [2, 3])
def test_views_are_the_same_however_a_pack_is_divided(tmp_path: Path, world: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (11, 12, 10, 3), np.uint8)
    whole = open_pack(open_source(pictures), short_side=None)
    views = (View(), View(noise=0.1, solarize=0.5))

    def made(pack: Pack) -> list[torch.Tensor]:
        maker = ViewMaker(pack, views, 8, [0.5] * 3, [0.25] * 3, seed=1)
        return [view.images for view in maker(Batch(np.arange(len(pack)), epoch=3, step=0))]

    parts = [made(whole.part(rank, world)) for rank in range(world)]
    nested = made(whole.part(0, 2).part(1, 2))
    for v, view in enumerate(made(whole)):
        assert torch.equal(torch.cat([part[v] for part in parts]), view)
        assert torch.equal(nested[v], view[whole.part(0, 2).part(1, 2).index])


def test_parts_read_without_their_source_know_where_they_begin(tmp_path: Path) -> None:
    for k in range(7):
        picture = np.random.default_rng(k).integers(0, 256, (8 + k, 9, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    cache = tmp_path / "cache"
    whole = open_pack(
        open_source(
            tmp_path,
        ),
        short_side=None,
        cache=cache,
    )
    (kept,) = {meta.parent for meta in cache.rglob("meta.json")}
    assert [read_pack(kept, rank=rank, world=3).first for rank in range(3)] == [whole.part(rank, 3).first for rank in range(3)]
    assert [whole.part(rank, 3).first for rank in range(3)] == [0, 2, 4]


@pytest.mark.parametrize("executor", ["kernel", "torch"])
def test_parameters_of_other_pictures_than_asked_for_are_refused(executor: Any) -> None:
    pack = open_pack(open_source(np.zeros((4, 8, 8, 3), np.uint8)), short_side=None)
    maker = ViewMaker(pack, (View(),), 8, [0.5] * 3, [0.25] * 3, seed=0, executor=executor)
    drawn = maker.draw(Batch(np.arange(4), epoch=0, step=0))
    with pytest.raises(UsageError, match="parameters of view 0 are of 4 pictures and 3 are asked for; wanted one row each"):
        maker.make(np.arange(3), drawn)
