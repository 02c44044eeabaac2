"""The settings of one run: one frozen value that says all, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from smallview.data.masking import MaskRule
from smallview.data.subsets import Subset
from smallview.errors import UsageError
from smallview.joint_embedding import Method
from smallview.optimizers import Optimizer
from smallview.schedules import SPAN
from smallview.seeds import derive
from smallview.settings import to_tables
from smallview.stages import Stage, check_stages, spans
from smallview.views.view import View, centre_side, pixels

FORMAT_VERSION = 2  # 1 had other views, and no pack, augmentation and masks
# What may differ between a run and its continuation: where it computes and when it saves, and what the first start fixed.
FREE = (
    *("save_every", "probe", "device", "steps", "threads", "memory"),
    *("watch_every", "stop_on_collapse", "online", "tensorboard"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every setting of a run, resolved; written to run.toml, which is a valid --config.

    preset: the name that `method` and `optimizer` come from. size: pixels of a view's side. pack: how pictures are kept once decoded,
    `raw` pixels or `jpeg`; `auto` is the rule of data/pack_kind.py. augmentation: `fast` views, or `parity` with torchvision's own
    semantics. epochs or minutes say how long; steps is what they came to. save_every: seconds between checkpoints. layout, dtype:
    `auto` is the fixed rule. execution: `eager`, `graph` for passes as CUDA graphs, `compile` for torch.compile. memory: `auto` keeps
    activations while they fit, see training/memory.py. tf32: on a GPU, products of float32 numbers cut to 11 bits. deterministic: only
    kernels that give the same bits each time. weights_from: the run or encoder folder whose encoder weights training starts from,
    or a file of weights; weights_coverage: the share of the encoder's tensors that such a file must have.
    watch_every: steps between two looks at the probe pictures. stop_on_collapse: end with exit code 5 when the embeddings have
    collapsed. online: `labels` for those of the data, or labeled pictures, judged while training runs. tensorboard: write its
    files too. masks: what is foreground, for views that mask the background. stages: what the run is made of, one after the other, see
    stages.py; none is one training of `size` and epochs or minutes. exclude: a text file with the names of pictures to leave out, of which
    the run keeps a copy; subset: which of the others are trained on. depth: stages of the encoder from the
    first on; none is all. trains, batch_norm: as in Stage. span: the part of a longer training that this is, for all that follows progress.

    Raises:
        ValueError: a number outside its range, named.
    """

    data: str
    preset: str
    encoder: str
    stem: str
    size: int
    batch_size: int
    epochs: float | None
    minutes: float | None
    seed: int
    device: str
    threads: int
    save_every: float
    probe: bool
    layout: str
    dtype: str
    execution: str
    memory: str = "auto"
    tf32: bool = False
    deterministic: bool = False
    pack: str
    augmentation: str
    weights_from: str | None = None
    weights_coverage: float = 1.0
    watch_every: int = 25
    stop_on_collapse: bool = False
    online: str | None = None
    tensorboard: bool = False
    steps: int | None
    depth: int | None = None
    trains: Literal["all", "new"] = "all"
    batch_norm: Literal["moves", "fixed"] = "moves"
    span: tuple[float, float] = (0.0, 1.0)
    exclude: str | None = None
    subset: Subset | None = None
    masks: MaskRule
    method: Method
    optimizer: Optimizer
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; wanted 4 to 1024 pixels")
        if not 2 <= self.batch_size <= 2**20:
            raise ValueError(f"batch_size is {self.batch_size}; wanted 2 or more pictures")
        if self.epochs is not None and not 0.0 < self.epochs <= 1e6:
            raise ValueError(f"epochs is {self.epochs:g}; wanted a number above 0")
        if self.minutes is not None and not 0.0 < self.minutes <= 1e6:
            raise ValueError(f"minutes is {self.minutes:g}; wanted a number above 0")
        if (self.epochs is None) == (self.minutes is None):
            raise ValueError("epochs and minutes are both given or both absent; wanted one of them")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; wanted 0 to {2**31 - 1}")
        if not 1 <= self.threads <= 1024:
            raise ValueError(f"threads is {self.threads}; wanted 1 or more")
        if not 0.0 < self.save_every <= 1e9:
            raise ValueError(f"save_every is {self.save_every:g}; wanted seconds above 0")
        if not 1 <= self.watch_every <= 10**6:
            raise ValueError(f"watch_every is {self.watch_every}; wanted 1 or more steps")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; wanted 1 or more")
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth is {self.depth}; wanted 1 or more stages of the encoder, or none for all")
        if not 0.0 <= self.span[0] < self.span[1] <= 1.0:
            raise ValueError(f"span is {self.span}; wanted where it begins and ends, within 0 and 1")
        if not 0.0 < self.weights_coverage <= 1.0:
            raise ValueError(
                f"weights_coverage is {self.weights_coverage:g}; wanted a share of the tensors, above 0 and at most 1"
            )
        check_stages(self.stages)
        for name, known in (
            ("stem", ("auto", "standard", "small")),
            ("device", ("auto", "cpu", "cuda", "mps")),
            ("layout", ("auto", "channels_first", "channels_last")),
            ("dtype", ("auto", "float32", "bfloat16")),
            ("execution", ("eager", "graph", "compile")),
            ("pack", ("auto", "raw", "jpeg")),
            ("augmentation", ("fast", "parity")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted {', '.join(known[:-1])} or {known[-1]}")


def steps_per_epoch(pictures: int, batch_size: int) -> int:
    """Full batches in an epoch; the rest of each epoch's order is dropped.

    Example:
        >>> steps_per_epoch(1000, 256)
        3
    """
    return pictures // batch_size


def total_steps(config: RunConfig, pictures: int) -> int:
    """The steps of a run of so many epochs.

    Raises:
        UsageError: the run has minutes and no steps yet.
    """
    if config.steps is not None:
        return config.steps
    if config.epochs is None:
        raise UsageError("the number of steps is not fixed yet; wanted epochs, or a calibrated run")
    return max(1, round(config.epochs * steps_per_epoch(pictures, config.batch_size)))


def pictures_of_epoch(config: RunConfig, pictures: int, whole: int) -> int:
    """The pictures by which the steps of an epoch are counted: those trained on, or all of which these are a part."""
    return whole if config.subset is not None and config.subset.equal_steps else pictures


def stage_settings(config: RunConfig, k: int) -> RunConfig:
    """The settings of stage k of a run, counted from 0: those of a run of its own, which begins where the stage before it ended.

    Its seed is another one than the run's after the first stage, so that the same pictures are not seen in the same views again.
    """
    stage = config.stages[k]
    share = stage.share
    minutes = None if share is None or config.minutes is None else share * config.minutes
    epochs = stage.epochs if share is None else None if config.epochs is None else share * config.epochs
    return replace(
        config,
        stages=(),
        size=stage.size,
        epochs=epochs,
        minutes=minutes,
        steps=None,
        seed=config.seed if k == 0 else derive(config.seed, "stage", k) % 2**31,
        depth=config.depth if stage.depth is None else stage.depth,
        encoder=stage.encoder or config.encoder,
        subset=stage.subset or config.subset,
        batch_size=stage.batch_size or config.batch_size,
        trains=stage.trains,
        batch_norm=stage.batch_norm,
        span=spans(config.stages)[k],
        weights_from=config.weights_from if k == 0 else None,
        method=config.method if stage.views is None else replace(config.method, views=stage.views),
        optimizer=config.optimizer if stage.lr is None else replace(config.optimizer, lr=stage.lr),
    )


def mathematics(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, as tables: what a continuation must share."""
    return {name: value for name, value in to_tables(config).items() if name not in FREE}


def smallest_side(config: RunConfig) -> int:
    """The short side that packed pictures need: the smallest crop is still made from as many pixels as it ever shows."""
    later = [smallest_side(stage_settings(config, k)) for k in range(len(config.stages))]
    return max([smallest_crop(config.method.views, config.size), centre_side(config.size), *later])


def smallest_crop(views: Sequence[View], size: int) -> int:
    """The short side of a picture whose smallest crop has as many pixels as the view made from it, in a run of this size.

    Example:
        >>> smallest_crop([View(scale=(0.25, 1.0)), View(scale=(0.1, 0.3), size=8)], 32)
        64
    """
    return math.ceil(max(max(pixels(view.size, size, at) for at in SPAN) / math.sqrt(view.scale[0]) for view in views))
