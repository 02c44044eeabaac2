"""The verb that plans: which recipe fits these pictures, this machine and so many minutes."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from smallview import completion
from smallview.errors import UsageError
from smallview.flags import ANY_MACHINE, ANY_OUTPUT, MachineFlags, Minutes, OutputFlags, Place
from smallview.shell import say


def plan(
    data: Place,
    /,
    *,
    minutes: Minutes | None = None,
    memory: Annotated[float | None, Parameter(metavar="GIB")] = None,
    task: Annotated[str, Parameter(metavar="NAME", completer=completion.words(*completion.TASKS))] = "linear",
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Say what to run: two or three recipes with their commands, what they cost here, and what they came to elsewhere.

    Looks at the pictures and times a few steps of each recipe, about half a minute in all. `smallview pretrain DATA --minutes M` without
    other settings runs the first recipe.

    Parameters
    ----------
    data
        Pictures, as for pretrain.
    minutes
        Minutes of training that may be spent.
    memory
        GiB of memory that may be used.
    task
        What the encoder is for: linear (many labels later), few-labels, retrieval.
    """
    if minutes is None:
        raise UsageError("plan needs the minutes that may be spent: smallview plan DATA --minutes 10")
    from smallview.planning import plan as find

    found = find(
        data,
        minutes,
        memory=memory,
        task=task,  # type: ignore[arg-type]
        **machine.given(),
        say=(lambda message: None) if output.quiet or output.json else say,
    )
    if output.json:
        print(json.dumps(found.as_dict()))
        return
    print(found.verdict)
    for number, one in enumerate(found.recipes, 1):
        print(f"\n{number}. {one.name}: {one.why}")
        print(
            f"   {one.steps:,} steps, {one.views:,} views of {one.sides} ({one.seen:g} of each picture), {one.seconds / 60:g} min, "
            f"{one.memory_mb / 1024:.1f} GiB{'' if one.fits else ', more than asked for'}"
        )
        print(f"   expect: {one.expected}")
        print(f"   {one.command}")
