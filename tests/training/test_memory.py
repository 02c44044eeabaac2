"""Passes that hold less: same bits where they are computed again, same gradients in pieces, buffers that move once, fewer bytes alive."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kill_server import Server
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smallview.errors import SmallviewError, UsageError
from smallview.networks.encoders import build_encoder
from smallview.networks.heads import MLP, Heads
from smallview.networks.online_target import Momentum, Networks, Passes, Shared, plain
from smallview.records import ViewBatch
from smallview.training.compiled import Compiled
from smallview.training.graphs import Graphs
from smallview.training.memory import (
    MOST_PIECES,
    Pieces,
    Recomputed,
    advice,
    lighter,
    name_of,
    out_of_memory,
    passes_for,
)

NETS = {
    "dense_small": 32,
    "resnet18": 32,
    "mobilenetv3_small_100": 32,
    "efficientnet_b0": 32,
    "vit_tiny_patch16_224": 32,
    "regnety_002": 32,
    "convnext_atto": 32,
    "resnetv2_18": 32,
    "resnet18d": 32,
}


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that operations made and that are still there: `peak`, and `now()`. Those of `apart` do not count."""

    def __init__(self, *apart: Tensor) -> None:
        super().__init__()
        self.known: dict[int, tuple[StorageWeakRef, int]] = {}
        self.apart = {tensor.untyped_storage()._cdata for tensor in apart}
        self.peak = self.most = 0

    def now(self) -> int:
        self.known = {key: found for key, found in self.known.items() if not found[0].expired()}
        self.most = sum(size for _, size in self.known.values())
        return self.most

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        made = operation(*given, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                seen = StorageWeakRef(storage)
                if storage._cdata not in self.apart and seen.cdata not in self.known:
                    self.known[seen.cdata] = (seen, storage.nbytes())
                    self.most += storage.nbytes()
        if self.most > self.peak:  # with those that are gone since they were counted last
            self.peak = max(self.peak, self.now())
        return made


def alive(net: nn.Module, passes: Passes, x: Tensor) -> tuple[int, int]:
    """Bytes of activations between forward and backward pass, and the most at any time."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    mine = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None), x]
    with Alive(*mine) as count:
        loss = passes(net, x).square().mean()
        kept = count.now()
        loss.backward()
    return kept, count.peak


def passed(net: nn.Module, passes: Passes, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Loss, gradients and buffers after two passes and their backward passes."""
    net = copy.deepcopy(net)
    torch.manual_seed(3)
    out = {}
    for turn in range(2):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = passes(net, x).float().square().mean()
        loss.backward()
        out[f"loss {turn}"] = loss.detach()
    out |= {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    out |= dict(net.named_buffers())
    return out


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() and len(one) > 2
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def encoder(name: str) -> tuple[nn.Module, Tensor]:
    net, _ = build_encoder(name, size=NETS[name])
    return net.train(), torch.randn(4, 3, NETS[name], NETS[name], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETS)
def test_recomputed_passes_have_the_bits_of_plain_ones(name: str) -> None:
    net, x = encoder(name)
    same(passed(net, plain, x), passed(net, Recomputed(), x))
    Recomputed()(net, x)
    assert not any("forward" in vars(m) for m in net.modules())


@pytest.mark.parametrize("name", ["dense_small", "resnet18", "vit_tiny_patch16_224"])
def test_recomputed_passes_in_bfloat16_and_channels_last(name: str) -> None:
    net, x = encoder(name)
    net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    same(passed(net, plain, x, torch.bfloat16), passed(net, Recomputed(), x, torch.bfloat16))


# share of plain's bytes: between the passes, and at most. A few pictures, so that gradients of weights stand out; they are left out.
SHARES = {
    "dense_small": (0.65, 1.0),
    "resnet18": (0.45, 0.75),
    "mobilenetv3_small_100": (0.2, 0.5),
    "efficientnet_b0": (0.15, 0.45),
    "vit_tiny_patch16_224": (0.25, 0.5),
}


@pytest.mark.parametrize("name", SHARES)
def test_recomputed_passes_hold_less(name: str) -> None:
    net, x = encoder(name)
    x = x.repeat(4, 1, 1, 1)
    kept, peak = alive(net, plain, x)
    less, least = alive(net, Recomputed(), x)
    assert less < SHARES[name][0] * kept and least < SHARES[name][1] * peak, (less / kept, least / peak)


class Counted(nn.Module):
    """Moves a buffer in every pass and multiplies by it: what comes out depends on where the buffer was."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros(()))
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        out: Tensor = (x * self.scale * self.seen).tanh()
        return out


def drawing() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5)
        ),
        Counted(),
        nn.BatchNorm1d(8, momentum=None),
        nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3).eval()),
    )


class Alone(nn.Module):
    """Layers in no container."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.dropout(self.norm(self.first(x)).relu(), 0.3, self.training))
        return out


class Listed(nn.Module):
    """A list of blocks that take more than one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Two() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x, shift=0.5)
        return x


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))

    def forward(self, x: Tensor, shift: float) -> tuple[Tensor, float]:
        return x + self.body(x).sigmoid() + shift, shift


@pytest.mark.parametrize("make", [drawing, Alone, Listed, MLP(hidden=(8, 8), out=4, last_batch_norm=True).build])
def test_buffers_move_once_and_random_layers_draw_the_same_again(make: Any) -> None:
    torch.manual_seed(0)
    net = make(6) if make not in (drawing, Alone, Listed) else make()
    if make is not drawing:
        net.train()
    x = torch.randn(8, 6, requires_grad=True)
    same(passed(net, plain, x), passed(net, Recomputed(), x))


def test_gradients_reach_the_input_and_a_second_backward_pass_is_the_first_again() -> None:
    torch.manual_seed(0)
    net, x = drawing(), torch.randn(8, 6, requires_grad=True)
    twin = copy.deepcopy(net)
    torch.manual_seed(1)
    expected = torch.autograd.grad(plain(twin, x).square().sum(), x)[0]
    torch.manual_seed(1)
    loss = Recomputed()(net, x).square().sum()
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
    for one, other in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)


def test_hooks_on_a_block_run_once_and_without_gradient_nothing_is_changed() -> None:
    net, x = encoder("resnet18")
    calls: list[str] = []
    blocks: Any = net.layer1
    blocks[0].register_forward_hook(lambda *_: calls.append("hook"))
    Recomputed()(net, x).sum().backward()
    assert calls == ["hook"]
    before = [buffer.clone() for buffer in net.buffers()]
    with torch.no_grad():
        assert not Recomputed()(net.eval(), x).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_an_own_forward_of_a_layer_is_used_and_comes_back() -> None:
    calls: list[str] = []
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    layer, inner = net[1], net[1].forward

    def own(x: Tensor) -> Tensor:
        calls.append("own")
        out: Tensor = inner(x)
        return out

    vars(layer)["forward"] = own
    Recomputed()(layer, torch.randn(5, 4, requires_grad=True)).square().sum().backward()
    Recomputed()(net, torch.randn(5, 3)).square().sum().backward()
    assert len(calls) == 4 and vars(layer)["forward"] is own
    assert int(layer.num_batches_tracked) == 2


def test_a_block_that_writes_over_its_input_is_refused() -> None:
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.layer = nn.ReLU(inplace=True), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.act(x))
            return out

    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), Over())
    with pytest.raises(SmallviewError, match=r"^Over writes over its own input and cannot be .* use --set memory=plain"):
        Recomputed()(net, torch.randn(4, 3))
    # a ReLU among plain layers stays with what it writes over
    chain = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    x = torch.randn(4, 3)
    same(passed(chain, lambda m, x: plain(m, x.clone()), x), passed(chain, lambda m, x: Recomputed()(m, x.clone()), x))


def test_batch_norm_over_processes_moves_once_too(server: Server, tmp_path: Path) -> None:
    worker = Path(__file__).parents[1] / "distributed" / "recomputed_worker.py"
    code, said = server.run(["--processes", "2", str(worker), str(tmp_path)])
    assert code == 0, said[-3000:]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for expected, again in found:
        same(expected, again)
        assert all(int(value) == 1 for name, value in again.items() if name.endswith("num_batches_tracked"))
    statistics = [name for name in found[0][0] if name.endswith("running_mean")]
    assert statistics and all(torch.equal(found[0][1][name], found[1][1][name]) for name in statistics)
    assert not torch.equal(found[0][1]["loss"], found[1][1]["loss"])


@pytest.mark.parametrize("inner", [plain, Recomputed()], ids=["plain", "recomputed"])
@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_in_pieces_are_those_of_the_whole_batch(inner: Passes, n: int, dropout: bool) -> None:
    torch.manual_seed(0)
    net, _ = build_encoder("vit_tiny_patch16_224", size=16, depth=2)
    net = net.double().train()
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64, requires_grad=True)

    def contrast(passes: Passes) -> list[Tensor]:
        """Every row against all others, so that rows of all pieces meet."""
        net.zero_grad()
        z = F.normalize(passes(net, x), dim=1)
        loss = F.cross_entropy(z @ z.T / 0.1, torch.arange(5).roll(1))
        inputs = [x, *net.parameters()]
        return [loss.detach(), *(g for g in torch.autograd.grad(loss, inputs, allow_unused=True) if g is not None)]

    if dropout:  # pieces draw for themselves; the same again, the gradient is that of what was drawn
        for layer in net.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.2

    def in_turn(module: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([module(part) for part in x.tensor_split(min(n, len(x)))])

    torch.manual_seed(1)
    expected = contrast(in_turn if dropout else plain)
    torch.manual_seed(1)
    found = contrast(Pieces(n, inner))
    assert len(found) == len(expected) > 25
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_activations_of_one_piece_are_alive_at_once() -> None:
    net, x = encoder("vit_tiny_patch16_224")
    x = x.repeat(4, 1, 1, 1)
    kept, peak = alive(net, plain, x)
    gradients = sum(p.nbytes for p in net.parameters())  # autograd sums those of the pieces before it hands them over
    for n in (2, 4):
        less, least = alive(net, Pieces(n), x)
        assert less < 0.05 * kept  # pictures and embeddings
        assert least < (1 / n + 0.05) * peak + gradients, (n, least, peak)
    assert alive(net, Pieces(2, Recomputed()), x)[1] < 0.4 * peak + gradients


def test_batch_statistics_are_refused_in_pieces() -> None:
    net, x = encoder("resnet18")
    with pytest.raises(
        UsageError, match=r"^memory is pieces:2 and ResNet has BatchNorm, .*; wanted memory=recompute, or a net"
    ):
        Pieces(2)(net, x)
    assert torch.allclose(Pieces(2)(net.eval(), x), net(x), atol=1e-5)
    head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    rows = torch.randn(6, 3)
    same(passed(head, plain, rows), passed(head, Pieces(3, Recomputed()), rows))
    for wrong in (nn.BatchNorm2d(3, track_running_stats=False).eval(), nn.InstanceNorm2d(3, track_running_stats=True)):
        with pytest.raises(UsageError, match="has BatchNorm"):
            Pieces(2)(nn.Sequential(wrong), x)
    with pytest.raises(ValueError, match=f"pieces is 1; wanted 2 to {MOST_PIECES}"):
        Pieces(1)


def networks(name: str, size: int = 16, target: Momentum | Shared | None = None) -> Networks:
    torch.manual_seed(0)
    net, config = build_encoder(name, size=size, depth=2 if name.startswith("vit") else None)
    return Networks(net, config.features, Heads(MLP((16,), 8), MLP((16,), 8)), target or Shared()).train()


def step(nets: Networks, seed: int = 0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    views = [ViewBatch(torch.randn(4, 3, 16, 16, generator=made), "both") for _ in range(2)]
    nets.zero_grad()
    torch.manual_seed(5)
    out = nets(views)
    loss = (out.online - out.target.roll(1, 1)).square().mean()
    loss.backward()
    return {"loss": loss.detach()} | {k: p.grad for k, p in nets.named_parameters() if p.grad is not None} | nets.state_dict()


@pytest.mark.parametrize("target", [Shared(), Momentum(0.9), Momentum(0.9, buffers="copy")], ids=["shared", "own", "copied"])
def test_lighter_goes_down_while_the_mathematics_stays(target: Momentum | Shared) -> None:
    nets = networks("resnet18", target=target)
    before = step(copy.deepcopy(nets))
    told = lighter(nets, 256)
    assert told == (
        "a batch of 256 does not fit into memory; activations are computed again in the backward pass from here on "
        "(same bits, about a third slower)"
    )
    assert isinstance(nets.passes, Recomputed)
    same(before, step(copy.deepcopy(nets)))
    assert lighter(nets, 256) is None and isinstance(nets.passes, Recomputed)
    assert advice(nets, 256) == (
        "a batch of 256 does not fit into memory, and in pieces the statistics of BatchNorm would change; "
        "use a smaller --batch-size or --size, or --set dtype=bfloat16"
    )


def test_without_batch_norm_pieces_grow_in_number() -> None:
    nets = networks("vit_tiny_patch16_224", target=Momentum(0.9))
    before = step(copy.deepcopy(nets))
    names, sentences = [], []
    while (told := lighter(nets, 250)) is not None:
        names.append(name_of(nets.passes))
        sentences.append(told)
        after = step(copy.deepcopy(nets))
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.allclose(value.double(), after[name].double(), rtol=1e-3, atol=1e-5), name
    assert names == ["recompute", *(f"pieces:{2**k}" for k in range(1, 7))]
    assert "takes it" not in sentences[0] and "in 2 pieces of 125 from here on (same mathematics" in sentences[1]
    assert "smaller pieces would not help; use a smaller --batch-size" in advice(nets, 250)
    nets.passes = Pieces(4)
    assert lighter(nets, 7) is None


@pytest.mark.parametrize("passes", [Graphs(), Compiled()])
def test_graphs_and_compiled_passes_are_only_advised(passes: Passes) -> None:
    nets = networks("vit_tiny_patch16_224")
    nets.passes = passes
    assert lighter(nets, 8) is None and nets.passes is passes
    assert "keep their own activations; use --set execution=eager, a smaller --batch-size" in advice(nets, 8)


def test_settings_are_passes() -> None:
    assert passes_for("eager", "auto") is plain and passes_for("eager", "plain") is plain
    for memory in ("recompute", "pieces:2", "pieces:64"):
        assert name_of(passes_for("eager", memory)) == memory
    assert isinstance(passes_for("graph", "auto"), Graphs)
    told: list[str] = []
    compiled = passes_for("compile", "plain", told.append)
    assert isinstance(compiled, Compiled) and compiled.say is not None and name_of(compiled) == "plain"


@pytest.mark.parametrize(
    ("execution", "memory", "line"),
    [
        ("eager", "less", 'memory is "less"; wanted auto, plain, recompute or pieces:N'),
        ("eager", "pieces", 'memory is "pieces"; wanted auto'),
        ("eager", "pieces:1", 'memory is "pieces:1"; wanted .*, with N from 2 to 64'),
        ("eager", "pieces:65", 'memory is "pieces:65"'),
        ("eager", "pieces:-2", 'memory is "pieces:-2"'),
        ("eager", "pieces:x", 'memory is "pieces:x"'),
        (
            "graph",
            "recompute",
            "memory is recompute and execution graph, which keeps its own activations; wanted execution=eager",
        ),
        ("compile", "pieces:2", "memory is pieces:2 and execution compile"),
        ("fast", "auto", 'execution is "fast"; wanted eager, graph or compile'),
    ],
)
def test_what_does_not_work_is_refused_in_a_line(execution: str, memory: str, line: str) -> None:
    with pytest.raises(UsageError, match=f"^{line}") as told:
        passes_for(execution, memory)
    assert "\n" not in str(told.value)


def test_what_says_that_memory_did_not_suffice() -> None:
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**55)
    assert out_of_memory(cpu.value)
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    for other in (RuntimeError("shapes do not match"), ValueError("not enough memory"), KeyboardInterrupt()):
        assert not out_of_memory(other)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dense_small", "resnet18", "vit_tiny_patch16_224"])
def test_recomputed_passes_on_cuda(name: str) -> None:
    net, x = encoder(name)
    net, x = net.cuda(), x.cuda()
    torch.backends.cudnn.deterministic = True
    try:
        same(passed(net, plain, x), passed(net, Recomputed(), x))
    finally:
        torch.backends.cudnn.deterministic = False
