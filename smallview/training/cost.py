"""What a run costs: seconds by clocks, a method in passes through its encoder, networks in multiplications counted at their layers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from smallview.joint_embedding import Method
from smallview.networks.modes import evaluating
from smallview.networks.online_target import Branch, Momentum
from smallview.views.view import View, pixels

GRID = 32  # places in a training at which sizes that change are looked at
ATTENTION = ("Attention", "AttentionCl", "WindowAttention", "EvaAttention")  # timm's, each with its one matrix `qkv`


class Ledger:
    """Seconds by name: `with ledger.clock("save")`; a clock stands still while another one inside it runs.

    Example:
        >>> ledger = Ledger()
        >>> with ledger.clock("train"), ledger.clock("save"):
        ...     pass
        >>> sorted(ledger.seconds)
        ['save', 'train']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    def _book(self) -> None:
        now = time.monotonic()
        if self._running:
            name = self._running[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Count the time inside under this name."""
        self._book()
        self._running.append(name)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each clock up to now."""
        self._book()
        return dict(self._seconds)

    def shares(self) -> dict[str, float]:
        """Each clock's part of all."""
        seconds = self.seconds
        whole = sum(seconds.values())
        return {name: spent / whole for name, spent in seconds.items()} if whole > 0 else {}

    def load(self, seconds: Mapping[str, float]) -> None:
        """Go on from the seconds of an earlier part of the run."""
        self._seconds = {str(name): float(spent) for name, spent in seconds.items()}


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use at once: by torch on CUDA, else by this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` tell of what comes from here on, where that can be: on CUDA; a process keeps its own peak for ever."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats(device)


@torch.no_grad()
def forward_macs(module: nn.Module, in_channels: int, size: int) -> int:
    """Multiply-accumulates of one picture's forward pass through the convolutions, linear layers and attention.

    A training view costs three times that (forward, and backward to inputs and to weights), two floating-point operations each.
    Grouped convolutions are counted as they are: counters that ignore groups overstate depthwise nets several times.

    Example:
        >>> forward_macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), 3, 4)
        3456
    """
    like = next(module.parameters(), torch.zeros(1))
    return _macs(module, torch.zeros(1, in_channels, size, size, dtype=like.dtype, device=like.device))


@torch.no_grad()
def _macs(module: nn.Module, x: Tensor) -> int:
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # one picture goes in, and all that comes out is its own: windows of it stand where a batch would
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif _attends(layer):  # queries with keys, and weights with values
            windows, *places, width = inputs[0].shape
            total += 2 * windows * math.prod(places) ** 2 * width

    counted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, counted) or _attends(m)]
    try:
        with evaluating(module):
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _attends(layer: nn.Module) -> bool:
    """Whether it is timm's attention, of all or within windows, whose products are no layer of their own."""
    return type(layer).__name__ in ATTENTION and isinstance(getattr(layer, "qkv", None), nn.Linear)


def training_flops(method: Method, online: Branch, predictor: nn.Module | None, in_channels: int, size: int) -> float:
    """Floating-point operations of one picture in one step, its views at their sizes, the mean over the training where these change.

    Forward passes take two for each multiplication, backward passes twice as many; a momentum target has forward passes alone. Fixed
    negatives are left out: they cost a step, and not a picture.

    Example:
        >>> from smallview.presets import method
        >>> branch = Branch(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 4))
        >>> training_flops(method("moco_v2"), branch, None, 3, 8)  # (3 + 1) passes of 36 * 8 * 27 + 32 multiplications
        62464.0
    """
    known: dict[int, int] = {}
    like = next(online.parameters(), torch.zeros(1))
    head = 0
    if predictor is not None:
        linear = next(m for m in predictor.modules() if isinstance(m, nn.Linear))
        head = _macs(predictor, torch.zeros(1, linear.in_features, dtype=like.dtype, device=like.device))
    total = 0.0
    for view in method.views:
        forward, backward = _directions(method, view)
        for side in _sides(view, size):
            macs = known.get(side)
            if macs is None:
                macs = known[side] = forward_macs(online, in_channels, side)
            online_passes = 3.0 * head if view.seen_by != "target" else 0.0
            total += 2.0 * (macs * (forward + 2 * backward) + online_passes) / GRID
    return total


def _sides(view: View, size: int) -> list[int]:
    """The view's size in a run of this size, at places spread evenly over the training."""
    return [pixels(view.size, size, (i + 0.5) / GRID) for i in range(GRID)]


def _directions(method: Method, view: View) -> tuple[int, int]:
    """Forward and backward passes through the encoder; through a shared one everything goes backward, if only by BatchNorm's statistics."""
    if not isinstance(method.target, Momentum):
        return 1, 1
    return (view.seen_by != "target") + (view.seen_by != "online"), int(view.seen_by != "target")


def encoder_passes(method: Method) -> float:
    """What a picture costs in the encoder: forward and backward of one full view is 1, forward alone 1/3, a smaller view its area.

    A schedule of sizes counts with its mean.

    Example:
        >>> from smallview.presets import method
        >>> round(encoder_passes(method("simclr")), 3), round(encoder_passes(method("moco_v2")), 3)
        (2.0, 1.333)
    """
    size = 224
    total = 0.0
    for view in method.views:
        forward, backward = _directions(method, view)
        areas = [(side / size) ** 2 for side in _sides(view, size)]
        total += (forward + 2 * backward) / 3.0 * sum(areas) / GRID
    return total
