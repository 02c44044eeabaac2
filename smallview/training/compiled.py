"""Passes through torch.compile: kernels made for one network and one shape, worth their minute in long runs."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import SmallviewError, UsageError
from smallview.joint_embedding import Method
from smallview.networks.online_target import Shared
from smallview.schedules import SPAN
from smallview.views.view import pixels

MOST = 8  # shapes of one network; each takes its minute
TOLD_S = 0.5  # what is compiled for another module of the same layers is taken over at once


class Compiled:
    """Stands for `module(x)` in Networks.passes: forward and backward pass of a module as one compiled graph, made for each shape.

    Weights and buffers are the module's own, and names of its state stay. Numbers agree with eager passes up to rounding, and have the
    same bits in another process. The first pass of a shape takes seconds to minutes, for forward and backward pass together: `seconds`
    is their sum, and `say` is told of each.

    backend: torch's name of a compiler; say: takes a line for the user.

    Raises:
        SmallviewError: a module that cannot be compiled as a whole, no C++ compiler, or a ninth shape of one module: it would run
            without being compiled and a resumed run would not, so that their bits would differ.

    Source: Ansel et al., 2024 (PyTorch 2).

    Example:
        >>> passes = Compiled(backend="eager")
        >>> layer, x = nn.Linear(3, 2), torch.randn(4, 3)
        >>> torch.equal(passes(layer, x), layer(x))
        True
    """

    def __init__(self, backend: str = "inductor", say: Callable[[str], None] | None = None) -> None:
        self.backend, self.say = backend, say
        self.seconds = 0.0
        self._compiled: dict[int, Any] = {}  # the values hold the modules, whose ids stay theirs
        self._seen: set[tuple[Any, ...]] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled(self.backend, self.say)  # of the copied networks, none is compiled yet

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """What module(x) would give, [B, D]."""
        kind = x.device.type
        # all that dynamo looks at before it takes what it has compiled
        how = (module.training, torch.is_grad_enabled(), x.requires_grad, x.dtype, x.stride(), x.device)
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (id(module), tuple(x.shape), *how, cast)
        if key in self._seen:
            return self._compiled[id(module)](x)  # type: ignore[no-any-return]
        shapes = {seen[1] for seen in self._seen if seen[0] == id(module)}
        if len(shapes | {tuple(x.shape)}) > MOST:
            raise SmallviewError(
                f"{type(module).__name__} meets its shape number {MOST + 1}, {list(x.shape)}, and each takes a minute to compile; wanted "
                f"views of at most {MOST} sizes; start anew with --fresh --set execution=eager"
            )
        began = time.perf_counter()
        out = self._first(module, x)
        took = time.perf_counter() - began
        self._seen.add(key)
        self.seconds += took
        if self.say is not None and took >= TOLD_S:
            self.say(f"{type(module).__name__} compiled for {list(x.shape)} in {took:.0f} s")
        return out

    def _first(self, module: nn.Module, x: Tensor) -> Tensor:
        import torch._dynamo  # takes a second or two, which only those who compile shall wait

        compiled = self._compiled.get(id(module))
        if compiled is None:
            # timing kernels to choose among them would let two processes differ
            options: dict[str, Any] | None = (
                {"deterministic": True} if self.backend == "inductor" and _has_deterministic() else None
            )
            compiled = torch.compile(module, fullgraph=True, dynamic=False, backend=self.backend, options=options)
            self._compiled[id(module)] = compiled
        # its limit counts all modules of a class together
        limits: Any = torch._dynamo.config
        backward: Any = torch._functorch.config
        try:
            with (
                warnings.catch_warnings(),
                limits.patch(recompile_limit=1000, accumulated_recompile_limit=1000),
                # else the backward pass is compiled in loss.backward(), where no one counts its seconds or reads its errors
                backward.patch(force_non_lazy_backward_lowering=True),
            ):
                warnings.simplefilter("ignore")  # torch warns of what it does itself here, and advises TF32, which is a setting
                out: Tensor = compiled(x)
                return out
        except torch._dynamo.exc.TorchDynamoException as error:
            raise SmallviewError(
                f"{type(module).__name__} cannot be compiled ({_reason(error)}); use --set execution=eager"
            ) from None


def check_views(method: Method, size: int) -> None:
    """Whether a run at `size` pixels shows its encoders few enough shapes to be compiled for: before it begins, not in the middle.

    Raises:
        UsageError: views that grow through too many sizes.

    Example:
        >>> from smallview.presets import preset
        >>> check_views(preset("simclr").method, 32)
    """
    most = max(len(shapes) for shapes in _shapes(method, size))
    if most > MOST:
        raise UsageError(
            f"execution is compile, and an encoder meets {most} shapes while views grow, each of which takes a minute to compile; "
            f"wanted at most {MOST}: views of fixed sizes, or execution=eager"
        )


def _shapes(method: Method, size: int) -> list[set[tuple[int, int]]]:
    """What each encoder meets in a training, as (pixels, views in one pass), since views of a size go through together."""
    if isinstance(method.target, Shared):
        seen = [method.views]
    else:
        seen = [tuple(v for v in method.views if v.seen_by in ("both", side)) for side in ("online", "target")]
    return [
        {shape for at in SPAN for shape in Counter(pixels(view.size, size, at) for view in views).items()} for views in seen
    ]


def _has_deterministic() -> bool:
    return "deterministic" in torch._inductor.list_options()


def _reason(error: BaseException) -> str:
    """The first line, and what it means where torch tells."""
    lines = [line.strip() for line in str(error).splitlines()]
    # what follows "backend='inductor' raised:" is the error itself
    told = [line for line in lines if line and not line.endswith(" raised:")] or [type(error).__name__]
    means = next((line.removeprefix("Explanation: ") for line in told if line.startswith("Explanation: ")), None)
    return (told[0] if means is None else f"{told[0]}: {means}").rstrip(".")[:300]
