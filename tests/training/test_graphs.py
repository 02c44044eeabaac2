"""Passes as CUDA graphs: the same training as without."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from smallview.data.loading import batches
from smallview.data.packing import open_pack
from smallview.data.sources import open_source
from smallview.errors import SmallviewError, UsageError
from smallview.networks.encoders import build_encoder
from smallview.networks.online_target import Networks, plain
from smallview.parts import views_ahead
from smallview.presets import preset
from smallview.run import pretrain
from smallview.training.graphs import MOST, Graphs
from smallview.training.loop import StepReport, train
from smallview.training.precision import Precision
from smallview.training.state import TrainState
from smallview.views.making import ViewMaker


def test_without_cuda_passes_run_as_they_are() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    graphs = Graphs()
    assert torch.equal(graphs(layer, x), layer(x))
    assert copy.deepcopy(graphs) is not graphs


def test_graphs_are_refused_on_a_cpu(tmp_path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="execution is graph and the device cpu; wanted eager"):
        pretrain(pictures, epochs=1, out=tmp_path / "run", quiet=True, device="cpu", sets={"execution": "graph"})


def trained(method: str, graph: bool, steps: int = 12, dtype: str = "float32") -> tuple[list[float], Networks]:
    chosen = preset(method)
    pictures = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    pack = open_pack(open_source(pictures), short_side=None)
    torch.manual_seed(0)
    net, config = build_encoder("dense_small", size=32, seed=0)
    passes = Graphs() if graph else plain
    networks = Networks(net, config.features, chosen.method.heads, chosen.method.target, passes)
    precision, device = Precision("channels_last", dtype, ""), torch.device("cuda")
    precision.place(networks, device)
    bank = chosen.method.negatives.init(0, chosen.method.heads.projector.out, device)
    state = TrainState(networks, chosen.optimizer.build(networks, device), bank)
    maker = ViewMaker(pack, chosen.method.views, 32, [0.5] * 3, [0.25] * 3, 0, device)
    losses: list[float] = []

    def on_step(report: StepReport) -> bool:
        losses.append(report.done.loss)
        return False

    feed = views_ahead(maker, 64, batches(len(pack), 64, 0, 0, steps, total_steps=steps))
    train(state, chosen.method, feed, total_steps=steps, lr=0.01, seed=0, precision=precision, device=device, on_step=on_step)
    return losses, networks


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["simclr", "byol", "moco_v2", "vicreg", "ressl", "s3l_moco"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_train_as_eager_passes_do(method: str, dtype: str) -> None:
    torch.backends.cudnn.deterministic = True
    try:
        plain, there = trained(method, False, dtype=dtype)
        once, here = trained(method, True, dtype=dtype)
    finally:
        torch.backends.cudnn.deterministic = False
    assert once == pytest.approx(plain, rel=1e-4 if dtype == "float32" else 1e-2)
    for (name, a), (_, b) in zip(there.state_dict().items(), here.state_dict().items(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert torch.equal(a, b), name  # recording's own passes do not count


@pytest.mark.gpu
def test_a_pass_that_looks_at_its_numbers_is_refused() -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool((x.sum() > 0).item()) else -x

    with pytest.raises(SmallviewError, match=r"Looks cannot be recorded as a CUDA graph .*; use --set execution=eager"):
        Graphs()(Looks(), torch.ones(2, 3, device="cuda", requires_grad=True))
    assert torch.randn(3, device="cuda").isfinite().all()


@pytest.mark.gpu
def test_shapes_after_the_last_graph_run_without_one() -> None:
    layer = nn.Linear(3, 2).cuda()
    graphs = Graphs()
    for rows in range(1, MOST + 4):
        x = torch.randn(rows, 3, device="cuda")
        assert torch.allclose(graphs(layer, x), layer(x), atol=1e-6)
