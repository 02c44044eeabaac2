"""The verbs: parse, call, print, nothing else. No torch is imported before a verb needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from cyclopts import Parameter
from cyclopts.config import Env

from smallview import shell
from smallview.cli_check import check
from smallview.cli_duplicates import duplicates
from smallview.cli_evaluate import compare, evaluate, sweep
from smallview.cli_export import export
from smallview.cli_help import HELP, OPTIONS, OTHER, PROLOGUE, told
from smallview.cli_plan import plan
from smallview.cli_pretrain import pretrain
from smallview.cli_report import report
from smallview.cli_search import cluster, search
from smallview.cli_select import select
from smallview.completion import Completed
from smallview.errors import UsageError
from smallview.flags import (
    ANY_ENCODER,
    ANY_MACHINE,
    ANY_OUTPUT,
    Config,
    EncoderFlags,
    Json,
    MachineFlags,
    Masks,
    Method,
    On,
    OutputFlags,
    Pixels,
    Place,
    Sets,
    Whole,
    sets_of,
)
from smallview.shell import say

app = Completed(
    name="smallview",
    help=HELP,
    help_prologue=PROLOGUE,
    help_epilogue="Where to read more: docs/README.md.",
    version=shell.version,
    help_on_error=False,
    config=Env("SMALLVIEW_", command=True),  # SMALLVIEW_PRETRAIN_EPOCHS=3 stands under the flag and over the file
    default_parameter=Parameter(show_env_var=False),
    group_parameters=OPTIONS,
    group_commands=OTHER,
)
app.register_install_completion_command(add_to_startup=False, help="Let Tab complete verbs, options and names in your shell.")


def registered(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a function a verb of the command line, with what its help opens and ends with."""
    app.command(verb, **told(verb.__name__))
    return verb


for each in (check, plan, pretrain, sweep, evaluate, compare, report, search, cluster, duplicates, select, export):
    registered(each)


@registered
def embed(
    run: Place,
    data: Place,
    /,
    *,
    out: Place,
    normalize: On = False,
    encoder: EncoderFlags = ANY_ENCODER,
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
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
        Scale every row to length 1.
    """
    from smallview.files import check_folder
    from smallview.training.launch import stopped_early

    check_folder(out)  # before torch is imported, which takes seconds
    with stopped_early(shell.go_on):
        from smallview.embedding import embed_into
        from smallview.training.progress import Counting

        with Counting(quiet=output.quiet) as lines:
            made = embed_into(
                run,
                data,
                out,
                normalize=normalize,
                **encoder.given(),
                **machine.given(),
                lines=lines,
                command=shell.go_on,
            )
    if made.left_out and not output.quiet:
        bad = f"{made.left_out:,} unreadable picture{'s' * (made.left_out > 1)}"
        say(f"{bad} left out, named in {Path(out) / 'bad_files.jsonl'}")
    if output.json:
        told = {"rows": made.rows, "features": made.features, "left_out": made.left_out}
        print(json.dumps({"embeddings": str(made.files[0]), "index": str(made.files[1]), **told}))
    else:
        for path in made.files:
            print(path)
        if not output.quiet:
            say(f"{made.rows:,} pictures, {made.features} features each")


@registered
def views(
    data: Place,
    /,
    *,
    out: Place = "views.png",
    method: Method | None = None,
    size: Pixels | None = None,
    pictures: Whole = 8,
    repeats: Whole = 3,
    seed: Whole = 0,
    masks: Masks | None = None,
    set_: Sets = (),
    config: Config | None = None,
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


@registered
def methods(name: Method | None = None, /, *, json_: Json = False) -> None:
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


@registered
def demo(*, out: Place = "runs/demo", json_: Json = False) -> None:
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
