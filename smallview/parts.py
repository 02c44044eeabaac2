"""What a run is made of once its settings are known: networks, optimizer, state and views, all from the seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smallview import collectives
from smallview.config import RunConfig
from smallview.data.loading import batches, channel_statistics, share
from smallview.data.pack import Pack
from smallview.errors import UsageError
from smallview.evaluation.features import weights_hash
from smallview.networks.batch_norm import synchronize
from smallview.networks.encoders import EncoderConfig, build_encoder, describe
from smallview.networks.foreign import Coverage, start_from
from smallview.networks.freezing import freeze
from smallview.networks.modes import evaluating
from smallview.networks.online_target import Branch, Networks
from smallview.networks.patches import OnPatches
from smallview.objectives.negatives import Cut
from smallview.optimizers import learning_rate
from smallview.records import Batch, Foregrounds, ViewBatch
from smallview.schedules import SPAN, Schedule
from smallview.seeds import derive, generator
from smallview.training.cost import forget_peak, training_flops
from smallview.training.handover import Ended, take_over_state
from smallview.training.loop import train_step
from smallview.training.memory import passes_for
from smallview.training.precision import Precision, choose_device, cpu_flags, fixed_rule, probe, starved
from smallview.training.prefetch import ahead
from smallview.training.state import TrainState
from smallview.views.making import ViewMaker, centre_views
from smallview.views.streams import OnStream
from smallview.views.view import View, pixels

# views of so many steps wait; one more is being made, one is in use
DEPTH = 2
SLOTS = DEPTH + 2
MOST_NAMED = 3
PROBE_EPOCHS = (2**31 - 1, 2**31 - 2)  # no training comes to them: the probe's views are nobody else's
Say = Callable[[str], None]


@dataclass
class Parts:
    """What a run is made of once its settings are known."""

    config: RunConfig
    pack: Pack
    state: TrainState
    encoder_config: EncoderConfig
    precision: Precision
    device: torch.device
    maker: ViewMaker
    weights: str | None = None  # SHA-256 of those that training started from
    covered: Coverage | None = None  # how far a file of others gave them
    part: float = 1.0  # of all the pictures, that is trained on

    def feed(
        self, start: int, stop: int, total: int | None = None, say: Say | None = None
    ) -> Iterator[tuple[Batch, tuple[ViewBatch, ...]]]:
        """(Batch, views) of the steps start to stop - 1 of `total`, views made ahead: of several processes, each its own part.

        say: told when views do not come for a minute, of which pictures.
        """
        config = self.config
        begin, end = config.span
        order = (
            replace(batch, progress=begin + (end - begin) * batch.progress)
            for batch in batches(len(self.pack), config.batch_size, config.seed, start, stop, total_steps=total)
        )

        def on_wait(batch: Batch, seconds: float) -> None:
            names = [self.pack.names[int(i)] for i in batch.index[:MOST_NAMED]]
            if say is not None:
                say(
                    f"no batch for {seconds:.0f} s; step {batch.step + 1:,} reads {', '.join(names)}, ... from {self.pack.name}"
                )

        return views_ahead(self.maker, config.batch_size, order, on_wait)

    def probe_views(self) -> tuple[Tensor, Tensor]:
        """Two views of the fixed pictures that the watch looks at, [n, C, S, S] each: half a batch, 16 to 64 of them.

        One as the online network sees them, one as the target does; of one size, else the same view twice.
        """
        n = min(len(self.pack), max(16, min(64, self.config.batch_size // 2)))
        index = np.sort(generator(self.config.seed, "watch").choice(len(self.pack), n, replace=False)).astype(np.int64)
        views, again = (self.maker(Batch(index, epoch, step=0, progress=1.0)) for epoch in PROBE_EPOCHS)
        first = next(v for v, view in enumerate(views) if view.seen_by != "target")
        others = [v for v, view in enumerate(views) if view.seen_by != "online" and v != first]
        same = [v for v in others if views[v].images.shape == views[first].images.shape]
        pair = views[first].images, (views[same[0]] if same else again[first]).images
        one, two = (images.contiguous(memory_format=self.precision.memory_format).clone() for images in pair)
        return one, two

    def flops(self) -> float:
        """Floating-point operations of one picture in one step."""
        online = self.state.networks.online
        described = self.encoder_config
        return training_flops(
            self.config.method, online, self.state.networks.predictor, described.in_channels, self.config.size
        )

    def epochs_224(self, epochs: float) -> float | None:
        """Passes over all the pictures at 224 px with the whole encoder that so many of these, which may be over a part of them, would pay
        for; None where the encoder takes no pictures of 224 px, or only real ones.

        Source: how S3L's schedules are compared (Cao and Wu, 2021).
        """
        config, channels = self.config, self.encoder_config.in_channels
        own = self.state.networks.online.encoder
        cost = partial(training_flops, config.method, predictor=None, in_channels=channels)
        try:
            if config.depth is None:
                whole = copy.deepcopy(own).to("meta")
            else:
                with torch.device("meta"):
                    whole = build_encoder(config.encoder, in_channels=channels, size=config.size, stem=config.stem)[0]
            there = cost(online=Branch(whole, nn.Identity()), size=224)
            return epochs * self.part * cost(online=Branch(own, nn.Identity()), size=config.size) / there
        except (RuntimeError, AssertionError, ValueError):  # as encoders refuse a size, see count_features
            return None

    def memory(self) -> int:
        """Bytes that pictures and views take while training, whatever the number of pictures; memory-mapped files are not counted."""
        return self.pack.memory(self.config.batch_size, self.maker.threads) + self.maker.memory(self.config.batch_size, SLOTS)

    def lr(self) -> Schedule:
        """The learning rate of the run: up, then down within it."""
        return learning_rate(self.config.optimizer, self.config.batch_size)


def views_ahead(
    maker: ViewMaker, batch_size: int, order: Iterable[Batch], on_wait: Callable[[Batch, float], None] | None = None
) -> Generator[tuple[Batch, tuple[ViewBatch, ...]], None, None]:
    """(Batch, views) in order; a few steps' views are made before they are asked for, in a thread.

    on_wait: as in training/prefetch.py.
    """
    rank, world = collectives.rank(), collectives.world()
    on_stream = OnStream(maker, batch_size // world, SLOTS)

    def make(batch: Batch) -> tuple[tuple[ViewBatch, ...], Any]:
        return on_stream.make(share(batch, rank, world))

    with closing(ahead(make, order, DEPTH, on_wait=on_wait)) as made:
        for batch, views in made:
            yield batch, on_stream.take(views)


def build(
    config: RunConfig,
    pack: Pack,
    encoder: str | nn.Module | None,
    say: Say,
    foregrounds: Foregrounds | None = None,
    before: Ended | None = None,
    made_for: int | None = None,
) -> tuple[RunConfig, Parts]:
    """Networks, optimizer, state and views, all from the seed; layout and dtype by the rule, the record, or the probe.

    foregrounds: what stands in front in the pictures, where the method has views without background. before: the stage that this one
    takes over from, whose normalisation stays. made_for: the size of the pictures that the encoder will see in the end.
    """
    device = choose_device(config.device)
    forget_peak(device)  # of the stage or the recipe before
    torch.set_num_threads(config.threads)
    try:
        config.method.check_batch(config.batch_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if before is None and config.trains == "new":
        raise UsageError("trains is new and no stage stands before this training; wanted all, or --set stages.1.trains=new")
    for idle in config.method.idle():
        say(f"has no effect: {idle}")
    net, described = fresh_encoder(config, pack, encoder, made_for, None if before is None else before.encoder)
    weights, covered = None, None
    if config.weights_from is not None:
        covered = start_from(net, described, config.weights_from, config.weights_coverage)
        weights = weights_hash(net)
        told = "" if covered is None else f": {covered.sentence()}"
        say(f"the encoder starts from the weights in {config.weights_from}{told}")
    if config.stem == "auto" and described.stem == "small":
        say(
            f"{config.encoder} with the small-image stem: the final map of {config.size}-pixel views would be under 4x4 (--stem standard keeps it)"
        )
    if pack.channels != 3 and any(
        (view.jitter and (view.saturation or view.hue)) or view.grayscale for view in config.method.views
    ):
        say(f"pictures have {pack.channels} channel{'s' * (pack.channels != 1)}: saturation, hue and grayscale are left out")

    if config.execution == "graph" and device.type != "cuda":
        raise UsageError(f"execution is graph and the device {device}; wanted eager there, or --device cuda")
    if config.execution != "eager" and collectives.world() > 1:
        raise UsageError(
            f"execution is {config.execution} with {collectives.world()} processes, whose BatchNorm speaks to the others; wanted eager"
        )
    if collectives.world() > 1:
        leave_out_idle(net, described, say)

    def fresh(precision: Precision) -> TrainState:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "heads"))
            passes = passes_for(config.execution, config.memory, say)
            networks = Networks(copy.deepcopy(net), described.features, config.method.heads, config.method.target, passes)
        heads: list[str] = []
        if before is not None:
            new, heads = before.into(networks, described, derive(config.seed, "growth"), say)
            if config.trains == "new":
                new = [name for name in new if name in dict(networks.online.encoder.named_parameters())]
                if not new:
                    raise UsageError("trains is new and this stage adds nothing to the encoder; wanted a greater depth, or all")
                old = [name for name, _ in networks.online.encoder.named_parameters() if name not in set(new)]
                freeze(networks.online.encoder, old, config.batch_norm)
                if networks.target is not None:  # the same layers see the same statistics on either side
                    freeze(networks.target.encoder, old, config.batch_norm)
        synchronize(networks)
        precision.place(networks, device)
        bank = config.method.negatives.init(config.seed, config.method.heads.projector.out, device, cut)
        state = TrainState(networks, config.optimizer.build(networks, device), bank)
        if before is not None:
            for told in take_over_state(state, before.tensors, optimizer=config.span[0] > 0.0, heads=not heads):
                say(told)
        return state

    cut = patches_of(pack, config, described, device)
    maker = ViewMaker(
        *(pack, config.method.views, config.size, described.mean, described.std, config.seed, device),
        # on a CPU the cores are the network's; a GPU leaves them to decoding
        threads=1 if device.type == "cpu" else config.threads,
        foregrounds=foregrounds,
        mode="parity" if config.augmentation == "parity" else "fast",
    )
    rule = fixed_rule(net, device, cpu_flags())
    precision = rule
    if config.probe and config.steps is None:
        first = next(iter(batches(len(pack), config.batch_size, config.seed, 0, 1)))
        views = maker(replace(share(first, collectives.rank(), collectives.world()), progress=0.5))
        arms: dict[tuple[str, str], TrainState] = {}

        def step(arm: Precision) -> None:
            state = arms.setdefault((arm.layout, arm.dtype), fresh(arm))
            train_step(state, config.method, views, progress=0.5, lr=0.0, seed=config.seed, precision=arm, device=device)

        precision = probe(step, device)
        precision = Precision(*json.loads(collectives.tell(json.dumps(list(astuple(precision))))))
        say(precision.reason)
    layout = precision.layout if config.layout == "auto" or (config.probe and config.steps is None) else config.layout
    dtype = precision.dtype if config.dtype == "auto" or (config.probe and config.steps is None) else config.dtype
    if (layout, dtype) != (precision.layout, precision.dtype):
        precision = Precision(layout, dtype, "given")  # type: ignore[arg-type]
    least = min(pixels(view.size, config.size, progress) for view in config.method.views for progress in SPAN)
    if dtype == "bfloat16" and device.type == "cpu" and starved(net, pack.channels, least):
        dtype = "float32"
        reason = f"views of {least} px end in maps of one place, whose gradients are not to be trusted in bfloat16 on a CPU"
        precision = Precision(precision.layout, "float32", reason)
        say(f"float32: {reason}")
    config = replace(config, stem=described.stem, layout=layout, dtype=dtype)
    return config, Parts(config, pack, fresh(precision), described, precision, device, maker, weights, covered)


def fresh_encoder(
    config: RunConfig,
    pack: Pack,
    encoder: str | nn.Module | None,
    made_for: int | None = None,
    before: EncoderConfig | None = None,
) -> tuple[nn.Module, EncoderConfig]:
    """The encoder that a run of these settings begins with, and its description with the normalisation of these pictures, or of `before`.

    Raises:
        UsageError: a module where none was passed, or one with a depth.
    """
    if isinstance(encoder, nn.Module):
        if config.depth is not None:
            raise UsageError(
                f"depth is {config.depth} and the encoder is a module of your own; wanted a named encoder, or the module cut"
            )
        net: nn.Module = copy.deepcopy(encoder)
        described = describe(net, in_channels=pack.channels, size=config.size)
    else:
        if config.encoder.startswith("custom:"):
            raise UsageError(
                f"the encoder is a module of your own ({config.encoder[7:]}); pass it: pretrain(data, encoder=module)"
            )
        net, described = build_encoder(
            config.encoder,
            in_channels=pack.channels,
            size=made_for or config.size,
            stem=config.stem,
            seed=derive(config.seed, "encoder"),
            depth=config.depth,
        )
        if made_for is not None and made_for != config.size:
            described = replace(described, size=config.size, made_for=made_for)
    mean, std = channel_statistics(pack, config.seed) if before is None else (before.mean, before.std)
    described = replace(described, mean=tuple(round(float(m), 6) for m in mean), std=tuple(round(float(s), 6) for s in std))
    if before is None and isinstance(net, OnPatches) and not isinstance(encoder, nn.Module):
        fit_to(net, described, pack, derive(config.seed, "dictionary"))
    return net, described


def fit_to(net: OnPatches, described: EncoderConfig, pack: Pack, seed: int, most: int = 2000) -> None:
    """Find an encoder's dictionary in up to `most` of the pictures, drawn over the whole set."""
    which = generator(seed, "dictionary pictures").permutation(len(pack))[:most]
    views = centre_views(pack, described.made_for or described.size, described.mean, described.std, which=which)
    try:
        net.fit(torch.cat(list(views)), seed)
    except ValueError as error:
        raise UsageError(f"the encoder {described.architecture} cannot be fitted: {error}") from None


