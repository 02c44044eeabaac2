"""Optimizers as values, their parameter groups, and the learning-rate rule.

A learning rate is one for 256 pictures. As a number it is a peak: warmed up, then lowered by half a cosine; as a schedule it
is taken as it is. Weight decay acts on matrices and kernels, not on biases and BatchNorm's scale and shift.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.adamw import adamw

from smallview.schedules import Product, Schedule, WarmupCosine, over, resolve

BatchRule = Literal["linear", "sqrt", "none"]
_GROWTH: dict[str, Callable[[float], float]] = {"linear": float, "sqrt": math.sqrt, "none": lambda batches: 1.0}
_FUSED = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class SGD:
    """SGD with momentum.

    lr: for 256 pictures. warmup: a part of the training. batch_rule: see `scaled_lr`. end: the part of the peak that the rate
    ends at. warmup and end belong to an lr that is a number; a schedule has its own. nesterov: looks one step ahead, as MoCo
    and S3L do not; without momentum there is nothing to look at.

    Raises:
        ValueError: a number outside its range, named.
    """

    lr: float | Schedule = 0.06
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    batch_rule: BatchRule = "linear"
    end: float = 0.0
    nesterov: bool = True

    def __post_init__(self) -> None:
        _check(self)
        _check_below_one("momentum", self.momentum)

    def build(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The fused optimizer over the module's trainable parameters; the learning rate is set at each step."""
        groups, lr = parameter_groups(module, self.weight_decay), resolve(self.lr, 0.0)
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=nesterov, fused=device.type in _FUSED)


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019). lr, warmup, batch_rule, end: as in SGD.

    Raises:
        ValueError: a number outside its range, named.
    """

    lr: float | Schedule = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    weight_decay: float = 0.05
    warmup: float = 0.05
    batch_rule: BatchRule = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        _check_below_one("beta_1", self.beta_1)
        _check_below_one("beta_2", self.beta_2)

    def build(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The fused optimizer over the module's trainable parameters; the learning rate is set at each step."""
        groups, lr = parameter_groups(module, self.weight_decay), resolve(self.lr, 0.0)
        return torch.optim.AdamW(groups, lr=lr, betas=(self.beta_1, self.beta_2), fused=device.type in _FUSED)


