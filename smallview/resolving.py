"""How the settings of a run are resolved: from defaults, a file, flags and `--set`; what the user did not give carries its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from smallview.config import FORMAT_VERSION, RunConfig
from smallview.data.masking import MaskRule
from smallview.data.subsets import read_subset
from smallview.errors import UsageError
from smallview.presets import Preset, preset
from smallview.schedules import Product, Schedule, over
from smallview.settings import apply_tables, load_toml, override
from smallview.stages import read_stages

SMALL_SET = 2000
SAYS_STEPS = ("epochs", "minutes", "batch_size")
BY_HAND = ("the file", "given", "--set")


@dataclass(frozen=True)
class Facts:
    """What defaults depend on: the data's name, how many pictures, the side of the largest seen, the device, the cores."""

    data: str
    pictures: int
    side: int
    device: str
    cores: int


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
    own = "patches" if facts.device == "cpu" else "resnet18"
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
        "exclude": "no picture is left out",
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
