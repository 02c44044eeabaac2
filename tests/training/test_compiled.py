"""Compiled passes: the module's own weights and statistics, a graph for each shape, advice in place of tracebacks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallview.errors import SmallviewError, UsageError
from smallview.networks.encoders import build_encoder
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks, Passes, plain
from smallview.presets import preset
from smallview.records import ViewBatch
from smallview.schedules import SPAN
from smallview.training.compiled import MOST, Compiled, check_views
from smallview.views.view import pixels


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    """Compiled code belongs to classes and would outlive a test."""
    yield
    torch._dynamo.reset()


class Graphs:
    """A compiler that runs the graphs it is given, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.made += 1
        return graph.forward


def networks(passes: Passes) -> Networks:
    torch.manual_seed(0)
    net, config = build_encoder("dense_small", size=8)
    return Networks(net, config.features, Heads(MLP((16,), 8), MLP((16,), 8)), Momentum(0.9), passes).train()


def trained(nets: Networks, steps: int = 3, dtype: torch.dtype | None = None, last: bool = False) -> list[float]:
    """Losses of so many steps of plain gradient descent, with a target that follows; the batch changes its size once."""
    if last:
        nets.to(memory_format=torch.channels_last)
    made = torch.Generator().manual_seed(0)
    losses = []
    for number in range(steps):
        shape = (6 if number == 1 else 4, 3, 8, 8)
        drawn = [torch.randn(shape, generator=made) for _ in range(2)]
        views = [ViewBatch(x.contiguous(memory_format=torch.channels_last) if last else x, "both") for x in drawn]
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            out = nets(views)
            loss = (out.online - out.target.flip(0)).float().square().mean()
        loss.backward()
        with torch.no_grad():
            for parameter in nets.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        nets.zero_grad()
        nets.follow(0.0, steps)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("dtype", "last"), [(None, False), (torch.bfloat16, True)], ids=["float32", "bfloat16, channels last"])
def test_training_moves_the_networks_own_weights_and_statistics(dtype: torch.dtype | None, last: bool) -> None:
    eager, there = networks(plain), networks(Compiled("aot_eager"))
    names, places = list(there.state_dict()), [t.data_ptr() for t in there.state_dict().values()]
    expected, found = trained(eager, dtype=dtype, last=last), trained(there, dtype=dtype, last=last)
    assert found == pytest.approx(expected, rel=1e-5 if dtype is None else 1e-2)
    state = there.state_dict()
    assert list(state) == names and (last or [t.data_ptr() for t in state.values()] == places)
    assert not any("_orig_mod" in name for name in names) and len(list(there.modules())) == len(list(eager.modules()))
    for name, value in eager.state_dict().items():
        close = dict(rtol=1e-4, atol=1e-6) if dtype is None else dict(rtol=0.1, atol=0.02)
        assert torch.allclose(value.float(), state[name].float(), **close), name
        if name.endswith("num_batches_tracked"):
            assert int(state[name]) == 3, name


def test_each_way_of_calling_has_its_graph_and_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallview.training.compiled.TOLD_S", 0.0)
    counted, told = Graphs(), list[str]()
    passes = Compiled(counted, told.append)  # type: ignore[arg-type]
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    x = torch.randn(5, 3)
    expected = copy.deepcopy(net)

    def both(*rows: Tensor) -> None:
        for value in rows:
            assert torch.allclose(passes(net, value), expected(value), atol=1e-6)

    both(x, x, torch.randn(5, 3))
    assert counted.made == len(told) == 1 and told[0].startswith("Sequential compiled for [5, 3] in ")
    assert net[1].running_mean.allclose(expected[1].running_mean) and int(net[1].num_batches_tracked) == 3
    net.eval(), expected.eval()
    both(x, x)
    with torch.no_grad():
        both(x, x)
    assert counted.made == len(told) == 3 and int(net[1].num_batches_tracked) == 3
    both(torch.randn(6, 3))
    both(x, torch.randn(6, 3))
    assert counted.made == len(told) == 4 and passes.seconds > 0.0


def test_shapes_of_several_modules_of_a_class_do_not_count_together_and_a_ninth_is_refused() -> None:
    counted = Graphs()
    passes = Compiled(counted)  # type: ignore[arg-type]
    layers = [nn.Sequential(nn.Linear(3, 2)) for _ in range(3)]
    for rows in range(1, MOST + 1):
        for layer in layers:
            x = torch.randn(rows, 3)
            assert torch.equal(passes(layer, x), layer(x))
    assert counted.made >= MOST
    with pytest.raises(
        SmallviewError, match=r"^Sequential meets its shape number 9, \[9, 3\], .* --fresh --set execution=eager$"
    ):
        passes(layers[0], torch.randn(9, 3))
    with torch.no_grad():
        passes(layers[0], torch.randn(8, 3))  # another way of calling is no other shape


