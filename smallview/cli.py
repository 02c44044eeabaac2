"""The verbs: parse, call, print, nothing else. No torch is imported before a verb needs it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.config import Env

from smallview import shell
from smallview.errors import UsageError
from smallview.shell import say

HELP = """Self-supervised image learning that fits a small budget.

`smallview pretrain` trains an encoder on unlabeled pictures; `smallview demo` shows the whole road in two minutes on pictures
that need no download. Any command takes `--debug`, which shows where an error came from. An option may also come from the
environment: SMALLVIEW_PRETRAIN_EPOCHS=3 is `smallview pretrain --epochs 3`.
"""


def _whole(kind: type, tokens: Sequence[Any]) -> int:
    try:
        return int(tokens[0].value)  # cyclopts alone would round 3.5
    except ValueError:
        raise ValueError(f'"{tokens[0].value}" is no whole number.') from None


app = App(
    name="smallview",
    help=HELP,
    help_prologue="Example: `smallview pretrain photos/`",
    version=shell.version,
    help_on_error=False,
    config=Env("SMALLVIEW_", command=True),  # SMALLVIEW_PRETRAIN_EPOCHS=3 stands under the flag and over the file
)
app.register_install_completion_command(add_to_startup=False)
Whole = Annotated[int, Parameter(converter=_whole)]
On = Annotated[bool, Parameter(negative=(), show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative=(), show_default=False)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), show_default=False)]
Sets = Annotated[tuple[str, ...], Parameter(name="--set", negative=(), consume_multiple=False, show_default=False)]


def _sets(pairs: tuple[str, ...]) -> dict[str, object]:
    out: dict[str, object] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path:
            raise UsageError(f'--set is "{pair}"; wanted path=value, as in --set optimizer.lr=0.1')
        out[path] = value
    return out


@app.command(help_prologue="Example: `smallview pretrain photos/ --minutes 30`")
def pretrain(
    data: str,
    /,
    *,
    method: str | None = None,
    encoder: str | None = None,
    stem: str | None = None,
    size: Whole | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch_size: Whole | None = None,
    out: str | None = None,
    seed: Whole | None = None,
    device: str | None = None,
    threads: Whole | None = None,
    save_every: float | None = None,
    masks: str | None = None,
    devices: Whole = 1,
    online: str | None = None,
    stop_on_collapse: On = False,
    tensorboard: On = False,
    set_: Sets = (),
    config: str | None = None,
    probe: On = False,
    print_config: On = False,
    fresh: On = False,
    resume_from: str | None = None,
    weights_from: str | None = None,
    accept_data_change: On = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an encoder on unlabeled pictures.

    The same command goes on with an unfinished run, to the same bits; Ctrl-C saves first.

    Parameters
    ----------
    data
        A folder of pictures of any depth, or of tar shards; shard-{000..099}.tar; hf:NAME:SPLIT (pip install smallview[hf]); a
        picture array (.npy, .npz), CIFAR .bin or MNIST-type idx files.
    method
        The method; `smallview methods` lists them. Default: simclr.
    encoder
        dense_small, or any timm name. Default: dense_small on a CPU, resnet18 on a GPU.
    stem
        auto, standard or small. auto: the small-image stem when the final feature map would be under 4x4.
    size
        Side of the views in pixels. Default: the pictures' side up to 32, else 64 on a CPU and 112 on a GPU.
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
        Begin at step 0 with the encoder weights of a run or encoder folder, and nothing else of it.
    accept_data_change
        Go on with an unfinished run though its pictures changed; without it, what changed is told and nothing done.
    json_
        One JSON object on stdout.
    quiet
        No progress.
    """
    from smallview.training.launch import stopped_early

    given: dict[str, Any] = {
        "method": method,
        "stem": stem,
        "size": size,
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
    }
    sets = _sets(set_)
    if print_config:
        from smallview.data.sources import open_source
        from smallview.foregrounds import settings_with_masks
        from smallview.settle import explain, settle

        settled, reasons = settle(data, open_source(data), given, config, settings_with_masks(masks, sets), encoder)
        print(explain(settled, reasons, as_json=json_), end="")
        return
    if devices != 1 and shell.supervised(devices):
        return
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
            quiet=quiet,
            command=shell.go_on,
            **given,
        )
    if shell.follows():
        return
    if json_:
        print(
            json.dumps({"run": str(done.path), "encoder": str(done.path / "encoder"), "rows": [r.as_dict() for r in done.rows]})
        )
    else:
        print(done.path)
        name = shlex.quote(str(done.path))
        if not quiet:
            say(
                f"judge it: smallview evaluate {name} --train LABELED --test LABELED; use it: smallview embed {name} {shlex.quote(data)} --out DIR"
            )


