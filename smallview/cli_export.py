"""The verb that hands an encoder over."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from smallview import completion
from smallview.flags import ANY_ENCODER, ANY_OUTPUT, EncoderFlags, OutputFlags, Place, Threads
from smallview.shell import say


def export(
    run: Place,
    /,
    *,
    to: Annotated[str, Parameter(metavar="NAME", completer=completion.words(*completion.TARGETS))],
    out: Place,
    pictures: Place | None = None,
    input: Annotated[str, Parameter(metavar="KIND", completer=completion.words(*completion.INPUTS))] = "normalised",
    threads: Threads | None = None,
    encoder: EncoderFlags = ANY_ENCODER,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Write an encoder for use without this library, with a model card; checked to give the same features before it is kept.

    Parameters
    ----------
    run
        A run folder or an encoder folder; with --weights, the name of an encoder.
    to
        timm, torchvision, onnx, torch-export or hub (a folder for a model hub). Those that cannot hold an encoder say which can.
    out
        The folder to write: a new or empty one, or one with an earlier export, which is replaced.
    pictures
        Pictures to check with, as for pretrain; 64 are drawn. Default: gradients and noise.
    input
        What a program of onnx or torch-export takes: normalised images, float ones in [0, 1], or uint8 pictures (NHWC).
    threads
        CPU threads for reading pictures. Default: the cores of this machine.
    """
    from smallview.exporting import export as hand_over

    made = hand_over(
        run,
        to,
        out,
        pictures=pictures,
        input=input,
        **encoder.given(),
        threads=threads,
        say=output.say,
    )
    if output.json:
        print(json.dumps(made.as_dict()))
        return
    for name in made.files:
        print(made.path / name)
    if not output.quiet:
        say(made.parity.sentence())