@dataclass(frozen=True)
class LARS:
    """SGD with momentum whose steps are, layer by layer, in proportion to the weights: for batches of thousands of pictures.

    trust: the size of a layer's step before lr, as a part of the norm of its weights. Parameters of one dimension get plain
    momentum, without decay or trust. lr, warmup, batch_rule, end: as in SGD.

    Raises:
        ValueError: a number outside its range, named.

    Source: You et al., 2017, Algorithm 1; the learning rate outside the momentum, as in the codes of BYOL and Barlow Twins.
    """

    lr: float | Schedule = 0.3
    momentum: float = 0.9
    weight_decay: float = 1e-6
    trust: float = 0.001
    warmup: float = 0.05
    batch_rule: BatchRule = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        _check_below_one("momentum", self.momentum)
        if not 0.0 < self.trust <= 1.0:
            raise ValueError(f"trust is {self.trust}; wanted a number above 0 and up to 1, such as 0.001")

    def build(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The optimizer over the module's trainable parameters; the learning rate is set at each step."""
        groups = parameter_groups(module, self.weight_decay)
        for group in groups:
            group["trust"] = self.trust if group["params"][0].dim() > 1 else None
        return _LARSSteps(groups, {"lr": resolve(self.lr, 0.0), "momentum": self.momentum})


@dataclass(frozen=True)
class Muon:
    """Muon for matrices and kernels, whose steps have all singular values near 1, and AdamW for everything else.

    adamw_ratio: AdamW's learning rate as a part of lr, so that it holds for a schedule too; 0.05 of 0.02 is 0.001. AdamW gets
    what is no matrix: biases, scales and shifts (without decay), embeddings, parameters of a single row such as position
    tables, and the kernels of convolutions in groups. A depthwise kernel, [C, 1, k, k], is a stack of C filters that never meet
    in a sum: there is no map from k*k inputs to C outputs whose singular values could be made equal.
    lr, warmup, batch_rule, end: as in SGD. weight_decay: decoupled, times the learning rate, as in AdamW.

    Its products of matrices cost about a hundred times AdamW's step on a CPU; it is made for GPUs. The defaults are not measured yet.

    Raises:
        ValueError: a number outside its range, named.

    Source: Jordan et al., 2024, Muon: an optimizer for hidden layers in neural networks.
    """

    lr: float | Schedule = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.01
    adamw_ratio: float = 0.05
    beta_1: float = 0.9
    beta_2: float = 0.95
    warmup: float = 0.05
    batch_rule: BatchRule = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        for name in ("momentum", "beta_1", "beta_2"):
            _check_below_one(name, getattr(self, name))
        if not 0.0 < self.adamw_ratio <= 1000.0:
            raise ValueError(f"adamw_ratio is {self.adamw_ratio}; wanted AdamW's rate as a part of lr, such as 0.05")

    def build(self, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """The optimizer over the module's trainable parameters; the learning rate is set at each step."""
        apart = _no_matrices(module)
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(module, self.weight_decay):
            matrices = [p for p in group["params"] if p.dim() > 1 and len(p) > 1 and id(p) not in apart]
            chosen = {id(p) for p in matrices}
            rest = [p for p in group["params"] if id(p) not in chosen]
            groups.append({**group, "params": matrices, "orthogonal": True, "lr_scale": 1.0})
            groups.append({**group, "params": rest, "orthogonal": False, "lr_scale": self.adamw_ratio})
        lr = resolve(self.lr, 0.0)
        kept = [{**group, "lr": lr * group["lr_scale"]} for group in groups if group["params"]]
        return _MuonSteps(kept, {"lr": lr, "momentum": self.momentum, "betas": (self.beta_1, self.beta_2)})


Optimizer = SGD | AdamW | LARS | Muon


def _check(value: Optimizer) -> None:
    lr = value.lr
    if isinstance(lr, Schedule):
        rates = over(lr)
        if not (all(0.0 <= rate <= 1000.0 for rate in rates) and max(rates) > 0.0):
            raise ValueError(
                f"lr goes from {min(rates)} to {max(rates)}; wanted a schedule of 0 or more, and above 0 somewhere"
            )
    elif not (isinstance(lr, (int, float)) and 0.0 < lr <= 1000.0):
        raise ValueError(f"lr is {lr}; wanted a number above 0, or a schedule such as WarmupCosine(peak=0.1, warmup=0.05)")
    if not 0.0 <= value.weight_decay <= 10.0:
        raise ValueError(f"weight_decay is {value.weight_decay}; wanted a number of 0 or more")
    if not 0.0 <= value.warmup < 1.0:
        raise ValueError(f"warmup is {value.warmup}; wanted a part of the training, from 0 to under 1")
    if not 0.0 <= value.end <= 1.0:
        raise ValueError(f"end is {value.end}; wanted the part of the peak that the rate ends at, from 0 to 1")
    _growth(value.batch_rule)


def _check_below_one(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}; wanted a number from 0 to under 1")


def _growth(rule: str) -> Callable[[float], float]:
    if rule not in _GROWTH:
        raise ValueError(f"batch_rule is {rule!r}; wanted linear, sqrt or none")
    return _GROWTH[rule]


def scaled_lr(lr: float, batch_size: int, rule: BatchRule = "linear") -> float:
    """The learning rate for a batch, 256 pictures being the unit: linear in their number, its square root, or the same.

    batch_size counts the pictures of a step over all processes, the queries of a contrastive loss; the number of negatives
    changes nothing (Zhu et al., 2020, EqCo).

    Source: Goyal et al., 2017 (linear); Krizhevsky, 2014 (sqrt).

    Example:
        >>> scaled_lr(0.06, 512), scaled_lr(0.06, 1024, "sqrt"), scaled_lr(0.06, 1024, "none")
        (0.12, 0.12, 0.06)
    """
    growth = _growth(rule)
    return lr * batch_size / 256 if rule == "linear" else lr * growth(batch_size / 256)


def learning_rate(optimizer: Optimizer, batch_size: int) -> Schedule:
    """The learning rate of a run: a number is the peak of a warm-up and a cosine; a schedule is taken as it is.

    Both go by the optimizer's batch rule, in pictures, never in negatives (see `scaled_lr`).

    Example:
        >>> learning_rate(SGD(lr=0.06, warmup=0.1, end=0.5), 512)
        WarmupCosine(peak=0.12, warmup=0.1, end=0.06)
    """
    if isinstance(optimizer.lr, Schedule):
        return Product(scaled_lr(1.0, batch_size, optimizer.batch_rule), optimizer.lr)
    peak = scaled_lr(optimizer.lr, batch_size, optimizer.batch_rule)
    return WarmupCosine(peak, optimizer.warmup, end=peak * optimizer.end)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with weight decay; biases, scales and shifts without."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.dim() > 1]
    plain = [p for p in trainable if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _no_matrices(module: nn.Module) -> set[int]:
    """The ids of parameters of two and more dimensions that no matrix product uses as one matrix."""
    apart: set[int] = set()
    for part in module.modules():
        if (isinstance(part, _ConvNd) and part.groups > 1) or isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            apart |= {id(p) for p in part.parameters()}
    return apart


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices [N, R, C] with the same singular vectors and singular values near 1 (0.7 to 1.2), by 5 Newton-Schulz steps.

    In float32, on CUDA in bfloat16 as in the source. Singular values far under 1/300 of the norm come out smaller.

    Source: Jordan et al., 2024, whose quintic's coefficients rise fastest at 0.

    Example:
        >>> [round(float(value), 1) for value in orthogonalize(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])).diagonal(0, 1, 2)[0]]
        [0.7, 1.1]
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float().mT if tall else matrices.float()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(5):
        gram = x @ x.mT  # [N, min(R, C), min(R, C)]
        quartic = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, quartic, x, beta=3.4445)
    return x.mT if tall else x


