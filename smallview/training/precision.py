"""Device, memory layout and number format: a fixed rule of encoder, device and CPU flags, or timed when asked."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from smallview.errors import SmallviewError, UsageError
from smallview.networks.modes import evaluating

Layout = Literal["channels_first", "channels_last"]
Format = Literal["float32", "bfloat16"]
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})  # of CPUs that multiply bfloat16


@dataclass(frozen=True)
class Precision:
    """How numbers lie in memory and how many bits they have, and why."""

    layout: Layout
    dtype: Format
    reason: str

    def place(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module on the device, in this layout."""
        return module.to(device, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    @property
    def memory_format(self) -> torch.memory_format:
        """Torch's name of the layout."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context for forward passes."""
        return nullcontext() if self.dtype == "float32" else torch.autocast(device.type, torch.bfloat16)


def choose_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: an unknown name. SmallviewError: a device that this machine does not have.
    """
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise UsageError(f'--device is "{name}"; wanted auto, cpu, cuda or mps')
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise SmallviewError("--device is cuda, and torch finds no CUDA device here; use --device cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise SmallviewError("--device is mps, and torch finds none here; use --device cpu or auto")
    return torch.device(name)


def cpu_flags() -> frozenset[str]:
    """The CPU's features as Linux names them; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def fixed_rule(encoder: nn.Module, device: torch.device, flags: frozenset[str]) -> Precision:
    """The layout and format for an encoder on a device: a rule, so that two runs never differ by chance.

    On GPUs: channels_last for every convolution net, bfloat16 where the GPU has it. On CPUs with products in bfloat16 (AMX or AVX-512
    BF16): bfloat16 and channels_last, which make a step of everything but depthwise nets 1.2 to 1.8 times faster; depthwise nets it
    slows. On other CPUs float32, channels_last for depthwise nets and plain dense stacks, not for residual nets.
    `docs/measurements.md` has the figures.
    """
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    depthwise = any(m.groups > 1 and m.groups == m.in_channels for m in convolutions)
    attention = len(convolutions) <= 1
    plain = type(encoder).__name__ in ("DenseSmall", "OnPatches")
    kinds = {"depthwise convolutions": depthwise, "a plain dense stack": plain, "attention": attention}
    kind = next((name for name, so in kinds.items() if so), "dense convolutions")
    if device.type == "cuda":
        layout: Layout = "channels_first" if attention else "channels_last"
        dtype: Format = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        return Precision(layout, dtype, f"rule for {device.type}: {kind} -> {layout}, {dtype}")
    found = sorted(BFLOAT16_FLAGS & flags) if device.type == "cpu" else []
    dtype = "bfloat16" if found and not depthwise else "float32"
    last = not attention and (depthwise or plain or dtype == "bfloat16")
    layout = "channels_last" if last else "channels_first"
    products = f"{found[0]} on this CPU" if found else "no bfloat16 products here"
    return Precision(layout, dtype, f"rule for {device.type}: {kind} -> {layout}; {products} -> {dtype}")


@torch.no_grad()
def starved(encoder: nn.Module, in_channels: int, side: int) -> bool:
    """Whether a convolution with a stride sees a map of a single place when views have this side.

    In bfloat16 on a CPU the gradient of its weights is then made of memory that nobody has written (oneDNN as torch 2.14 has it): now and
    then it is not finite, and else it is wrong without a sign.

    Example:
        >>> two = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
        >>> starved(two, 3, 2), starved(two, 3, 4)
        (True, False)
    """
    found = False

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal found
        found |= isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 and min(inputs[0].shape[-2:]) == 1

    hooks = [m.register_forward_pre_hook(look) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    like = next(encoder.parameters(), torch.zeros(1))
    try:
        with (
            evaluating(encoder),
            suppress(RuntimeError, ValueError, AssertionError),
        ):  # what cannot be seen at all is told elsewhere
            encoder(torch.zeros(2, in_channels, side, side, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def probe(step: Callable[[Precision], None], device: torch.device, rounds: int = 3) -> Precision:
    """Time one training step in each layout and format, in turns, and take the fastest median; `step` must not change the run."""
    formats: list[Format] = ["float32", "bfloat16"]
    layouts: list[Layout] = ["channels_first", "channels_last"]
    arms = [Precision(layout, dtype, "") for layout in layouts for dtype in formats]
    times: dict[Precision, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm in arms:
            start = time.perf_counter()
            step(arm)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[arm].append(time.perf_counter() - start)
    middle = {arm: sorted(t)[len(t) // 2] for arm, t in times.items()}
    best = min(arms, key=lambda arm: middle[arm])
    listed = ", ".join(f"{a.layout} {a.dtype} {1000 * middle[a]:.0f} ms" for a in arms)
    return Precision(best.layout, best.dtype, f"probed: {listed}")


def keep_big_blocks() -> bool:
    """Ask glibc to keep freed memory instead of handing it back after each step; True where that worked.

    Activations are freed and asked for again at every step; fetching their pages anew each time costs a small net on a CPU
    part of its speed (`benchmarks/` measures it).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or os.environ.get("SMALLVIEW_MALLOC") == "off":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_max = -1, -4
        return bool(libc.mallopt(trim_threshold, 2**31 - 1)) and bool(libc.mallopt(mmap_max, 0))
    except OSError:
        return False


@contextmanager
def numerics(tf32: bool, deterministic: bool) -> Iterator[None]:
    """How float32 numbers are multiplied on CUDA and in which order they are added; as before afterwards.

    tf32: products of float32 numbers, in convolutions too, take 11 bits of each; without, all 24, where torch's default lets
    convolutions take 11. deterministic: only kernels that give the same bits each time. cuBLAS needs CUBLAS_WORKSPACE_CONFIG for that,
    which is set here where it is not: enter before the first product on CUDA, which is when cuBLAS reads it.

    Raises:
        SmallviewError: inside, an operation that has no deterministic kernel.

    Example:
        >>> with numerics(tf32=False, deterministic=True):
        ...     torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
        (True, False)
    """
    cudnn = torch.backends.cudnn
    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), cudnn.benchmark
    workspace = os.environ.get(WORKSPACE)
    restore = _take_tf32(tf32)
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark = False  # kernels chosen by the clock differ from run to run
    try:
        yield
    except RuntimeError as error:
        if deterministic and (told := nondeterministic(error)) is not None:
            raise SmallviewError(told) from error
        raise
    finally:
        restore()
        if deterministic:
            torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
            cudnn.benchmark = kept[2]
            if workspace is None:
                os.environ.pop(WORKSPACE, None)


def nondeterministic(error: BaseException) -> str | None:
    """A line for the user when torch says that an operation has no deterministic kernel; None for other errors.

    Example:
        >>> nondeterministic(RuntimeError("fold_backward does not have a deterministic implementation, but you set ..."))
        'deterministic is true, and fold_backward has no deterministic kernel here; use --set deterministic=false'
    """
    told = str(error)
    name, found, _ = told.partition(" does not have a deterministic implementation")
    if found:
        return f"deterministic is true, and {name.split()[-1]} has no deterministic kernel here; use --set deterministic=false"
    if WORKSPACE in told:
        return (
            f"deterministic is true, and cuBLAS began without {WORKSPACE}; set {WORKSPACE}=:4096:8 before starting, "
            "or use --set deterministic=false"
        )
    return None


def _take_tf32(tf32: bool) -> Callable[[], None]:
    """Let CUDA's products and convolutions take TF32, or not; -> what brings back how it was.

    torch has two families of names for it and raises where one is read after the other was written. Its compiler reads the older
    one, which is therefore taken here, unless someone has written the newer.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    newer = [matmul, cudnn.conv, cudnn.rnn]
    names = [place.fp32_precision for place in newer]
    kept: tuple[bool, bool] | None = None

    def restore() -> None:
        if kept is not None:
            _older(*kept)
        if [place.fp32_precision == "tf32" for place in newer] != [name == "tf32" for name in names]:
            _newer(newer, names)

    # reading them raises where someone has written the newer ones
    with suppress(RuntimeError):
        kept = bool(matmul.allow_tf32), bool(cudnn.allow_tf32)
        _older(tf32, tf32)
    if any((place.fp32_precision == "tf32") is not tf32 for place in newer):
        _newer(newer, ["tf32" if tf32 else "ieee"] * len(newer))
    return restore


def _older(products: bool, convolutions: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch advise the newer names
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def _newer(places: Sequence[Any], names: Sequence[str]) -> None:
    for place, name in zip(places, names, strict=True):
        place.fp32_precision = name
