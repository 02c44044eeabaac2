"""From an encoder and labeled pictures to rows: both floors under the same protocol, everything said, nothing moved.

Evaluation sees an encoder and labeled pictures; it never touches the encoder's weights, and checks that it did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from smallview.errors import DataError, SmallviewError
from smallview.evaluation.bench import Bench, Contestant, Labeled, pixels
from smallview.evaluation.cache import FeatureCache
from smallview.evaluation.features import Judged, fresh_encoder, recalibrate, view_text, weights_hash
from smallview.evaluation.leakage import Leaks, find_leaks
from smallview.evaluation.metrics import Figure
from smallview.evaluation.protocols import Protocols, choose_protocols
from smallview.records import Pictures, Row
from smallview.settings import to_tables

MOST_NAMED = 5


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
            f"--test has {len(unknown)} class{'es' * (len(unknown) > 1)} that --train has not: {', '.join(unknown[:MOST_NAMED])}; "
            f"--train has {', '.join(train[:MOST_NAMED])}{', ...' * (len(train) > MOST_NAMED)}; wanted the same class folders in both"
        )
    return {i: train.index(name) for i, name in enumerate(test)}


def untrained(judged: Judged, train: Pictures, seed: int) -> nn.Module:
    """The same architecture with fresh weights and BatchNorm statistics of the training pictures: the second floor."""
    return recalibrate(fresh_encoder(judged.encoder, judged.config, seed), judged.config, train)


def check_parts(judged: Judged, train: Labeled, test: Labeled) -> None:
    """Whether these two parts can judge this encoder.

    Raises:
        DataError: channels that differ from the encoder's, one class only, targets of two kinds, or a test class nobody can know.
    """
    for part in (train, test):
        if part.pictures.channels != judged.config.in_channels:
            raise DataError(f"{part.name} has {part.pictures.channels} channels; the encoder takes {judged.config.in_channels}")
        if part.labels is not None and len(part.labels) != len(part.pictures):
            raise DataError(
                f"{part.name} has {len(part.pictures):,} pictures and labels for {len(part.labels):,}; wanted one each"
            )
    if train.labels is None or test.labels is None:
        return
    if train.kind != test.kind:
        raise DataError(
            f"{train.name} has {train.kind} and {test.name} has {test.kind}; wanted the same kind of target in both"
        )
    if train.kind != "classes":
        if train.labels.shape[1:] != test.labels.shape[1:]:
            raise DataError(
                f"{train.name} has {train.labels.shape[1]} {train.kind} a picture and {test.name} has {test.labels.shape[1]}; "
                "wanted equally many"
            )
        if train.kind == "numbers" and not (np.isfinite(train.labels).all() and np.isfinite(test.labels).all()):
            raise DataError("some of the numbers to predict are not finite; wanted a number for every picture, or leave it out")
        return
    classes = int(train.labels.max()) + 1
    if len(np.unique(train.labels)) < 2:
        raise DataError(f"{train.name} has {len(np.unique(train.labels))} class; wanted two or more")
    for part in (train, test):
        missing = int((part.labels < 0).sum()) if part.labels is not None else 0
        if missing:
            raise DataError(
                f"{part.name} has {missing:,} picture{'s' * (missing > 1)} with a label under 0, which is how a missing label is "
                "often written; wanted classes from 0 on: leave those pictures out"
            )
    unknown = sorted(set(np.unique(test.labels).tolist()) - set(np.unique(train.labels).tolist()))
    if unknown:
        raise DataError(
            f"{test.name} has labels up to {int(test.labels.max())} and {train.name} has 0 to {classes - 1}; no training picture "
            f"has {', '.join(map(str, unknown[:MOST_NAMED]))}: wanted training pictures of every class"
        )


def judge(
    judged: Judged,
    train: Labeled,
    test: Labeled,
    protocols: Iterable[str] = ("knn", "linear"),
    *,
    values: Protocols | None = None,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    threads: int = 1,
    cache: FeatureCache | None = None,
    shifted: Mapping[str, Labeled] | None = None,
    leaks: bool = True,
    floors: bool = True,
    on_leaks: Callable[[list[dict[str, Any]], str], str | None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Rows for every protocol: the encoder's figure beside raw pixels and the untrained encoder under the same protocol.

    values: the protocols' settings. shifted: further test parts of the same classes, for protocols that take them. leaks: look for
    test pictures that the training part has as well; on_leaks: told all of them, gives the file where they are. cache: where features
    are kept between calls. floors: whether the two floors are measured, which only a search among encoders can spare.

    Raises:
        DataError: parts that cannot judge this encoder. SmallviewError: the encoder's weights changed while it was judged, or it
            gives features that are not finite.
    """
    chosen, values = choose_protocols(protocols), values or Protocols()
    say = say or (lambda message: None)
    check_parts(judged, train, test)
    labeled = train.labels is not None and test.labels is not None
    for name in chosen:
        needed = getattr(values, name).kinds
        if needed and not labeled:
            part = train if train.labels is None else test
            raise DataError(
                f"{part.name} has no labels and {name} needs them; wanted class folders, (images, labels), or an .npz with labels; "
                "without labels there is --protocols label_free"
            )
        if needed and train.kind not in needed:
            raise DataError(f"{name} is for {' or '.join(needed)} and {train.name} has {train.kind}; leave {name} out")
    before = weights_hash(judged.encoder)
    bench = Bench(
        *(train, test, judged.seed, device, memory_format, threads),
        cache=cache or FeatureCache(None),
        say=say,
        shifted=shifted or {},
        train_size=judged.config.size,
    )
    started = time.monotonic()
    encoder = Contestant("encoder", judged.encoder, judged.config, before, judged.projector, judged.training)
    x, z = bench.features(encoder, train), bench.features(encoder, test)
    seconds = time.monotonic() - started
    for part, found in ((train, x), (test, z)):
        broken = sum(int((~torch.isfinite(piece).all(1)).sum()) for piece in found.split(4096))
        if broken:
            raise SmallviewError(
                f"{judged.name} gives features that are not finite for {broken:,} of {len(found):,} pictures of {part.name}; "
                "wanted numbers: the training diverged, or the encoder is damaged"
            )
    contestants = {"encoder": encoder}
    if floors:
        contestants["pixels"] = pixels(judged.config, train, test)
        fresh = untrained(judged, train.pictures, judged.seed)
        contestants["untrained"] = Contestant.of("untrained", fresh, judged.config)
    found_leaks = None
    if leaks:
        floor = pixels(judged.config, train, test)
        found_leaks = find_leaks(train, test, bench.features(floor, train), bench.features(floor, test), x, z)
    if found_leaks is not None and found_leaks.count:
        place = None if on_leaks is None else on_leaks(list(found_leaks.records()), test.name)
        say(found_leaks.sentence(train.name, test.name) + (f"; all are in {place}" if place else ""))
    rows = []
    for name in chosen:
        value = getattr(values, name)
        taken: dict[str, list[Figure]] = {}
        clock = time.monotonic()
        for contestant in (name for name in value.contestants if name in contestants):
            taken[contestant] = _measured(value, name, contestants[contestant], bench)
        spent = time.monotonic() - clock
        rows += [
            _row(
                figure,
                judged,
                bench,
                {"name": name, "values": to_tables(value)},
                taken,
                before,
                found_leaks,
                {"feature_seconds": round(seconds, 2), "protocol_seconds": round(spent, 2)},
            )
            for figure in taken["encoder"]
        ]
    if weights_hash(judged.encoder) != before:
        raise SmallviewError(
            f"the weights of {judged.name} changed while it was judged; no row is written: give evaluate a frozen encoder"
        )
    return rows