def leave_out_idle(net: nn.Module, described: EncoderConfig, say: Say) -> None:
    """Freeze what no feature depends on, such as a classifier left in a module: DDP would wait for its gradients for ever."""
    names, parameters = zip(*[(n, p) for n, p in net.named_parameters() if p.requires_grad], strict=True)
    with evaluating(net), torch.enable_grad():
        like = parameters[0]
        shape = (2, described.in_channels, described.size, described.size)
        features = net(torch.zeros(shape, dtype=like.dtype, device=like.device))
        slopes = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    idle = [(name, p) for name, p, slope in zip(names, parameters, slopes, strict=True) if slope is None]
    for _, p in idle:
        p.requires_grad_(False)
    if idle:
        say(
            f"no feature depends on {len(idle)} parameter{'s' * (len(idle) > 1)} of the encoder, e.g. {idle[0][0]}: left as they are"
        )


def patches_of(pack: Pack, config: RunConfig, encoder: EncoderConfig, device: torch.device) -> Cut:
    """What cuts patches of the run's own pictures: (positions in the pack, patches of each, area) -> float [M, C, S, S].

    Random crops at the run's size without flip and colour, normalised, a function of the seed and the position; the patches of a
    picture stand together.

    Raises:
        UsageError: from the cut, a position that the pack does not have.
    """

    def cut(pictures: tuple[int, ...], patches: int, scale: tuple[float, float]) -> Tensor:
        for position in pictures:
            if not 0 <= position < len(pack):
                raise UsageError(
                    f"picture {position:,} is to be cut into patches and {pack.name} has {len(pack):,} pictures; "
                    f"wanted positions from 0 to {len(pack) - 1:,}"
                )
        plain = View(scale=scale, flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
        # on the CPU, whatever the device: a maker on a GPU would put all the pictures there once more
        maker = ViewMaker(pack, (plain,), config.size, encoder.mean, encoder.std, derive(config.seed, "fixed"))
        index = np.array(pictures, np.int64)
        cuts = [maker(Batch(index, epoch=patch, step=0))[0].images for patch in range(patches)]  # [K, C, S, S] each
        return torch.stack(cuts, 1).flatten(0, 1).to(device)

    return cut
