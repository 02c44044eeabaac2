"""Optimizers: their steps against slow loops, what they leave alone, resuming, learning rates, and settings."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smallview.optimizers import LARS, SGD, AdamW, Muon, Optimizer, learning_rate, orthogonalize, scaled_lr
from smallview.schedules import Constant, Cosine, Product, Ramp, Staircase, WarmupCosine, resolve
from smallview.settings import dump_toml, from_tables, load_toml, override, to_tables
from smallview.training.loop import train_step
from smallview.training.precision import Precision
from smallview.training.state import TrainState

CPU = torch.device("cpu")
VALUES: list[Optimizer] = [SGD(lr=0.1), SGD(lr=0.1, nesterov=False), AdamW(lr=0.01), LARS(lr=1.0), Muon(lr=0.05)]
IDS = ["SGD", "SGD plain", "AdamW", "LARS", "Muon"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A little of everything: a kernel, a depthwise and a grouped one, norms, tall and wide matrices, tables, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1, groups=2)
        self.wide, self.tall = nn.Linear(8, 3), nn.Linear(3, 8)
        self.table, self.position = nn.Embedding(5, 3), nn.Parameter(torch.randn(1, 4, 3))
        self.gain = nn.Parameter(torch.tensor(0.5))


def net(seed: int = 0, layout: torch.memory_format = torch.contiguous_format) -> Net:
    torch.manual_seed(seed)
    return Net().to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def give_gradients(module: nn.Module, step: int) -> None:
    source = torch.Generator().manual_seed(step)
    for p in module.parameters():
        drawn = torch.randn(p.shape, generator=source, dtype=p.dtype)
        p.grad = torch.empty_like(p).copy_(drawn)  # laid out as autograd lays it out: as its parameter


def go(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range, lr: float | None = None) -> None:
    for step in steps:
        give_gradients(module, step)
        for group in optimizer.param_groups:
            if lr is not None:
                group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.step()


def gradients_of(module: nn.Module, steps: int) -> list[list[Tensor]]:
    twin = copy.deepcopy(module)
    out = []
    for step in range(steps):
        give_gradients(twin, step)
        out.append([p.grad.detach().clone() for p in twin.parameters() if p.grad is not None])
    return out


# --- learning rates


def rates(schedule: object, places: list[float]) -> list[float]:
    return [resolve(schedule, place) for place in places]  # type: ignore[arg-type]


def test_published_peaks_and_ends() -> None:
    large = learning_rate(LARS(lr=0.3, warmup=0.1), 4096)
    assert rates(large, [0.05, 0.1, 0.55, 1.0]) == pytest.approx([2.4, 4.8, 2.4, 0.0], abs=1e-12)
    small = learning_rate(AdamW(lr=5e-4, warmup=0.1, end=0.001), 256)
    assert rates(small, [0.05, 0.1, 0.55, 1.0]) == pytest.approx([2.5e-4, 5e-4, 2.5025e-4, 5e-7], rel=1e-12)
    tuned = learning_rate(SGD(lr=0.4, warmup=0.0), 64)  # 0.1 at batch 64, 120 epochs
    assert rates(tuned, [60 / 120, 119.5 / 120]) == pytest.approx([0.05, 0.0000042836], abs=1e-10)
    queue = learning_rate(SGD(lr=0.03, warmup=0.0, nesterov=False), 256)
    assert rates(queue, [100 / 200, 199 / 200]) == pytest.approx([0.015, 0.0000018505], abs=1e-10)


def test_published_rate_of_a_run_set_once_per_epoch() -> None:
    wanted = {3: 0.12, 4: 0.1199685341, 50: 0.0629137333, 99: 0.0000314659}
    schedule = learning_rate(SGD(lr=Staircase(WarmupCosine(0.06, 0.03), 100)), 512)
    for epoch, rate in wanted.items():
        for inside in (0.0, 0.5, 0.99):
            assert resolve(schedule, (epoch + inside) / 100) == pytest.approx(rate, abs=5e-11)


def test_published_momentum_and_smoothing() -> None:
    found = rates(Cosine(0.996, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert found == pytest.approx([0.996, 0.9965857864, 0.998, 0.9994142136, 1.0], abs=5e-11)
    found = rates(Staircase(Cosine(0.99, 1.0), 100), [0.0, 0.01, 0.505, 0.999])
    assert found == pytest.approx([0.99, 0.9900024672, 0.995, 0.9999975328], abs=5e-11)
    found = rates(Staircase(Cosine(0.0, 0.2), 100), [0.005, 0.01, 0.0299, 0.5])
    assert found == pytest.approx([0.0, 0.0000493440, 0.0001973272, 0.1], abs=5e-11)


def test_rate_goes_by_pictures() -> None:
    assert [scaled_lr(0.1, b) for b in (256, 128, 1024)] == [0.1, 0.05, 0.4]
    assert [scaled_lr(0.1, b, "sqrt") for b in (256, 64, 1024)] == pytest.approx([0.1, 0.05, 0.2])
    assert [scaled_lr(0.1, b, "none") for b in (256, 64, 1024)] == [0.1, 0.1, 0.1]
    with pytest.raises(ValueError, match=r"batch_rule is 'cubic'; wanted linear, sqrt or none"):
        scaled_lr(0.1, 256, "cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [SGD, AdamW, LARS, Muon])
@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_every_optimizer_takes_numbers_and_schedules(cls: type, rule: str, factor: float) -> None:
    number = learning_rate(cls(lr=0.1, warmup=0.25, batch_rule=rule, end=0.5), 1024)
    assert number == WarmupCosine(0.1 * factor, 0.25, end=0.05 * factor)
    steady = learning_rate(cls(lr=Constant(0.1), warmup=0.25, batch_rule=rule, end=0.5), 1024)
    assert rates(steady, [0.0, 0.1, 1.0]) == pytest.approx([0.1 * factor] * 3)  # neither warmed up nor lowered
    risen = learning_rate(cls(lr=Product(Ramp(0.0, 1.0, until=0.5), Cosine(0.2, 0.0)), batch_rule=rule), 1024)
    assert rates(risen, [0.25, 1.0]) == pytest.approx([0.05 * factor * (1 + math.cos(math.pi / 4)), 0.0], abs=1e-12)


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_built_with_a_schedule(value: Optimizer) -> None:
    built = replace(value, lr=Cosine(0.3, 0.1)).build(net(), CPU)
    for group in built.param_groups:
        assert group["lr"] == pytest.approx(0.3 * group.get("lr_scale", 1.0))


# --- LARS


def table(shift: Tensor | float = 0.0) -> Tensor:
    i, j = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)[None, :]
    base = torch.sin(0.37 * (i + 1) * (j + 2) + 0.11 * j)
    return base + shift * torch.cos(0.53 * (i + 2) * (j + 1) - 0.07 * i)


class Weights(nn.Module):
    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(value) for value in values)


def test_lars_published_numbers() -> None:
    module = Weights(table())
    weight = module.values[0]
    optimizer = LARS(lr=0.3, weight_decay=1e-6, momentum=0.9, trust=0.001).build(module, CPU)
    found = []
    for _ in range(2):
        weight.grad = table(0.3)
        optimizer.step()
        found.append(weight[0, 0].item())
        if len(found) == 1:
            buffer = optimizer.state[weight]["momentum_buffer"]
            ratio = (buffer / (table(0.3) + 1e-6 * table()))[0, 0].item()
    assert ratio == pytest.approx(0.0010160693, abs=1e-9)
    assert found == pytest.approx([0.6740376689, 0.6735622797], abs=1e-9)
    assert weight.norm().item() == pytest.approx(3.9948888777, abs=1e-9)


def slow_lars(module: nn.Module, value: LARS, lr: float, steps: int) -> list[Tensor]:
    weights = [p.detach().clone() for p in module.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    for gradients in gradients_of(module, steps):
        for i, gradient in enumerate(gradients):
            direction, ratio = gradient, 1.0
            if weights[i].dim() > 1:
                direction = gradient + value.weight_decay * weights[i]
                length, size = math.sqrt(float((direction**2).sum())), math.sqrt(float((weights[i] ** 2).sum()))
                if length > 0 and size > 0:
                    ratio = value.trust * size / length
            momenta[i] = value.momentum * momenta[i] + ratio * direction
            weights[i] = weights[i] - lr * momenta[i]
    return weights


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_lars_is_its_loop(momentum: float) -> None:
    value = LARS(lr=2.0, momentum=momentum, weight_decay=0.1, trust=0.02)
    module = net().double()
    wanted = slow_lars(module, value, 0.7, 4)
    go(module, value.build(module, CPU), range(4), lr=0.7)
    for p, want in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=1e-12, atol=1e-14)


def test_lars_where_a_norm_is_zero() -> None:
    module = Weights(torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2, 2))
    optimizer = LARS(lr=1.0, weight_decay=0.0).build(module, CPU)
    for p, gradient in zip(module.values, (1.0, 0.0, 0.0), strict=True):
        p.grad = torch.full((2, 2), gradient)
    optimizer.step()
    assert [p.detach().unique().tolist() for p in module.values] == [[-1.0], [1.0], [0.0]]


def test_lars_leaves_vectors_to_plain_momentum() -> None:
    module = Weights(torch.ones(3), torch.ones(2, 2), torch.tensor(1.0))
    optimizer = LARS(lr=1.0, momentum=0.5, weight_decay=1.0, trust=0.1).build(module, CPU)
    for p in module.values:
        p.grad = torch.full_like(p, 0.25)
    optimizer.step()
    optimizer.step()
    vector, matrix, scalar = module.values
    assert vector.tolist() == [1.0 - 0.25 - 0.375] * 3 and scalar.item() == 1.0 - 0.25 - 0.375
    assert matrix[0, 0].item() == pytest.approx(1.0 - 0.1 - 0.05 - 0.1 * 0.9)


# --- Muon


def slow_orthogonalize(matrix: np.ndarray) -> np.ndarray:
    """In float64, by the singular values: the quintic acts on each alone."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(matrix)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(6, 6), (3, 11), (11, 3), (1, 4)])
