"""Weights that others trained: read without running anything, fitted by name and shape, with an account of what was covered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import DataError, SmallviewError, UsageError

MOST_NAMED = 4
DEEPEST = 4
_COUNTER = "num_batches_tracked"  # says nothing about features


@dataclass(frozen=True)
class Coverage:
    """How much of an encoder a file of weights covers, and what in it belongs elsewhere (heads, optimizers, a second network)."""

    covered: int
    wanted: int
    prefix: str
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unused: int

    def sentence(self) -> str:
        """The account in words."""
        start = f' under "{self.prefix}"' if self.prefix else ""
        words = f"{self.covered} of {self.wanted} tensors of the encoder are covered{start}; {self.unused} others in the file are not used"
        for kind, names in (("missing", self.missing), ("of another shape", self.misshapen)):
            if names:
                words += f"; {kind}: {', '.join(names[:MOST_NAMED])}{', ...' * (len(names) > MOST_NAMED)}"
        return words


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor in a file of weights by its full name: .safetensors, or torch's own format through its allow-list only.

    Raises:
        DataError: no such file, damaged, or holding code.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(f"there is no file of weights at {place}; wanted .safetensors, or a .pt, .pth or .ckpt of torch")
    try:
        if place.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(place))
        found = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        first = (str(error).splitlines() or [""])[0][:160]
        told = f"{type(error).__name__}{': ' * bool(first)}{first}"
        code = "Unsupported" in told or "weights_only" in told.lower()
        why = "refused: it holds more than tensors, and may hold code" if code else "damaged, or not of torch"
        raise DataError(f"{place} is {why} ({told}); save its state_dict anew, best as .safetensors") from error
    tensors: dict[str, Tensor] = {}
    _collect(found, "", tensors, 0)
    if not tensors:
        raise DataError(f"{place} holds no tensors; wanted a state_dict, or a checkpoint that holds one")
    return tensors


def _collect(value: Any, name: str, into: dict[str, Tensor], depth: int) -> None:
    if isinstance(value, Tensor):
        into[name] = value
    elif isinstance(value, Mapping) and depth < DEEPEST:
        for key, item in value.items():
            _collect(item, f"{name}.{key}" if name else str(key), into, depth + 1)


def fit_weights(net: nn.Module, tensors: Mapping[str, Tensor], *, partial: bool = False) -> Coverage:
    """Load into a network what fits by name and shape, whatever stands in front of the names; in place.

    Of several networks in one file (an online and a target one) the first with the greatest coverage is taken.

    Raises:
        UsageError: not every tensor of the network is covered, and `partial` does not say that this is meant.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> fit_weights(net, {"state_dict.module.encoder.weight": torch.ones(1, 2), "module.bias": torch.ones(1)}, partial=True).covered
        1
    """
    own = net.state_dict()
    wanted = [name for name in own if not name.endswith(_COUNTER)]
    prefixes = {""}
    for name in tensors:
        for key in wanted[:1] + wanted[-1:]:
            if name.endswith(f".{key}"):
                prefixes.add(name[: -len(key)])
    if prefixes == {""}:
        prefixes |= {name[: -len(key)] for name in tensors for key in wanted if name.endswith(f".{key}")}

    def fitting(prefix: str) -> list[str]:
        return [key for key in wanted if prefix + key in tensors and tensors[prefix + key].shape == own[key].shape]

    prefix = max(
        prefixes,
        key=lambda start: (len(fitting(start)), -list(tensors).index(next((n for n in tensors if n.startswith(start)), ""))),
    )
    fits = fitting(prefix)
    present = {key for key in wanted if prefix + key in tensors}
    coverage = Coverage(
        *(len(fits), len(wanted), prefix.removesuffix(".")),
        tuple(key for key in wanted if key not in present),
        tuple(
            f"{key} {list(tensors[prefix + key].shape)} for {list(own[key].shape)}"
            for key in wanted
            if key in present - set(fits)
        ),
        sum(not name.endswith(_COUNTER) for name in tensors) - len(fits),
    )
    if coverage.covered < coverage.wanted and not partial:
        raise UsageError(
            f"{coverage.sentence()}; wanted all of them: the encoder, its stem or the file is another one; if you mean it, add --partial"
        )
    with torch.no_grad():
        for key in fits:
            own[key].copy_(tensors[prefix + key])
        for key in own:
            if key.endswith(_COUNTER) and prefix + key in tensors:
                own[key].copy_(tensors[prefix + key])
    if not coverage.covered:
        raise SmallviewError(f"{coverage.sentence()}; wanted some of them")
    return coverage
