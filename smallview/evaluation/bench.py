"""What a protocol works on: labeled pictures, the encoders that stand side by side, and their features, extracted once.

Legend: N pictures, F features, C channels, S the side of a view, K classes or labels, D numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.evaluation.cache import FeatureCache
from smallview.evaluation.features import Training, extract, pixel_side, view_text, weights_hash
from smallview.evaluation.metrics import Kind
from smallview.networks.encoders import EncoderConfig
from smallview.networks.modes import evaluating
from smallview.networks.stages import pooled_stages
from smallview.records import Pictures
from smallview.views.making import centre_views


@dataclass(frozen=True, eq=False)
class Labeled:
    """Pictures and their targets: classes int64 [N] from 0 to K - 1, several labels bool [N, K], numbers float [N, D], or None.

    classes: their names, where they have some. names: what each picture is called. masks: a class for each pixel uint8 [H, W], 255 where
    it is not known, one mask a picture; or None.
    """

    pictures: Pictures
    labels: npt.NDArray[Any] | None
    name: str
    classes: tuple[str, ...] | None = None
    names: Any = None
    masks: Sequence[npt.NDArray[np.uint8]] | None = None

    @property
    def kind(self) -> Kind:
        """Which sort of target the pictures have."""
        assert self.labels is not None
        return {"b": "labels", "f": "numbers"}.get(self.labels.dtype.kind, "classes")  # type: ignore[return-value]

    @property
    def targets(self) -> Tensor:
        """The targets as a tensor: int64 [N], bool [N, K] or float32 [N, D]."""
        assert self.labels is not None
        kind = self.kind
        return torch.from_numpy(np.asarray(self.labels, {"classes": np.int64, "labels": np.bool_, "numbers": np.float32}[kind]))

    @property
    def hash(self) -> str:
        """What tells these pictures from all others; empty where nothing does."""
        return str(getattr(self.pictures, "hash", ""))

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True, eq=False)
class Contestant:
    """One of those that stand side by side: `encoder`, or the floors `pixels` and `untrained`; [B, C, S, S] -> [B, F].

    hash: of its weights. projector and training: where they are known.
    """

    name: str
    module: nn.Module
    config: EncoderConfig
    hash: str = ""
    projector: nn.Module | None = None
    training: Training | None = None

    @classmethod
    def of(cls, name: str, module: nn.Module, config: EncoderConfig) -> Contestant:
        """A contestant with the hash of its weights as they are now."""
        return cls(name, module, config, weights_hash(module))


def pixels(config: EncoderConfig, *parts: Labeled) -> Contestant:
    """The floor without a network: the centre view's own pixels, at most 32 x 32 and never enlarged."""
    side, channels = pixel_side(config.size, *(part.pictures for part in parts)), config.in_channels
    plain = EncoderConfig("pixels", "standard", channels, side, channels * side * side, (0.0,) * channels, (1.0,) * channels)
    return Contestant("pixels", nn.Flatten(), plain, "pixels")


@dataclass(eq=False)
class Bench:
    """One evaluation: its two parts, where it computes, and the features that its protocols share.

    device, memory_format, threads: where and how networks run. say: told what takes time. shifted: test parts of the same classes
    whose pictures differ in some way, by name. train_size: the side of the views that the encoder was trained for. made: parts that
    protocols keep for the next contestant.
    """

    train: Labeled
    test: Labeled
    seed: int = 0
    device: torch.device | str = "cpu"
    memory_format: torch.memory_format = torch.contiguous_format
    threads: int = 1
    cache: FeatureCache = field(default_factory=lambda: FeatureCache(None))
    say: Callable[[str], None] = lambda message: None
    shifted: Mapping[str, Labeled] = field(default_factory=dict)
    train_size: int = 32
    made: dict[str, Labeled] = field(default_factory=dict)
    _held: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _stages: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """K: classes or labels of the training part, or numbers a picture."""
        targets = self.train.targets
        return int(targets.max()) + 1 if self.train.kind == "classes" else int(targets.shape[1])

    def features(self, who: Contestant, part: Labeled, keep: bool = True) -> Tensor:
        """Features float32 [N, F] of a part's centre views; without `keep` they are not held in memory."""
        held = (who.name + who.hash, id(part))
        if held in self._held:
            return self._held[held]

        def fill(out: Tensor) -> None:
            self.say(f"{who.name}: features of {len(part):,} pictures of {part.name}")
            who.module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
            extract(
                *(who.module, who.config, part.pictures),
                device=self.device,
                memory_format=self.memory_format,
                threads=self.threads,
                into=out,
            )

        found = self.cache.get(self._key(who, part), (len(part), who.config.features), fill)
        if keep:
            self._held[held] = found
        return found

    def stages(self, who: Contestant, part: Labeled) -> dict[str, Tensor]:
        """What every stage makes of a part's centre views, averaged over places: {name: float32 [N, W]}, from one pass."""
        held = (who.name + who.hash, id(part))
        if held not in self._stages:
            who.module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
            projector = None if who.projector is None else who.projector.to(self.device)
            run, config = pooled_stages(who.module, projector), who.config
            found: dict[str, list[Tensor]] = {}
            self.say(f"{who.name}: all stages of {len(part):,} pictures of {part.name}")
            with evaluating(who.module), evaluating(projector or nn.Identity()):
                for views in centre_views(part.pictures, config.size, config.mean, config.std, threads=self.threads):
                    made = run(views.to(self.device).contiguous(memory_format=self.memory_format))
                    for name, value in made.items():
                        found.setdefault(name, []).append(value.cpu())
            self._stages[held] = {name: torch.cat(values) for name, values in found.items()}
        return self._stages[held]

    def floor_key(self, who: Contestant, protocol: str) -> str | None:
        """All that a floor's figures depend on; None where the pictures cannot be told from others."""
        parts = [self.train, self.test, *self.shifted.values()]
        keys = [self._key(who, part) for part in parts]
        if any(key is None for key in keys):
            return None
        targets = hashlib.sha256()
        for part in parts:
            targets.update(part.name.encode())
            if part.labels is not None:
                targets.update(np.ascontiguousarray(part.labels).tobytes())
            for mask in part.masks or ():
                targets.update(np.ascontiguousarray(mask).tobytes())
        said = f"{protocol} {list(self.shifted)} {self.train_size} {self.seed} {self.threads}"
        return f"floor 1: {said}; {targets.hexdigest()}; {keys}"

    def _key(self, who: Contestant, part: Labeled) -> str | None:
        """All that features depend on; None where the pictures cannot be told from others."""
        if not part.hash or not who.hash:
            return None
        config = who.config
        feeding = f"{config.size} {view_text(part.pictures, config.size)} {config.mean} {config.std}"
        channels = f"{part.pictures.channels} channels"
        where = f"{torch.device(self.device).type} {self.memory_format} torch {torch.__version__}"
        return f"features 1: {who.hash} of {config.architecture} on {part.hash}, {channels}, {feeding}; {where}"
