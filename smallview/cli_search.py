"""The verbs that find pictures: those like others, and those that belong together."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from smallview import shell
from smallview.flags import ANY_ENCODER, ANY_MACHINE, ANY_OUTPUT, EncoderFlags, MachineFlags, OutputFlags, Place, Whole
from smallview.settings.fitting import printable
from smallview.shell import print_table

Among = Annotated[Place, Parameter(name="--in")]


def search(
    run: Place,
    /,
    *query: Place,
    in_: Among,
    top: Whole = 12,
    out: Place | None = None,
    pictures: Place | None = None,
    encoder: EncoderFlags = ANY_ENCODER,
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Find the pictures that are most like others, in the eyes of an encoder. Exact; a query is left out of its own neighbours.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag; with --weights, the name of an encoder.
    query
        A picture, several, or a folder of them.
    in_
        Pictures, as for pretrain, which are embedded once and kept; or a folder that smallview embed wrote.
    top
        How many neighbours.
    out
        An image file for a sheet: each query, then its neighbours with score and name.
    pictures
        Where the pictures of written embeddings lie now, if they were moved.
    """
    from smallview.errors import UsageError
    from smallview.output.sheet import check_sheet
    from smallview.training.launch import stopped_early

    if not query:
        raise UsageError("no query; wanted a picture, several, or a folder of them, before --in")
    if out is not None:
        check_sheet(out)
    with stopped_early(shell.go_on):
        from smallview.searching import search as find

        found = find(
            run,
            query[0] if len(query) == 1 else list(query),
            in_,
            top=top,
            out=out,
            pictures=pictures,
            **encoder.given(),
            **machine.given(),
            say=output.say,
            command=shell.go_on,
        )
    if output.json:
        print(json.dumps(found.as_dict() | {"sheet": out}))
        return
    for each in found.as_dict()["queries"]:
        lines = [[f"{near['score']:.4f}", printable(near["name"])] for near in each["neighbours"]]
        print_table(["score", "name"], lines, printable(each["query"]), left=("name",))
    if out is not None:
        print(out)


def cluster(
    run: Place,
    data: Place,
    /,
    *,
    out: Place,
    k: Annotated[str, Parameter(metavar="auto|N")] = "auto",
    seed: Whole = 0,
    pictures: Place | None = None,
    encoder: EncoderFlags = ANY_ENCODER,
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Sort pictures without labels into clusters: a sheet for each, an overview, and a table of all. No picture is moved or copied.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag; with --weights, the name of an encoder.
    data
        Pictures, as for pretrain, which are embedded once and kept; or a folder that smallview embed wrote.
    out
        The folder to write to.
    k
        How many clusters; auto: the number whose silhouette is highest.
    seed
        Decides which pictures centres are fitted on, and where they begin.
    pictures
        Where the pictures of written embeddings lie now, if they were moved.
    """
    from smallview.files import check_folder
    from smallview.training.launch import stopped_early

    check_folder(out)
    with stopped_early(shell.go_on):
        from smallview.clustering import cluster as sort

        found = sort(
            run,
            data,
            k=k,
            out=out,
            seed=seed,
            pictures=pictures,
            **encoder.given(),
            **machine.given(),
            say=output.say,
            command=shell.go_on,
        )
    if output.json:
        print(json.dumps(found.as_dict()))
        return
    told = found.as_dict()
    lines = [
        [str(c), f"{size:,}", printable(names[0])]
        for c, (size, names) in enumerate(zip(told["sizes"], told["most_typical"], strict=True))
    ]
    print_table(
        ["cluster", "pictures", "most typical"],
        lines,
        f"{told['pictures']:,} pictures in {told['k']} clusters",
        left=("most typical",),
    )
    if found.nmi is not None and found.accuracy is not None:
        right = f"{100 * found.accuracy:.0f} % right with each cluster named after one class"
        print(f"beside the labels, which decided nothing: NMI {found.nmi:.2f}, {right}")
    for path in found.files[:3]:
        print(path)
