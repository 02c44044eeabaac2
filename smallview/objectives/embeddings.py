"""What every loss does to embeddings first: check them, and bring them to unit length in a format that bears a temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smallview.schedules import Schedule, over


def full(x: Tensor) -> Tensor:
    """Half formats become float32, wider ones stay what they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, never in a half format."""
    return F.normalize(full(x), dim=-1)


def exact(device: torch.device) -> torch.autocast:
    """No autocast: a similarity in bfloat16 is off by up to 1/256, and the temperature multiplies that by 5 to 20."""
    return torch.autocast(device.type, enabled=False)


def check_pair(a: Tensor, b: Tensor, first: str, second: str, least: int = 1) -> None:
    """Two sets of embeddings that belong together.

    Raises:
        ValueError: shapes that differ or are not [B, D], fewer than `least` rows, or numbers that are not finite.
    """
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"{first} is {list(a.shape)} and {second} {list(b.shape)}; wanted both [B, D]")
    if len(a) < least:
        why = ", for statistics of the batch" if least > 1 else ""
        raise ValueError(f"{first} has {len(a)} row{'s' * (len(a) != 1)}; wanted {least} or more{why}")
    if not (a.is_floating_point() and b.is_floating_point()) or (a.dtype == torch.float64) != (b.dtype == torch.float64):
        raise ValueError(
            f"{first} is {a.dtype} and {second} {b.dtype}; wanted both float32 or smaller, or both float64: x.float()"
        )
    for x, name in ((a, first), (b, second)):
        broken = int((~torch.isfinite(x)).any(1).sum())
        if broken:
            raise ValueError(
                f"{name} has {broken} of {len(x)} rows with numbers that are not finite; wanted finite ones: look for the NaN "
                "upstream (a learning rate too high, a half format that overflowed)"
            )


def check_temperature(temperature: float | Schedule) -> None:
    """A temperature divides.

    Raises:
        ValueError: not above 0 from beginning to end.
    """
    if not all(at > 0 for at in over(temperature)):
        raise ValueError(f"temperature is {temperature}; wanted a number above 0, such as 0.2")


def check_number(value: float | Schedule, name: str) -> None:
    """A plain function has no progress at which a schedule could be resolved.

    Raises:
        ValueError: no number.
    """
    if not isinstance(value, (int, float)):
        raise ValueError(
            f"{name} is a {type(value).__name__}; wanted a number: resolve(schedule, progress) gives one, the term takes schedules"
        )
