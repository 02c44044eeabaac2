"""Every random draw is a function of (seed, purpose, step | sample, view): there is no stream whose position could be lost.

Legend: B samples, n draws each.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose: SHA-256 of (seed, purpose, numbers), the same on every machine.

    Example:
        >>> derive(0, "order", 3) == derive(0, "order", 3), derive(0, "order", 3) == derive(0, "order", 4)
        (True, False)
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(n)) for n in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator of its own for one purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *numbers)))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def sample_keys(seed: int, purpose: str, samples: npt.ArrayLike, *numbers: int) -> npt.NDArray[np.uint64]:
    """One 64-bit key per sample, uint64 [B], from (seed, purpose, numbers, sample): independent of batch and order.

    Example:
        >>> a = sample_keys(0, "crop", [5, 9], 1)
        >>> b = sample_keys(0, "crop", [9], 1)
        >>> bool(a[1] == b[0])
        True
    """
    base = np.uint64(derive(seed, purpose, *numbers))
    with np.errstate(over="ignore"):
        return _mix(_mix(np.asarray(samples).astype(np.uint64) * _GOLDEN + base) + base)


def uniforms(keys: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.float64]:
    """N uniform numbers in [0, 1) per key, float64 [B, n] (splitmix64 counted from the key; Steele et al., 2014).

    Example:
        >>> u = uniforms(sample_keys(0, "doc", [1, 2, 3]), 4)
        >>> u.shape, bool((u >= 0).all() and (u < 1).all())
        ((3, 4), True)
    """
    with np.errstate(over="ignore"):
        counters = keys[:, None] + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64)[None, :]
        return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
