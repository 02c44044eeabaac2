"""Weights that others trained, fitted to an encoder by name, or by order where the names are others, with an account of what was covered."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smallview.errors import DataError, UsageError
from smallview.networks.encoders import EncoderConfig, load_encoder
from smallview.networks.weight_files import read_weights

MOST_NAMED = 4
LEAST_IN_ORDER = 8  # so many tensors of the same kinds and shapes, one after the other, are no chance
_COUNTER = "num_batches_tracked"  # says nothing about features
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # of torch, around any part of a network


@dataclass(frozen=True)
class Coverage:
    """How much of an encoder a file of weights covers, and what in it belongs elsewhere (heads, optimizers, a second network).

    numbers, all_numbers: what the covered and all tensors hold. by_order: names are others, and tensors of the same kinds and shapes
    stand in the same order. others: prefixes under which as much would be covered. stem_differs: all else is there. larger: parts of the
    encoder have more layers in the file.
    """

    covered: int
    wanted: int
    numbers: int
    all_numbers: int
    prefix: str
    by_order: bool
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unused: tuple[str, ...]
    others: tuple[str, ...] = ()
    stem_differs: bool = False
    larger: bool = False

    @property
    def share(self) -> float:
        """Of the encoder's tensors, those that are covered, 0 to 1."""
        return self.covered / max(self.wanted, 1)

    def sentence(self) -> str:
        """The account in words."""
        start = f' under "{self.prefix}"' if self.prefix else ""
        order = ", by their order, because the names are others" if self.by_order else ""
        words = (
            f"{self.covered} of {self.wanted} tensors of the encoder ({self.numbers:,} of {self.all_numbers:,} numbers) "
            f"are covered{start}{order}; {len(self.unused)} others in the file are not used"
        )
        if self.unused:
            words += f" ({_some(self.unused)})"
        if self.larger:
            words += "; the file's network is larger: its layers were not trained to do without those"
        for kind, names in (
            ("missing", self.missing),
            ("of another shape", self.misshapen),
            ("as many fit under", self.others),
        ):
            if names:
                words += f"; {kind}: {_some(names)}"
        return words


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)


def start_from(net: nn.Module, described: EncoderConfig, place: str, least: float = 1.0) -> Coverage | None:
    """Start a net from the encoder weights of a run or encoder folder, and nothing else of it, or from a file of weights; in place.

    least: the share of the net's tensors that a file must cover. Of a folder of ours, all; there is no account then.

    Raises:
        UsageError: no encoder there, another one, or too little of it. DataError: a file that cannot be used.
    """
    path = Path(place)
    if path.is_file():
        return fit_weights(net, read_weights(path), least=least, told=f"weights_from: {place}: ")
    if not path.exists():
        raise UsageError(f"weights_from: there is no file of weights and no run or encoder folder at {place}")
    own = described.architecture.startswith("custom:")
    stored, config = load_encoder(place, into=copy.deepcopy(net) if own else None)
    for name in ("architecture", "stem", "in_channels", "depth"):
        if getattr(config, name) != getattr(described, name):
            raise UsageError(
                f"weights_from: the encoder in {place} has {name} {getattr(config, name)} and this run's has {getattr(described, name)}; "
                "wanted the same encoder"
            )
    try:
        net.load_state_dict(stored.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"weights_from: the encoder in {place} was made for {config.size} pixels and this run's for {described.size}, which changes "
            f"its weights ({str(error).splitlines()[-1].strip()[:200]}); wanted --size {config.size}"
        ) from None
    return None


def fit_weights(net: nn.Module, tensors: Mapping[str, Tensor], *, least: float = 1.0, told: str = "") -> Coverage:
    """Load into a network what fits by name and shape, whatever stands in front of the names; in place, or not at all.

    Of several networks in one file (an online and a target one) the first with the greatest coverage is taken, but a teacher before
    its student. Where names cover less than the tensors' order does (an encoder cut into a Sequential, another library's names), the
    order is taken: kinds and shapes must then be the same one after the other, save that of the first convolution. least: the share
    of the network's tensors that must be covered. told: what stands in front of an error.

    Raises:
        UsageError: less of the network is covered. DataError: weights that are not finite.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> fit_weights(net, {"state_dict.module.encoder.weight": torch.ones(1, 2), "module.bias": torch.ones(1)}, least=0.5).covered
        1
    """
    if not 0.0 < least <= 1.0:
        raise UsageError(f"weights_coverage is {least:g}; wanted a share of the encoder's tensors, above 0 and at most 1")
    own = net.state_dict()
    plain = {_unwrapped(name): value for name, value in tensors.items()}
    prefix, pairs, others = _by_name(own, plain)
    found, ordered = _by_order(own, plain)
    by_order = len(_fitting(own, plain, ordered)) > len(_fitting(own, plain, pairs))
    if by_order:
        prefix, pairs, others = found, ordered, []
    coverage = _account(own, plain, prefix, pairs, by_order, others)
    _check_share(coverage, least, told)
    fits = _fitting(own, plain, pairs)
    for name in fits.values():
        if plain[name].is_floating_point() and not bool(plain[name].isfinite().all()):
            raise DataError(f"{told}{name} holds numbers that are not finite; wanted the weights of a training that went well")
    with torch.no_grad():
        for key, name in fits.items():
            own[key].copy_(plain[name])
        for key in own:
            if key.endswith(_COUNTER) and not by_order and prefix + key in plain:
                own[key].copy_(plain[prefix + key])
    return coverage