@app.command(
    help_prologue="Example: `smallview evaluate runs/photos-simclr-dense_small --train labeled/train --test labeled/test`"
)
def evaluate(
    run: str,
    /,
    *,
    train: str,
    test: str,
    protocols: str = "knn,linear",
    device: str = "auto",
    threads: Whole | None = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge an encoder's frozen features on labeled pictures, beside raw pixels and the untrained encoder.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag.
    train
        Labeled pictures to fit on: class folders, .npz with labels, CIFAR .bin or idx files.
    test
        Labeled pictures to test on, of the same classes.
    protocols
        Names, separated by commas: knn, linear.
    device
        auto, cpu, cuda or mps.
    threads
        CPU threads.
    json_
        One JSON object on stdout.
    quiet
        No progress.
    """
    from smallview.use import evaluate as judge

    rows = judge(run, train, test, protocols, threads=threads, device=device, say=(lambda message: None) if quiet else say)
    if json_:
        print(json.dumps({"run": run, "rows": [row.as_dict() for row in rows]}))
    else:
        shell.print_rows(rows)


@app.command(help_prologue="Example: `smallview embed runs/photos-simclr-dense_small photos/ --out embeddings/`")
def embed(
    run: str,
    data: str,
    /,
    *,
    out: str,
    normalize: On = False,
    threads: Whole | None = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write backbone features of pictures: embeddings.npy and index.jsonl.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag.
    data
        Pictures, as for pretrain.
    out
        The folder to write to.
    normalize
        Cut every row to unit length.
    threads
        CPU threads.
    json_
        One JSON object on stdout.
    quiet
        No progress.
    """
    from smallview.files import check_folder
    from smallview.output.embed import embed_pack, write_embeddings
    from smallview.settle import thread_count

    check_folder(out)
    features, pack = embed_pack(run, data, normalize=normalize, threads=thread_count(threads))
    written = write_embeddings(features, pack, out)
    if pack.bad and not quiet:
        say(
            f"{len(pack.bad):,} unreadable picture{'s' * (len(pack.bad) > 1)} left out, named in {Path(out) / 'bad_files.jsonl'}"
        )
    if json_:
        print(
            json.dumps(
                {
                    "embeddings": str(written[0]),
                    "index": str(written[1]),
                    "rows": len(features),
                    "features": features.shape[1],
                    "left_out": len(pack.bad),
                }
            )
        )
    else:
        for path in written:
            print(path)
        if not quiet:
            say(f"{len(features):,} pictures, {features.shape[1]} features each")


@app.command(help_prologue="Example: `smallview views photos/ --method byol --out sheet.png`")
def views(
    data: str,
    /,
    *,
    out: str = "views.png",
    method: str | None = None,
    size: Whole | None = None,
    pictures: Whole = 8,
    repeats: Whole = 3,
    seed: Whole = 0,
    masks: str | None = None,
    set_: Sets = (),
    config: str | None = None,
    json_: Json = False,
) -> None:
    """Write a contact sheet of what the network will see, what was drawn for it, and the masks that it came from.

    Parameters
    ----------
    data
        Pictures, as for pretrain.
    out
        The image file to write.
    method
        The method whose views are shown. Default: simclr.
    size
        Side of the views in pixels, as for pretrain.
    pictures
        How many pictures to show, one a row.
    repeats
        How often each view is drawn.
    seed
        Decides which pictures and which draws.
    masks
        Foregrounds, as for pretrain.
    set_
        Any setting by its path, as in --set method.views.0.blur=1.
    config
        A TOML file of settings, such as a run's run.toml.
    json_
        One JSON object on stdout, with every parameter of every view as a list.
    """
    from smallview.use import sheet

    if pictures < 1 or repeats < 1:
        raise UsageError(f"--pictures is {pictures} and --repeats {repeats}; wanted 1 or more of both")
    given = {"method": method, "size": size, "seed": seed}
    path, settled, drawn = sheet(
        data, out, given, config=config, sets=_sets(set_), rows=pictures, repeats=repeats, masks=masks, say=say
    )
    if json_:
        print(json.dumps({"sheet": str(path), "size": settled.size, "method": settled.preset, **drawn}))
    else:
        print(path)


@app.command(help_prologue="Example: `smallview methods simclr`")
def methods(name: str | None = None, /, *, json_: Json = False) -> None:
    """List the methods, or show one with every setting and its unit.

    Parameters
    ----------
    name
        The method to show; without it, all are listed.
    json_
        One JSON object on stdout.
    """
    from shutil import get_terminal_size

    from smallview import explain

    if json_:
        print(json.dumps(explain.list_json() if name is None else explain.method_json(name)))
        return
    width = max(get_terminal_size().columns, 60)
    print(explain.list_text(width) if name is None else explain.method_text(name, width), end="")


@app.command(help_prologue="Example: `smallview demo`")
def demo(*, out: str = "runs/demo", json_: Json = False) -> None:
    """The whole road on real pictures that need no download: train, judge with few labels, embed.

    Parameters
    ----------
    out
        The folder for all that it writes.
    json_
        One JSON object on stdout.
    """
    from smallview.demo import demo as show

    show(Path(out), as_json=json_)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: see shell.run."""
    shell.run(app, sys.argv[1:] if arguments is None else arguments, own_process=arguments is None)
