"""The settings of one run: one frozen value that says all, and how it is resolved from defaults, a file, flags and `--set`.

Every setting that the user did not give carries the reason for its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from smallview.data.masking import MaskRule
from smallview.data.subsets import Subset, read_subset
from smallview.errors import UsageError
from smallview.joint_embedding import Method
from smallview.optimizers import Optimizer
from smallview.presets import Preset, preset
from smallview.schedules import SPAN, Product, Schedule, over
from smallview.seeds import derive
from smallview.settings import apply_tables, load_toml, override, to_tables
from smallview.stages import Stage, check_stages, read_stages, spans
from smallview.views.view import View, pixels

FORMAT_VERSION = 2  # 1 had other views, and no pack, augmentation and masks
SMALL_SET = 2000
# What may differ between a run and its continuation: where it computes and when it saves, and what the first start fixed.
FREE = (
    *("save_every", "probe", "device", "steps", "threads", "memory"),
    *("watch_every", "stop_on_collapse", "online", "tensorboard"),
)
SAYS_STEPS = ("epochs", "minutes", "batch_size")
BY_HAND = ("the file", "given", "--set")


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
    stages.py; none is one training of `size` and epochs or minutes. subset: the pictures trained on. depth: stages of the encoder from the
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


@dataclass(frozen=True)
class Facts:
    """What defaults depend on: the data's name, how many pictures, the side of the largest seen, the device, the cores."""

    data: str
    pictures: int
    side: int
    device: str
    cores: int


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


def _size_rule(facts: Facts) -> tuple[int, str]:
    if facts.side <= 32:
        return max(4, facts.side), f"the pictures' side, {facts.side}"
    size = 112 if facts.device == "cuda" else 64
    return size, f"default for pictures over 32 pixels on {facts.device}"


def resolve_config(
    facts: Facts,
    given: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    sets: Mapping[str, object] | None = None,
    *,
    origin: str = "the file",
) -> tuple[RunConfig, dict[str, str]]:
    """The settings of a run and the reason of each: defaults, then the tables of a file, then `given`, then `sets` by path.

    given: top-level settings by name (`method` is a preset's name), None where not given. origin: the file's path, for errors.

    Raises:
        UsageError: an unknown name, a value of the wrong type or outside its range.
    """
    tables = dict(file or {})
    tables.pop("format_version", None)
    tables.pop("recorded", None)
    named = tables.pop("method") if isinstance(tables.get("method"), str) else None
    flags = {name: value for name, value in given.items() if value is not None}
    asked = flags.pop("method", None) or flags.pop("preset", None)
    if asked is not None and not isinstance(asked, str):
        raise UsageError(
            f'method is a {type(asked).__name__}; wanted a name, such as simclr; a value goes by sets={{"method": value}}'
        )
    flags.pop("preset", None)
    name = str(asked or tables.get("preset") or named or "simclr")
    if name != (tables.get("preset") or named or name):
        # another method is asked for than the file's: its own details are what the file describes, and go with it
        tables = {key: value for key, value in tables.items() if key not in ("method", "optimizer", "steps")}
    tables.pop("preset", None)
    if tables.get("epochs", "none") != "none" or any(key in {**flags, **(sets or {})} for key in SAYS_STEPS):
        tables.pop("steps", None)  # what an earlier run came to; this one counts its own
    chosen: Preset = preset(name)
    size, size_reason = _size_rule(facts)
    batch = chosen.batch_size or (128 if facts.pictures < SMALL_SET else 256)
    batch = max(2, min(batch, facts.pictures))
    own = "dense_small" if facts.device == "cpu" else "resnet18"
    config = RunConfig(
        data=facts.data,
        preset=name,
        encoder=chosen.encoder or own,
        stem="auto",
        size=size,
        batch_size=batch,
        epochs=chosen.epochs or 100.0,
        minutes=None,
        seed=0,
        device="auto",
        threads=facts.cores,
        save_every=60.0,
        probe=False,
        layout="auto",
        dtype="auto",
        execution="eager",
        pack="auto",
        augmentation="fast",
        steps=None,
        masks=MaskRule(),
        method=chosen.method,
        optimizer=chosen.optimizer,
    )
    reasons = {
        "preset": "default method",
        "encoder": f"default on {facts.device}" if chosen.encoder is None else f"preset {name}",
        "stem": "small when the final feature map would be under 4x4",
        "size": size_reason,
        "batch_size": f"{facts.pictures:,} pictures",
        "epochs": "default" if chosen.epochs is None else f"preset {name}",
        "seed": "fixed default",
        "device": "what torch finds",
        "threads": "cores of this machine",
        "save_every": "default, seconds",
        "probe": "the fixed rule",
        "layout": "fixed rule of encoder, device and CPU",
        "dtype": "fixed rule of encoder, device and CPU",
        "execution": "graph launches a GPU's passes at once, worth it for small nets; compile takes a minute and pays in long runs",
        "memory": "plain while it fits, then activations are computed again",
        "tf32": "float32 means 24 bits, on a GPU too",
        "deterministic": "on a GPU some kernels add in any order",
        "weights_from": "fresh weights, from the seed",
        "weights_coverage": "a file of weights covers the whole encoder, or is refused",
        "watch_every": "default, steps",
        "stop_on_collapse": "a collapse is told, and the run goes on",
        "online": "labels are not looked at",
        "tensorboard": "metrics.jsonl has all figures",
        "pack": "pixels up to 96 px or 8 GiB, else JPEGs",
        "augmentation": "views in one pass; parity has torchvision's order and clamps",
        "masks": "for views that mask the background",
        "method": f"preset {name} ({chosen.status}; {chosen.source})",
        "optimizer": f"preset {name}",
        "depth": "the whole encoder",
        "trains": "all weights",
        "batch_norm": "statistics move in training",
        "span": "a training of its own",
    }
    if tables:
        config = _lay(config, tables, origin)
        reasons.update(dict.fromkeys(tables, "the file"))
        reasons["preset"] = "the file"
    resolution = flags.pop("resolution", None)
    for name, read in (("stages", read_stages), ("subset", read_subset)):
        if isinstance(flags.get(name), str):
            flags[name] = read(flags[name])
    if flags:
        config = _lay(config, flags, "")
        reasons.update(dict.fromkeys(flags, "given"))
    if asked is not None:
        reasons["preset"] = "given"
    for path, value in (sets or {}).items():
        if path in ("preset", "data"):
            raise UsageError(
                f"--set {path} is no setting; name the {'method by --method' if path == 'preset' else 'data itself'}"
            )
        if path in ("epochs", "minutes") and str(value) != "none":  # one length replaces the other
            config = apply_tables(
                config, {"epochs": 1.0, "minutes": "none"} if path == "epochs" else {"epochs": "none", "minutes": 1.0}
            )
        config = override(config, path, value)
        reasons[path] = "--set"
    laid, config = config, _of_stages(config, set(tables), set(flags), set(sets or {}))
    reasons |= {name: "the stages" for name in ("size", "epochs") if getattr(laid, name) != getattr(config, name)}
    if resolution is not None:
        config = _with_resolution(config, resolution)
        reasons |= {f"method.views.{v}.size": "given" for v in range(len(config.method.views))}
    return config, reasons


