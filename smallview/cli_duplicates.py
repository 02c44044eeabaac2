"""The verb `duplicates`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from smallview import shell
from smallview.files import check_folder
from smallview.flags import ANY_ENCODER, ANY_MACHINE, ANY_OUTPUT, EncoderFlags, MachineFlags, OutputFlags, Place, Share
from smallview.settings.fitting import printable
from smallview.shell import say

Mirrored = Annotated[bool, Parameter(negative="--no-mirrored")]
Cropped = Annotated[bool, Parameter(negative="--no-cropped")]


def duplicates(
    run: Place,
    data: Place,
    /,
    *,
    out: Place,
    near: Share = 0.995,
    semantic: Share = 0.4,
    mirrored: Mirrored = True,
    cropped: Cropped = True,
    pictures: Place | None = None,
    encoder: EncoderFlags = ANY_ENCODER,
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Find pictures that a set has more than once: the same pixels, the same picture in another form, and what an encoder can hardly tell apart.

    Writes duplicates.txt, the names of all but the first of each exact and near group, and a sheet of each kind to judge them by. No picture is
    changed, moved or deleted.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag; with --weights, the name of an encoder.
    data
        Pictures, as for pretrain, or a folder that smallview embed wrote.
    out
        The folder to write to.
    near
        By how much the thumbnails of two pictures must correlate, for the same picture in another size, quality or brightness.
    semantic
        How far apart two pictures may be to the encoder, as a part of what a picture and its 10th nearest usually are; 0 finds none.
    mirrored
        Whether mirror images are near copies.
    cropped
        Whether parts of a picture, 60 % of each side or more, are near copies.
    pictures
        Where the pictures of embeddings lie now.
    """
    check_folder(out)
    from smallview.training.launch import stopped_early

    with stopped_early(shell.go_on):
        from smallview import doubles

        found = doubles.duplicates(
            run,
            data,
            near=near,
            semantic=semantic,
            mirrored=mirrored,
            cropped=cropped,
            out=out,
            pictures=pictures,
            **encoder.given(),
            **machine.given(),
            command=shell.go_on,
            say=output.say,
        )
    files = [Path(out) / name for name in (doubles.LIST, *(f"{kind}.png" for kind in doubles.KINDS))]
    if output.json:
        print(json.dumps({**found.as_dict(), "list": str(files[0]), "sheets": [str(path) for path in files[1:]]}))
        return
    print(printable(f"{found.data}: {found.pictures:,} pictures"))
    for kind in doubles.KINDS:
        groups = getattr(found, kind)
        more = sum(len(group) - 1 for group in groups)
        print(
            f"{kind}: {len(groups):,} group{'s' * (len(groups) != 1)}, {more:,} beside the first of each; {found.meaning(kind)}"
        )
    for path in files:
        print(path)
    if not output.quiet:
        told = f"smallview pretrain {shlex.quote(data)} --exclude {shlex.quote(str(files[0]))}"
        say(f"{len(found.spare):,} names in {files[0]}; look at the sheets, then: {told}")