def _check_share(coverage: Coverage, least: float, told: str = "") -> None:
    """Whether at least this share of an encoder is covered.

    Raises:
        UsageError: it is not, with what would help.
    """
    if coverage.covered and coverage.share >= least:
        return
    wanted = "all of them" if least == 1.0 else f"{least:g} of them or more"
    advice = "the encoder, its stem or the file is another one"
    if coverage.stem_differs:
        advice = "the file has another stem, which --stem standard or --stem small may give"
    if coverage.covered:
        enough = math.floor(100 * coverage.share) / 100 or 0.001
        advice += f"; if a part is meant, --weights-coverage {enough:g} takes it, and the rest starts fresh"
    raise UsageError(f"{told}{coverage.sentence()}; wanted {wanted}: {advice}")


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _wanted(own: Mapping[str, Tensor]) -> list[str]:
    return [name for name in own if not name.endswith(_COUNTER)]


def _fitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], pairs: Mapping[str, str]) -> dict[str, str]:
    return {key: name for key, name in pairs.items() if tensors[name].shape == own[key].shape}


def _by_name(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, str], list[str]]:
    """(prefix, the file's name for each of ours, prefixes that would do as well)."""
    wanted = set(_wanted(own))
    score: dict[str, list[int]] = {}
    for name, value in tensors.items():
        at = 0
        while at >= 0:  # every place where a prefix may end
            key = name[at:]
            if key in wanted:
                one = score.setdefault(name[:at], [0, 0])
                one[0] += value.shape == own[key].shape
                one[1] += 1
            dot = name.find(".", at)
            at = dot + 1 if dot >= 0 else -1
    if not score:
        return "", {}, []
    best = max(score.values())
    as_good = [prefix for prefix, one in score.items() if one == best]
    prefix = next((one for one in as_good if one.startswith("teacher.")), as_good[0])
    pairs = {key: prefix + key for key in _wanted(own) if prefix + key in tensors}
    return prefix, pairs, [one for one in as_good if one != prefix]


def _by_order(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """(prefix, the file's name for each of ours) where what stands under a prefix begins with our tensors; no pairs where none does."""
    wanted = _wanted(own)
    if len(wanted) < LEAST_IN_ORDER:
        return "", {}
    names: dict[str, list[str]] = {"": []}
    for name in tensors:
        if name.endswith(_COUNTER):
            continue
        names[""].append(name)
        for at, sign in enumerate(name):
            if sign == ".":
                names.setdefault(name[: at + 1], []).append(name)

    def same(key: str, name: str, first: bool) -> bool:
        ours, theirs = own[key].shape, tensors[name].shape
        return key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1] and (ours == theirs or (first and len(ours) == len(theirs)))

    for prefix, there in names.items():
        if len(there) >= len(wanted) and all(
            same(key, name, k == 0) for k, (key, name) in enumerate(zip(wanted, there, strict=False))
        ):
            return prefix, dict(zip(wanted, there, strict=False))
    return "", {}


def _account(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    prefix: str,
    pairs: Mapping[str, str],
    by_order: bool,
    others: list[str],
) -> Coverage:
    wanted, fits = _wanted(own), _fitting(own, tensors, pairs)

    def count(names: Any) -> int:
        return sum(own[name].numel() for name in names)

    used = set(fits.values())
    unused = tuple(name for name in tensors if not name.endswith(_COUNTER) and name not in used)
    parts = tuple({f"{prefix}{key.split('.')[0]}." for key in wanted if "." in key})
    left = [key for key in wanted if key not in fits]
    kernels = [(tensors[pairs[key]].shape, own[key].shape) for key in left if key in pairs]
    return Coverage(
        covered=len(fits),
        wanted=len(wanted),
        numbers=count(fits),
        all_numbers=count(wanted),
        prefix=prefix.removesuffix("."),
        by_order=by_order,
        missing=tuple(key for key in wanted if key not in pairs),
        misshapen=tuple(
            f"{key} {list(tensors[name].shape)} for {list(own[key].shape)}" for key, name in pairs.items() if key not in fits
        ),
        unused=unused,
        others=tuple(f'"{one.removesuffix(".")}"' for one in others),
        stem_differs=left == wanted[:1] and any(len(a) == len(b) == 4 and a[:2] == b[:2] for a, b in kernels),
        larger=not left and not by_order and any(name.startswith(parts) for name in unused),
    )