def test_orthogonalize_is_its_polynomial(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, found in zip(stack, orthogonalize(stack), strict=True):
        np.testing.assert_allclose(found.numpy(), slow_orthogonalize(matrix.double().numpy()), atol=2e-5)
    assert not orthogonalize(torch.zeros(1, *shape)).any()


def test_orthogonalize_levels_singular_values() -> None:
    parts = torch.linspace(0.01, 1.0, 200)
    stack = torch.stack([torch.stack([parts, torch.zeros(200)]), torch.stack([torch.zeros(200), (1 - parts**2).sqrt()])])
    levelled = orthogonalize(stack.permute(2, 0, 1))[:, 0, 0]
    assert levelled.min() > 0.68 and levelled.max() < 1.21


def muon_weights(module: Net) -> set[int]:
    return {id(p) for p in (module.stem.weight, module.wide.weight, module.tall.weight)}


def test_muon_takes_matrices_and_leaves_the_rest_to_adamw() -> None:
    module = net()
    optimizer = Muon(lr=0.2, weight_decay=0.3, adamw_ratio=0.1).build(module, CPU)
    members = {
        (g["orthogonal"], g["weight_decay"], g["lr_scale"], round(g["lr"], 9)): {id(p) for p in g["params"]}
        for g in optimizer.param_groups
    }
    rest = (module.depthwise.weight, module.grouped.weight, module.table.weight, module.position)
    assert members == {
        (True, 0.3, 1.0, 0.2): muon_weights(module),
        (False, 0.3, 0.1, 0.02): {id(p) for p in rest},
        (False, 0.0, 0.1, 0.02): {id(p) for p in module.parameters() if p.dim() < 2},
    }
    assert len([p for g in optimizer.param_groups for p in g["params"]]) == len(list(module.parameters()))
    single = nn.Sequential(nn.Conv2d(1, 4, 3))  # one channel is not one group per channel
    assert [g["orthogonal"] for g in Muon().build(single, CPU).param_groups] == [True, False]
    for part in (nn.BatchNorm1d(3), nn.Linear(2, 2, bias=False)):  # either kind may be absent
        go(part, Muon().build(part, CPU), range(2))


def test_muon_is_its_loop() -> None:
    value = Muon(lr=1.0, momentum=0.9, weight_decay=0.2)
    module = net()
    chosen = muon_weights(module)
    weights = [p.detach().double().numpy() for p in module.parameters()]
    buffers = [np.zeros_like(w) for w in weights]
    for gradients in gradients_of(module, 3):
        for i, gradient in enumerate(gradients):
            g = gradient.double().numpy()
            buffers[i] = 0.9 * buffers[i] + g
            ahead = g + 0.9 * buffers[i]
            rows = len(ahead) if ahead.ndim else 1
            direction = slow_orthogonalize(ahead.reshape(rows, -1)) * math.sqrt(max(1.0, rows / (ahead.size / rows)))
            weights[i] = (1 - 0.05 * 0.2) * weights[i] - 0.05 * direction.reshape(ahead.shape)
    go(module, value.build(module, CPU), range(3), lr=0.05)
    seen = 0
    for p, want in zip(module.parameters(), weights, strict=True):
        if id(p) in chosen:
            np.testing.assert_allclose(p.detach().numpy(), want, atol=5e-6)
            seen += 1
    assert seen == 3


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_muon_steps_as_torch_does(shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(3)
    start = torch.randn(shape, generator=source)
    module, theirs = Weights(start.clone()), nn.Parameter(start.clone())
    ours = Muon(lr=0.1, momentum=0.9, weight_decay=0.1).build(module, CPU)
    other = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    for _ in range(3):
        module.values[0].grad = torch.randn(shape, generator=source)
        theirs.grad = module.values[0].grad.clone()
        ours.step()
        other.step()
    moved = float((theirs - start).detach().norm())
    assert moved > 0.3
    # torch's matrices are in bfloat16 everywhere
    assert float((module.values[0] - theirs).detach().norm()) < 0.02 * moved
    buffers = ours.state[module.values[0]]["momentum_buffer"], other.state[theirs]["momentum_buffer"]
    torch.testing.assert_close(*buffers)


@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_the_rest_of_muon_steps_as_torchs_adamw_bit_for_bit(ratio: float) -> None:
    module = net()
    twin = copy.deepcopy(module)
    apart, chosen = muon_weights(twin), [p for p in twin.parameters()]
    optimizer = Muon(lr=0.02, weight_decay=0.3, adamw_ratio=ratio, beta_1=0.8, beta_2=0.9).build(module, CPU)
    decayed = [p for p in chosen if p.dim() > 1 and id(p) not in apart]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": [p for p in chosen if p.dim() < 2], "weight_decay": 0.0}]
    other = torch.optim.AdamW(groups, lr=0.01 * ratio, betas=(0.8, 0.9), fused=True)
    go(module, optimizer, range(3), lr=0.01)
    go(twin, other, range(3))
    same = [torch.equal(p, q) for p, q in zip(module.parameters(), twin.parameters(), strict=True) if id(q) not in apart]
    assert all(same) and len(same) == len(chosen) - 3


# --- all of them


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_nothing_moves_without_a_gradient_or_a_rate(value: Optimizer) -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    optimizer = value.build(module, CPU)
    optimizer.step()
    assert not optimizer.state
    go(module, optimizer, range(1), lr=0.0)
    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    give_gradients(module, 1)
    module.stem.weight.grad = None
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {name for name, _ in module.named_parameters()} - {"stem.weight"}


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_channels_last_gives_the_same_numbers(value: Optimizer) -> None:
    plain, last = net(), net(layout=torch.channels_last)
    assert not last.stem.weight.is_contiguous() and last.stem.weight.is_contiguous(memory_format=torch.channels_last)
    for module in (plain, last):
        go(module, value.build(module, CPU), range(4), lr=0.1)
    assert last.stem.weight.is_contiguous(memory_format=torch.channels_last)
    for (name, p), q in zip(plain.named_parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def state(value: Optimizer, seed: int, layout: torch.memory_format = torch.contiguous_format) -> TrainState:
    module = net(seed, layout)
    return TrainState(module, value.build(module, CPU), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_resuming_is_not_stopping(value: Optimizer, layout: torch.memory_format) -> None:
    through, stopped, resumed = (state(value, seed, layout) for seed in (0, 0, 1))
    go(through.networks, through.optimizer, range(5), lr=0.1)
    go(stopped.networks, stopped.optimizer, range(3), lr=0.1)
    saved = {name: tensor.detach().clone().contiguous() for name, tensor in stopped.tensors().items()}
    resumed.load(saved, 3)
    go(resumed.networks, resumed.optimizer, range(3, 5), lr=0.1)
    wanted, found = through.tensors(), resumed.tensors()
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    names = {name.split(".", 2)[2] for name in wanted if name.startswith("optimizer.")}
    adam, momentum = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}
    assert names == {SGD: momentum, LARS: momentum, AdamW: adam, Muon: adam | momentum}[type(value)]
    fresh = state(value, 0, layout)
    go(fresh.networks, fresh.optimizer, range(3), lr=0.1)
    fresh.optimizer.state.clear()  # the state is worth keeping
    go(fresh.networks, fresh.optimizer, range(3, 5), lr=0.1)
    assert any(not torch.equal(wanted[name], tensor) for name, tensor in fresh.tensors().items() if name in wanted)


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_the_loop_sets_the_rate_of_each_group(value: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute_loss(*given: object) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], SimpleNamespace]:
        loss: Tensor = sum(p.sum() for p in made.networks.parameters())  # type: ignore[assignment]
        return loss, {}, {}, SimpleNamespace(features=None)

    monkeypatch.setattr("smallview.training.loop.compute_loss", compute_loss)
    monkeypatch.setattr(Net, "follow", lambda *given: None, raising=False)
    made = state(value, 0)
    for lr in (0.5, 0.25):
        precision = Precision("channels_first", "float32", "")
        train_step(made, None, (), progress=0.0, lr=lr, seed=0, precision=precision, device=CPU)  # type: ignore[arg-type]
        scales = [1.0, 0.05, 0.05] if isinstance(value, Muon) else [1.0, 1.0]
        assert [group["lr"] for group in made.optimizer.param_groups] == [lr * scale for scale in scales]


def test_sgd_with_and_without_nesterov() -> None:
    for nesterov, wanted in ((True, 1.0 - 1.5 - 1.75), (False, 1.0 - 1.0 - 1.5)):
        module = Weights(torch.ones(2))
        optimizer = SGD(lr=1.0, momentum=0.5, nesterov=nesterov).build(module, CPU)
        for _ in range(2):
            module.values[0].grad = torch.ones(2)
            optimizer.step()
        assert module.values[0].tolist() == [wanted] * 2


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_settings_come_back(value: Optimizer, tmp_path: object) -> None:
    changed = override(value, "lr", "WarmupCosine(0.4, warmup=0.1)")
    changed = override(override(changed, "batch_rule", "sqrt"), "end", "0.01")
    assert changed == replace(value, lr=WarmupCosine(0.4, 0.1), batch_rule="sqrt", end=0.01)
    path = tmp_path / "optimizer.toml"  # type: ignore[operator]
    for one in (value, changed):
        path.write_text(dump_toml(to_tables(one)))
        assert from_tables(type(one), load_toml(path)) == one
    assert from_tables(type(value), {}) == type(value)()
    assert override(changed, "lr.peak", "0.2").lr == WarmupCosine(0.2, 0.1)


@pytest.mark.parametrize("cls", [SGD, AdamW, LARS, Muon])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lr": 0.0}, "lr is 0.0; wanted a number above 0, or a schedule"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": "fast"}, "lr is fast; wanted a number"),
        ({"lr": Cosine(0.1, -0.1)}, r"lr goes from -0.1 to 0.1; wanted a schedule of 0 or more"),
        ({"lr": Constant(0.0)}, r"lr goes from 0.0 to 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"end": 1.5}, "end is 1.5; wanted the part of the peak"),
        ({"batch_rule": "cubic"}, "batch_rule is 'cubic'; wanted linear, sqrt or none"),
    ],
)
def test_refused_by_all(cls: type, wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cls(**wrong)


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (LARS, {"momentum": 1.0}),
        (LARS, {"trust": 0.0}),
        (Muon, {"momentum": 1.0}),
        (Muon, {"adamw_ratio": 0.0}),
        (Muon, {"beta_1": -0.1}),
        (Muon, {"beta_2": 1.0}),
        (AdamW, {"beta_2": 1.0}),
        (SGD, {"momentum": -0.1}),
    ],
)
def test_refused_by_one(cls: type, wrong: dict[str, float]) -> None:
    ((name, number),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {number}; wanted"):
        cls(**wrong)