def _orthogonal_updates(directions: Sequence[Tensor]) -> list[Tensor]:
    """Each direction as a matrix [out, rest], orthogonalized and longer where it is tall; equal shapes go in one stack."""
    updates = list(directions)
    stacks: dict[tuple[int, int], list[int]] = {}
    for i, direction in enumerate(directions):
        stacks.setdefault((len(direction), direction.numel() // len(direction)), []).append(i)
    for (rows, columns), members in stacks.items():
        stack = orthogonalize(torch.stack([directions[i].reshape(rows, columns) for i in members]))
        stack = stack.float() * math.sqrt(max(1.0, rows / columns))
        for i, update in zip(members, stack, strict=True):
            updates[i] = update.reshape(directions[i].shape).to(directions[i].dtype)
    return updates


class _Steps(torch.optim.Optimizer, ABC):
    """What our two update rules share: a step is one update of each group that has gradients.

    State is one tensor per parameter and name, made when first needed, so that a checkpoint may put its own there before.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the present gradients; -> what `closure` gave."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self.update(group, parameters, [p.grad for p in parameters])
        return loss

    @abstractmethod
    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Changes the parameters of one group in place."""

    def kept(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """The state tensors of this name, zeros at first, lying in memory as their parameters do."""
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in parameters]


class _LARSSteps(_Steps):
    """The steps of LARS; a group with trust None takes plain momentum."""

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        buffers = self.kept(parameters, "momentum_buffer")
        steps = gradients
        if group["trust"] is not None:
            steps = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            weights, lengths = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(steps))  # [P]
            ratios = group["trust"] * weights / lengths
            torch._foreach_mul_(steps, list(torch.where((weights > 0) & (lengths > 0), ratios, 1.0)))
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, steps)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


class _MuonSteps(_Steps):
    """The steps of Muon for groups that are `orthogonal`, of AdamW for the others."""

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if not group["orthogonal"]:
            self.update_adamw(group, parameters, gradients)
            return
        buffers = self.kept(parameters, "momentum_buffer")
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, _orthogonal_updates(ahead), alpha=-group["lr"])

    def update_adamw(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Torch's own fused step, with its names for the state."""
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        adamw(
            parameters,
            gradients,
            self.kept(parameters, "exp_avg"),
            self.kept(parameters, "exp_avg_sq"),
            [],
            [self.state[p]["step"] for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
