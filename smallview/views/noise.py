"""Noise as a function of a picture's key and the place alone: splitmix64 counted from the key (Steele et al., 2014)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from smallview.views.compiling import compiled

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@compiled
def _hash(key: Any, place: Any) -> Any:
    x = key + np.uint64(GOLDEN) * np.uint64(place + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


@compiled
def normal_pair(key: Any, place: Any) -> Any:
    """Two standard normal numbers (Box and Muller, 1958)."""
    x = _hash(key, place)
    radius = math.sqrt(-2.0 * math.log((np.float64(x >> np.uint64(32)) + 0.5) / 4294967296.0))
    angle = 2.0 * math.pi * np.float64(x & np.uint64(0xFFFFFFFF)) / 4294967296.0
    return radius * math.cos(angle), radius * math.sin(angle)


@compiled
def noise_byte(key: Any, place: Any) -> Any:
    """One byte, all equally likely."""
    return np.uint8(_hash(~key, place) >> np.uint64(56))
