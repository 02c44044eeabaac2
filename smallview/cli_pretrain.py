"""The verb that trains: its flags, and what is printed when it is done."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

from cyclopts import Parameter

from smallview import shell
from smallview.files import check_folder
from smallview.flags import (
    ANY_OUTPUT,
    LENGTH,
    MACHINE,
    RUN,
    SETTINGS,
    WATCH,
    WHAT,
    Config,
    Device,
    Encoder,
    Masks,
    Method,
    Minutes,
    Number,
    On,
    OutputFlags,
    Pixels,
    Place,
    Seconds,
    Sets,
    Share,
    Stem,
    Threads,
    Whole,
    sets_of,
)
from smallview.shell import say


def pretrain(
    data: Place,
    /,
    *,
    method: Annotated[Method | None, WHAT] = None,
    encoder: Annotated[Encoder | None, WHAT] = None,
    stem: Annotated[Stem | None, WHAT] = None,
    size: Annotated[Pixels | None, LENGTH] = None,
    resolution: Annotated[str | None, LENGTH, Parameter(metavar="SCHEDULE")] = None,
    stages: Annotated[str | None, LENGTH, Parameter(metavar="LIST")] = None,
    subset: Annotated[str | None, LENGTH, Parameter(metavar="PART")] = None,
    exclude: Annotated[Place | None, LENGTH] = None,
    depth: Annotated[Whole | None, WHAT] = None,
    epochs: Annotated[Number | None, LENGTH] = None,
    minutes: Annotated[Minutes | None, LENGTH] = None,
    batch_size: Annotated[Whole | None, LENGTH] = None,
    out: Annotated[Place | None, RUN] = None,
    seed: Annotated[Whole | None, RUN] = None,
    device: Device | None = None,
    threads: Threads | None = None,
    save_every: Annotated[Seconds | None, RUN] = None,
    masks: Annotated[Masks | None, WHAT] = None,
    devices: Threads = 1,
    online: Annotated[Place | None, WATCH] = None,
    stop_on_collapse: Annotated[On, WATCH] = False,
    tensorboard: Annotated[On, WATCH] = False,
    set_: Sets = (),
    config: Config | None = None,
    probe: Annotated[On, MACHINE] = False,
    print_config: Annotated[On, SETTINGS] = False,
    fresh: Annotated[On, RUN] = False,
    resume_from: Annotated[Place | None, RUN] = None,
    weights_from: Annotated[Place | None, WHAT] = None,
    weights_coverage: Annotated[Share | None, WHAT] = None,
    accept_data_change: Annotated[On, RUN] = False,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Train an encoder on unlabeled pictures.

    RUN/encoder holds what was learned; run.toml, metrics.jsonl and summary.json beside it say how. The same command goes on with an
    unfinished run, to the same bits; Ctrl-C saves first.

    Parameters
    ----------
    data
        A folder of pictures of any depth, or of tar shards; shard-{000..099}.tar; hf:NAME:SPLIT (pip install smallview[hf]); a
        picture array (.npy, .npz), CIFAR .bin or MNIST-type idx files.
    method
        The method; `smallview methods` lists them. Default: simclr.
    encoder
        patches (a dictionary of patches with layers behind it), dense_small, dense_small:48-96-192 (widths of
        your own), or any timm name. Default: patches on a CPU, resnet18 on a GPU.
    stem
        auto, standard or small. auto: the small-image stem when the final feature map would be under 4x4.
    size
        Side of the views in pixels. Default: the pictures' side up to 32, else 64 on a CPU and 112 on a GPU.
    resolution
        What part of the size views have as training goes on: 'Ramp(0.5, 1.0, until=0.7)', 'Cyclic(0.5, 1.0, cycles=4)'.
    stages
        One training after the other, each with the weights of the one before: SIZExEPOCHS, as in 56x800,112x200,224x100, or
        SIZExSHARE% of the run's epochs or minutes, as in 16x70%,32x30%. More by --set stages.0.depth=3 or a --config file.
    subset
        Train on some of the pictures: 5000, 10%, 10/class, 20classes or 20classes:5000; listed in RUN/subset.json.
        --set subset.chosen_by=RUN takes typical and diverse ones, --set subset.equal_steps=true as many steps as all would have.
    exclude
        A text file of pictures to leave out, a name a line, such as the duplicates.txt of `smallview duplicates`.
    depth
        Stages of the encoder that are kept, from the first on; `--stages` can add the others again. Default: all.
    epochs
        Passes over the pictures. Default: 100.
    minutes
        Instead of epochs: what fits, fixed after a short calibration.
    batch_size
        Pictures per step. Default: 256, or 128 under 2,000 pictures.
    out
        The run folder. Default: runs/DATA-METHOD-ENCODER.
    seed
        Decides every random draw. Default: 0.
    device
        auto, cpu, cuda or mps.
    threads
        CPU threads; other threads give other bits. Default: the cores of this machine.
    save_every
        Seconds between checkpoints. Default: 60.
    masks
        Foregrounds for methods that mask the background: border_colour, centre_prior, spectral_residual, none, encoder:RUN, or a
        folder of masks named as the pictures. Default: border_colour.
    devices
        Processes that train together on this machine, each with its GPU or its share of the CPU; the batch is shared out, and
        stays the same. Several machines: torchrun -m smallview pretrain ...
    online
        Judge a linear and a nearest-neighbour probe every 100 steps: `labels` for the data's own, or labeled pictures. The
        encoder never sees a label.
    stop_on_collapse
        End with exit code 5 when the embeddings have collapsed or the loss runs away.
    tensorboard
        Also write TensorBoard's files, into RUN/tensorboard (pip install smallview[tensorboard]).
    set_
        Any setting by its path, as in --set optimizer.lr=0.1; may be given again.
    config
        A TOML file of settings; every run writes its own as run.toml.
    probe
        Time memory layouts and number formats instead of taking the fixed rule.
    print_config
        Print every setting with the reason for its value, and stop.
    fresh
        Start anew in a new folder (DIR-2); nothing is deleted.
    resume_from
        Go on from a checkpoint of another run (RUN, or RUN/checkpoints/step-000123), optimizer and all, in a new --out.
    weights_from
        Begin at step 0 with the encoder weights of a run or encoder folder, and nothing else of it; or with a file of weights,
        .safetensors or torch's own, whoever wrote it.
    weights_coverage
        The share of the encoder's tensors that such a file must have. Default: 1, all of them.
    accept_data_change
        Go on with an unfinished run though its pictures changed; without it, what changed is told and nothing done.
    """
    from smallview.training.launch import stopped_early

    given: dict[str, Any] = {
        "method": method,
        "stem": stem,
        "size": size,
        "resolution": resolution,
        "stages": stages,
        "subset": subset,
        "exclude": exclude,
        "depth": depth,
        "epochs": epochs,
        "minutes": minutes,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "threads": threads,
        "save_every": save_every,
        "probe": probe or None,
        "online": online,
        "stop_on_collapse": stop_on_collapse or None,
        "tensorboard": tensorboard or None,
        "weights_from": weights_from,
        "weights_coverage": weights_coverage,
    }
    sets = sets_of(set_)
    if print_config:
        from smallview.data.sources import open_source
        from smallview.foregrounds import settings_with_masks
        from smallview.settle import explain, settle

        settled, reasons = settle(data, open_source(data), given, config, settings_with_masks(masks, sets), encoder)
        print(explain(settled, reasons, as_json=output.json), end="")
        return
    if devices != 1 and shell.supervised(devices):
        return
    if out is not None:
        check_folder(out)  # before torch is imported, which takes seconds
    with stopped_early(shell.go_on):
        from smallview import run

        done = run.pretrain(
            data,
            encoder=encoder,
            out=out,
            masks=masks,
            config=config,
            sets=sets,
            fresh=fresh,
            resume_from=resume_from,
            accept_data_change=accept_data_change,
            quiet=output.quiet,
            command=shell.go_on,
            **given,
        )
    if shell.follows():
        return
    if output.json:
        print(
            json.dumps({"run": str(done.path), "encoder": str(done.path / "encoder"), "rows": [r.as_dict() for r in done.rows]})
        )
    else:
        print(done.path)
        name = shlex.quote(str(done.path))
        if not output.quiet:
            say(
                f"judge it: smallview evaluate {name} --train LABELED --test LABELED; use it: smallview embed {name} {shlex.quote(data)} --out DIR"
            )