def _of_stages(config: RunConfig, tables: set[str], flags: set[str], sets: set[str]) -> RunConfig:
    """The settings of a run of stages: its size is the last one's where none is given with them, its epochs are those of all.

    tables, flags, sets: what was given in a file, beside it, and by path. What is given beside a file's stages is meant for them.

    Raises:
        UsageError: a length beside stages that have their own.
    """
    if not config.stages:
        return config
    later = flags | sets
    if "size" not in (later if "stages" in later else later | tables):
        config = replace(config, size=config.stages[-1].size)
    if any(stage.epochs is None for stage in config.stages):
        return config
    if later & {"epochs", "minutes"}:
        raise UsageError(
            "--stages says epochs, and --epochs or --minutes is given too; wanted one of them, or shares: --stages 16x70%,32x30%"
        )
    return replace(config, epochs=float(sum(stage.epochs or 0.0 for stage in config.stages)), minutes=None)


def _with_resolution(config: RunConfig, resolution: str | float | Schedule) -> RunConfig:
    """The settings with the sizes of all views multiplied by a part of the run's size that changes with progress."""
    try:
        read = override(config, "method.views.0.size", resolution).method.views[0].size
    except UsageError as error:
        raise UsageError(f"--resolution: {error}; as in 'Ramp(0.5, 1.0, until=0.7)' or 'Cyclic(0.5, 1.0, cycles=4)'") from None
    if read is None or max(resolved := over(read)) > 1.0:
        at = "none" if read is None else f"{resolved[0]:g} at first and {max(resolved):g} at most"
        raise UsageError(
            f"--resolution is {at}; wanted parts of the run's size, above 0 and at most 1, as in 'Ramp(0.5, 1.0, until=0.7)'"
        )
    for v, view in enumerate(config.method.views):
        if isinstance(view.size, Schedule):
            raise UsageError(f"--resolution with view {v}, whose size changes already ({view.size}); wanted one of the two")
        size = 1.0 if view.size is None else float(view.size)
        config = override(config, f"method.views.{v}.size", Product(read, size) if isinstance(read, Schedule) else read * size)
    return config


def _lay(config: RunConfig, tables: dict[str, Any], origin: str) -> RunConfig:
    """Lay tables over a config; a length given as epochs or minutes replaces the other one."""
    tables = {key: value for key, value in tables.items() if key != "data"}
    real = {key: value for key, value in tables.items() if value not in (None, "none")}
    if "epochs" in real and "minutes" in real:
        raise UsageError(f"epochs is {real['epochs']} and minutes is {real['minutes']}; wanted one of the two")
    if "epochs" in real:
        tables |= {"minutes": "none"}
    elif "minutes" in real:
        tables |= {"epochs": "none"}
    return apply_tables(config, tables, source="" if origin == "" else origin)


def read_config_file(path: str) -> dict[str, Any]:
    """The tables of a --config file; `run.toml` is one.

    Raises:
        UsageError: no such file, a syntax error with its line, or a format that this version does not know.
    """
    tables = load_toml(path)
    version = tables.get("format_version", FORMAT_VERSION)
    if version not in range(1, FORMAT_VERSION + 1):  # what an earlier one lacks takes its default
        raise UsageError(f"{path} has format_version {version}; this version reads 1 to {FORMAT_VERSION}")
    return tables


def mathematics(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, as tables: what a continuation must share."""
    return {name: value for name, value in to_tables(config).items() if name not in FREE}


def smallest_side(config: RunConfig) -> int:
    """The short side that packed pictures need: the smallest crop is still made from as many pixels as it ever shows."""
    later = [smallest_side(stage_settings(config, k)) for k in range(len(config.stages))]
    return max([smallest_crop(config.method.views, config.size), math.ceil(config.size / 0.875), *later])


def smallest_crop(views: Sequence[View], size: int) -> int:
    """The short side of a picture whose smallest crop has as many pixels as the view made from it, in a run of this size.

    Example:
        >>> smallest_crop([View(scale=(0.25, 1.0)), View(scale=(0.1, 0.3), size=8)], 32)
        64
    """
    return math.ceil(max(max(pixels(view.size, size, at) for at in SPAN) / math.sqrt(view.scale[0]) for view in views))