def _measured(value: Any, name: str, who: Contestant, bench: Bench) -> list[Figure]:
    """The figures of one contestant; a floor's are kept, for they are the same for every encoder beside it."""

    def make() -> list[Figure]:
        bench.say(f"{name}: {who.name}")
        found: list[Figure] = value.measure(who, bench)
        return found

    if who.name == "encoder":
        return make()
    return bench.cache.figures(bench.floor_key(who, f"{name} {value!r}"), make)


def _floor(figure: Figure, floors: list[Figure] | None) -> Figure | None:
    """The figure of a floor that stands beside this one: of the same metric, or the only one that it has."""
    same = [floor for floor in floors or [] if floor.metric == figure.metric]
    return same[0] if same else floors[0] if floors and len(floors) == 1 else None


def _row(
    figure: Figure,
    judged: Judged,
    bench: Bench,
    protocol: dict[str, Any],
    taken: dict[str, list[Figure]],
    weights: str,
    leaks: Leaks | None,
    cost: dict[str, float],
) -> Row:
    train, test = bench.train, bench.test
    plain, fresh = _floor(figure, taken.get("pixels")), _floor(figure, taken.get("untrained"))
    words = []
    if plain is not None:
        words.append(f"raw pixels at most 32 px ({pixels(judged.config, train, test).config.features} numbers)")
    if fresh is not None:
        words.append("untrained encoder with BatchNorm statistics of the training part")
    floors = f"; floors under the same protocol: {', '.join(words)}" if words else ""
    classes = f", {bench.classes} {train.kind}" if train.labels is not None else ", no labels"
    text = (
        f"{figure.protocol}; last epoch, {view_text(test.pictures, judged.config.size)}; train {train.name} (n={len(train)}), "
        f"test {test.name} (n={len(test)}){classes}{floors}"
    )
    other = {
        f"{who}_{k}": v
        for who, floor in (("pixels", plain), ("untrained", fresh))
        if floor is not None
        for k, v in floor.settings.items()
        if v != figure.settings.get(k)
    }
    return Row(
        protocol=text,
        metric=figure.metric,
        value=figure.value,
        floor_pixels=None if plain is None else plain.value,
        floor_untrained=None if fresh is None else fresh.value,
        seed=judged.seed,
        n_train=len(train),
        n_test=len(test),
        interval=None if figure.interval is None else round(figure.interval, 4),
        settings={
            **figure.settings,
            **other,
            "encoder": judged.name,
            "encoder_sha256": weights,
            "protocol": protocol["name"],
            "protocol_settings": protocol["values"],
            "train": train.name,
            "train_sha256": train.hash,
            "test": test.name,
            "test_sha256": test.hash,
            **({} if leaks is None else {"near_duplicates": leaks.count}),
        },
        cost={**judged.cost, **cost, "parameters": sum(p.numel() for p in judged.encoder.parameters())},
    )
