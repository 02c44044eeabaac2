"""The verb that hands an encoder over."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from smallview import completion
from smallview.flags import Json, Pixels, Place, Quiet, Share, Stem, Threads
from smallview.shell import say


def export(
    run: Place,
    /,
    *,
    to: Annotated[str, Parameter(metavar="NAME", completer=completion.words(*completion.TARGETS))],
    out: Place,
    pictures: Place | None = None,
    input: Annotated[str, Parameter(metavar="KIND", completer=completion.words(*completion.INPUTS))] = "normalised",
    weights: Place | None = None,
    weights_coverage: Share = 1.0,
    size: Pixels | None = None,
    stem: Stem = "auto",
    threads: Threads | None = None,
    json_: Json = False,
    quiet: Quiet = False,
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
    weights
        A file of weights for the named encoder, .safetensors or torch's own, whoever wrote it.
    weights_coverage
        The share of the encoder's tensors that the file must have. Default: all of them.
    size
        Side of the pictures in pixels, for an encoder given by --weights. Default: 32.
    stem
        auto, standard or small, for an encoder given by --weights.
    threads
        CPU threads for reading pictures. Default: the cores of this machine.
    json_
        One JSON object on stdout.
    quiet
        Only the paths.
    """
    from smallview.exporting import export as hand_over

    made = hand_over(
        run,
        to,
        out,
        pictures=pictures,
        input=input,
        weights=weights,
        weights_coverage=weights_coverage,
        size=size,
        stem=stem,
        threads=threads,
        say=(lambda message: None) if quiet else say,
    )
    if json_:
        print(json.dumps(made.as_dict()))
        return
    for name in made.files:
        print(made.path / name)
    if not quiet:
        say(made.parity.sentence())
