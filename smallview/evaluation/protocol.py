"""Named protocols: from frozen features to rows, with both floors under the same protocol and everything said.

Evaluation sees an encoder and labeled pictures; it never touches the encoder's weights, and checks that it did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smallview.errors import DataError, SmallviewError, UsageError, suggest
from smallview.evaluation.features import (
    Judged,
    extract,
    pixel_side,
    raw_pixels,
    recalibrate,
    untrained_like,
    view_text,
    weights_hash,
)
from smallview.evaluation.knn import knn_predict
from smallview.evaluation.linear import PENALTIES, fit_linear
from smallview.networks.encoders import build_encoder
from smallview.records import Pictures, Row
from smallview.seeds import derive

TEMPERATURE = 0.07
KS = (20, 200)
PROTOCOLS = ("knn", "linear")


@dataclass(frozen=True)
class Labeled:
    """Pictures and their classes: labels int64 [N], 0 to K - 1."""

    pictures: Pictures
    labels: npt.NDArray[np.int64]
    name: str


@dataclass(frozen=True)
class Figure:
    """What a protocol measured: a metric's name, its value in percent, and the settings it chose."""

    protocol: str
    metric: str
    value: float
    settings: dict[str, float]


def match_classes(train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> dict[int, int] | None:
    """Test class number -> train class number by name; None when the numbers already agree.

    Raises:
        DataError: test classes that the training part does not have.
    """
    if train is None or test is None or train == test:
        return None
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise DataError(
            f"--test has classes that --train has not: {', '.join(unknown[:5])}; wanted the same class folders in both"
        )
    return {i: train.index(name) for i, name in enumerate(test)}


def choose_protocols(names: str | Iterable[str]) -> list[str]:
    """Protocol names from a comma-separated string or a sequence.

    Raises:
        UsageError: an unknown name, or none.

    Example:
        >>> choose_protocols("knn,linear")
        ['knn', 'linear']
    """
    chosen = [n.strip() for n in (names.split(",") if isinstance(names, str) else names) if n.strip()]
    if not chosen:
        raise UsageError(f"no protocol is named; wanted some of {', '.join(PROTOCOLS)}")
    for name in chosen:
        if name not in PROTOCOLS:
            raise UsageError(f'no protocol is called "{name}"{suggest(name, PROTOCOLS)}')
    return chosen


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return round(100.0 * float((predicted == labels).double().mean()), 4)


def measure(protocol: str, x: Tensor, y: Tensor, z: Tensor, t: Tensor, classes: int, seed: int) -> list[Figure]:
    """Run one protocol on features x [N, F] with labels y [N], tested on z [Q, F] with labels t [Q]."""
    if protocol == "knn":
        return [
            Figure(
                f"knn k={min(k, len(x))} cosine, votes exp(similarity/{TEMPERATURE})",
                f"knn{k} top-1 %",
                _accuracy(knn_predict(x, y, z, k=k, temperature=TEMPERATURE, classes=classes), t),
                {"k": min(k, len(x)), "temperature": TEMPERATURE},
            )
            for k in KS
        ]
    probe = fit_linear(x, y, classes, seed=seed)
    text = (
        "linear: logistic regression by L-BFGS (200 steps) on features standardised by the training part, "
        f"L2 penalty of {PENALTIES} chosen on a held-out tenth of the training part (seed {seed}), refit on all of it"
    )
    return [Figure(text, "linear top-1 %", _accuracy(probe.predict(z), t), {"penalty": probe.penalty})]


def untrained(judged: Judged, train: Pictures, seed: int) -> nn.Module:
    """The same architecture with fresh weights and BatchNorm statistics of the training pictures: the second floor."""
    config = judged.config
    if config.architecture.startswith("custom:"):
        fresh = untrained_like(judged.encoder, seed)
    else:
        fresh, _ = build_encoder(
            config.architecture,
            in_channels=config.in_channels,
            size=config.size,
            stem=config.stem,
            seed=derive(seed, "encoder"),
        )
    return recalibrate(fresh, config, train)


def judge(
    judged: Judged,
    train: Labeled,
    test: Labeled,
    protocols: Iterable[str] = PROTOCOLS,
    *,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    threads: int = 1,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Rows for every protocol: the encoder's figure beside raw pixels and the untrained encoder under the same protocol.

    Raises:
        DataError: no labels, fewer than two classes, or channels that differ from the encoder's.
        SmallviewError: the encoder's weights changed while it was judged.
    """
    chosen = choose_protocols(protocols)
    say = say or (lambda message: None)
    config = judged.config
    for part in (train, test):
        if part.pictures.channels != config.in_channels:
            raise DataError(f"{part.name} has {part.pictures.channels} channels; the encoder takes {config.in_channels}")
    classes = int(train.labels.max()) + 1
    if len(np.unique(train.labels)) < 2:
        raise DataError(f"{train.name} has {len(np.unique(train.labels))} class; wanted two or more")
    if int(test.labels.max()) >= classes or int(min(train.labels.min(), test.labels.min())) < 0:
        raise DataError(f"{test.name} has labels up to {int(test.labels.max())}; the training part has 0 to {classes - 1}")
    y, t = torch.from_numpy(train.labels).long(), torch.from_numpy(test.labels).long()
    before = weights_hash(judged.encoder)
    started = time.monotonic()
    judged.encoder.to(device, memory_format=memory_format)  # type: ignore[call-overload]

    def both(net: nn.Module) -> tuple[Tensor, Tensor]:
        def features(part: Labeled) -> Tensor:
            return extract(net, config, part.pictures, device=device, memory_format=memory_format, threads=threads)

        return features(train), features(test)

    say(f"features of {len(train.pictures):,} training and {len(test.pictures):,} test pictures")
    x, z = both(judged.encoder)
    seconds = time.monotonic() - started
    broken = int((~torch.isfinite(torch.cat([x, z])).all(1)).sum())
    if broken:
        raise SmallviewError(
            f"{judged.name} gives features that are not finite for {broken:,} of {len(x) + len(z):,} pictures; "
            "wanted numbers: the training diverged, or the encoder is damaged"
        )
    fresh = untrained(judged, train.pictures, judged.seed)
    fresh.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    side = pixel_side(config.size, train.pictures, test.pictures)
    contestants = {
        "encoder": (x, z),
        "pixels": (raw_pixels(train.pictures, side), raw_pixels(test.pictures, side)),
        "untrained": both(fresh),
    }
    rows = []
    seen = view_text(test.pictures, config.size)
    for name in chosen:
        figures = {}
        for contestant, (a, b) in contestants.items():
            say(f"{name}: {contestant}")
            figures[contestant] = measure(name, a, y, b, t, classes, judged.seed)
        for i, figure in enumerate(figures["encoder"]):
            pixels, fresh_figure = figures["pixels"][i], figures["untrained"][i]
            text = (
                f"{figure.protocol}; frozen backbone features ({x.shape[1]}), last epoch, {seen}, no augmentation; "
                f"train {train.name} (n={len(y)}), test {test.name} (n={len(t)}), {classes} classes; floors under the same protocol: "
                f"raw pixels at most 32 px ({contestants['pixels'][0].shape[1]} numbers), untrained encoder with BatchNorm statistics "
                f"of the training part"
            )
            rows.append(
                Row(
                    protocol=text,
                    metric=figure.metric,
                    value=figure.value,
                    floor_pixels=pixels.value,
                    floor_untrained=fresh_figure.value,
                    seed=judged.seed,
                    n_train=len(y),
                    n_test=len(t),
                    settings={
                        **figure.settings,
                        **{f"pixels_{k}": v for k, v in pixels.settings.items() if v != figure.settings[k]},
                        **{f"untrained_{k}": v for k, v in fresh_figure.settings.items() if v != figure.settings[k]},
                        "encoder": judged.name,
                        "encoder_sha256": before,
                    },
                    cost={**judged.cost, "feature_seconds": round(seconds, 2)},
                )
            )
    if weights_hash(judged.encoder) != before:
        raise SmallviewError(
            f"the weights of {judged.name} changed while it was judged; no row is written: give evaluate a frozen encoder"
        )
    return rows