def shapes_met(name: str, size: int) -> int:
    """The most shapes that an encoder really meets in a training of a preset."""
    met: dict[int, set[tuple[int, ...]]] = {}

    def passes(module: nn.Module, x: Tensor) -> Tensor:
        if x.dim() == 4:
            met.setdefault(id(module), set()).add(tuple(x.shape))
        return plain(module, x)

    method = preset(name).method
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nets = Networks(encoder, 3, method.heads, method.target, passes).train()
    for at in SPAN:
        sides = [pixels(view.size, size, at) for view in method.views]
        nets([ViewBatch(torch.zeros(2, 3, side, side), view.seen_by) for side, view in zip(sides, method.views, strict=True)])
    return max(map(len, met.values()))


@pytest.mark.parametrize(
    ("name", "size", "shapes"), [("simclr", 32, 1), ("moco_v2", 32, 1), ("relic_v2", 64, 2), ("combined", 16, 6)]
)
def test_views_of_few_sizes_may_be_compiled(name: str, size: int, shapes: int) -> None:
    assert shapes_met(name, size) == shapes
    check_views(preset(name).method, size)


def test_views_that_grow_through_many_sizes_are_refused_before_the_run() -> None:
    assert shapes_met("combined", 32) == 10
    with pytest.raises(
        UsageError, match=r"^execution is compile, and an encoder meets 10 shapes .*at most 8.*execution=eager$"
    ):
        check_views(preset("combined").method, 32)


def test_a_copy_has_compiled_nothing() -> None:
    counted, told = Graphs(), list[str]()
    nets = networks(Compiled(counted, told.append))  # type: ignore[arg-type]
    trained(nets, 1)
    other = copy.deepcopy(nets)
    assert isinstance(other.passes, Compiled) and other.passes is not nets.passes and other.passes.seconds == 0.0
    before = {name: value.clone() for name, value in nets.state_dict().items()}
    trained(other, 1)
    assert all(torch.equal(value, before[name]) for name, value in nets.state_dict().items())
    assert not torch.equal(other.online.encoder.state_dict()["body.0.weight"], before["online.encoder.body.0.weight"])


class Looks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        open(os.devnull).close()
        return x


@pytest.mark.parametrize("module", [Looks(), Prints()], ids=["looks", "opens"])
def test_what_cannot_be_compiled_as_a_whole_is_one_line_of_advice(module: nn.Module) -> None:
    with pytest.raises(
        SmallviewError, match=f"^{type(module).__name__} cannot be compiled .*; use --set execution=eager$"
    ) as told:
        Compiled("eager")(module, torch.ones(2, 3, requires_grad=True))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_memory_that_does_not_suffice_stays_what_it_is() -> None:
    def full(graph: Any, inputs: Any) -> Any:
        def run(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    with pytest.raises(torch.OutOfMemoryError):
        Compiled(full)(nn.Linear(3, 2), torch.ones(2, 3))  # type: ignore[arg-type]


def test_the_first_call_makes_the_backward_pass_too_and_its_failure_is_advice() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    made: list[str] = []

    def compiler(name: str, *, works: bool = True) -> Any:
        def compiled(graph: Any, inputs: Any) -> Any:
            made.append(name)
            if not works:
                raise RuntimeError("no kernel for it")
            return make_boxed_func(graph.forward)

        return compiled

    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    out = Compiled(aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward")))(layer, x)
    assert made == ["forward", "backward"]
    out.sum().backward()
    assert made == ["forward", "backward"] and layer.weight.grad is not None
    torch._dynamo.reset()
    failing = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward", works=False))
    with pytest.raises(SmallviewError, match=r"^Linear cannot be compiled \(.*no kernel for it.*; use --set execution=eager$"):
        Compiled(failing)(layer, x)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_compiler_there_is_a_line_of_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(SmallviewError, match=r"^Sequential cannot be compiled \(.*[Cc]ompiler.*; use --set execution=eager$"),
    ):
        Compiled()(nn.Sequential(nn.Linear(3, 17), nn.Tanh()), torch.ones(2, 3))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_that_compile_for_themselves_have_the_same_bits(tmp_path: Path) -> None:
    script = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from test_compiled import networks, trained
from smallview.training.compiled import Compiled
nets = networks(Compiled())
losses = trained(nets)
digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in nets.state_dict().values())).hexdigest()
print("found", digest, *[loss.hex() for loss in losses])
"""
    found = []
    for number in range(2):
        own = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(number)), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        run = subprocess.run([sys.executable, "-c", script], env=os.environ | own, capture_output=True, text=True, timeout=800)
        assert run.returncode == 0, run.stderr
        found.append(run.stdout.split("found ")[-1].split())
    assert found[0] == found[1] and len(found[0]) == 4
    assert [float.fromhex(loss) for loss in found[0][1:]] == pytest.approx(trained(networks(plain)), rel=1e-4)
