"""The verbs: parse, call, print, nothing else. No torch is imported before a verb needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cyclopts import App
from cyclopts.config import Env

from smallview import shell
from smallview.cli_check import check
from smallview.cli_evaluate import compare, evaluate, sweep
from smallview.cli_export import export
from smallview.cli_plan import plan
from smallview.cli_pretrain import pretrain
from smallview.cli_report import report
from smallview.errors import UsageError
from smallview.flags import Json, On, Quiet, Sets, Whole, sets_of
from smallview.shell import say

HELP = """Self-supervised image learning that fits a small budget.

`smallview pretrain` trains an encoder on unlabeled pictures; `smallview demo` shows the whole road in two minutes on pictures
that need no download. Any command takes `--debug`, which shows where an error came from. An option may also come from the
environment: SMALLVIEW_PRETRAIN_EPOCHS=3 is `smallview pretrain --epochs 3`.
"""


app = App(
    name="smallview",
    help=HELP,
    help_prologue="Example: `smallview pretrain photos/`",
    version=shell.version,
    help_on_error=False,
    config=Env("SMALLVIEW_", command=True),  # SMALLVIEW_PRETRAIN_EPOCHS=3 stands under the flag and over the file
)
app.register_install_completion_command(add_to_startup=False)
app.command(
    evaluate,
    help_prologue="Example: `smallview evaluate runs/photos-simclr-dense_small --train labeled/train --test labeled/test`",
)
app.command(compare, help_prologue="Example: `smallview compare runs/simclr-0 runs/simclr-1 runs/byol-0 runs/byol-1`")
app.command(
    sweep,
    help_prologue="Example: `smallview sweep photos/ --over optimizer.lr=0.001,0.003 --over method=simclr,byol --epochs 10 --seeds 3`",
)
app.command(check, help_prologue="Example: `smallview check photos/ --test held-out/`")
app.command(pretrain, help_prologue="Example: `smallview pretrain photos/ --minutes 30`")
app.command(report, help_prologue="Example: `smallview report runs/photos-simclr-dense_small --out report.html`")
app.command(plan, help_prologue="Example: `smallview plan photos/ --minutes 30`")
app.command(export, help_prologue="Example: `smallview export runs/photos-simclr-resnet18 --to timm --out encoder-timm/`")


@app.command(help_prologue="Example: `smallview embed runs/photos-simclr-dense_small photos/ --out embeddings/`")
def embed(
    run: str,
    data: str,
    /,
    *,
    out: str,
    normalize: On = False,
    size: Whole | None = None,
    weights: str | None = None,
    weights_coverage: float = 1.0,
    stem: str = "auto",
    device: str = "auto",
    threads: Whole | None = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write backbone features of pictures: embeddings.npy and index.jsonl. The same command goes on with one that was stopped.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag; with --weights, the name of an encoder.
    data
        Pictures, as for pretrain.
    out
        The folder to write to.
    normalize
        Cut every row to unit length.
    size
        Side of the views in pixels. Default: what the encoder was trained for; 32 for one that does not say it.
    weights
        A file of weights for the named encoder, .safetensors or torch's own, whoever wrote it.
    weights_coverage
        The share of the encoder's tensors that the file must have. Default: all of them.
    stem
        auto, standard or small, for an encoder given by --weights.
    device
        auto, cpu, cuda or mps.
    threads
        CPU threads.
    json_
        One JSON object on stdout.
    quiet
        No progress.
    """
    from smallview.files import check_folder
    from smallview.training.launch import stopped_early

    check_folder(out)  # before torch is imported, which takes seconds
    with stopped_early(shell.go_on):
        from smallview.embedding import embed_into
        from smallview.training.progress import Counting

        with Counting(quiet=quiet) as lines:
            made = embed_into(
                run,
                data,
                out,
                normalize=normalize,
                size=size,
                weights=weights,
                weights_coverage=weights_coverage,
                stem=stem,
                device=device,
                threads=threads,
                lines=lines,
                command=shell.go_on,
            )
    if made.left_out and not quiet:
        bad = f"{made.left_out:,} unreadable picture{'s' * (made.left_out > 1)}"
        say(f"{bad} left out, named in {Path(out) / 'bad_files.jsonl'}")
    if json_:
        told = {"rows": made.rows, "features": made.features, "left_out": made.left_out}
        print(json.dumps({"embeddings": str(made.files[0]), "index": str(made.files[1]), **told}))
    else:
        for path in made.files:
            print(path)
        if not quiet:
            say(f"{made.rows:,} pictures, {made.features} features each")


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
        data, out, given, config=config, sets=sets_of(set_), rows=pictures, repeats=repeats, masks=masks, say=say
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
    from smallview.training.launch import stopped_early

    with stopped_early(shell.go_on):
        from smallview.demo import demo as show

        show(Path(out), as_json=json_)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: see shell.run."""
    shell.run(app, sys.argv[1:] if arguments is None else arguments, own_process=arguments is None)
