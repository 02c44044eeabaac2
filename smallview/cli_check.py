"""The verb that looks at pictures before training: `check`."""

from __future__ import annotations

import json

from smallview.flags import ANY_OUTPUT, Method, OutputFlags, Place, Threads


def check(
    data: Place,
    /,
    *,
    test: Place | None = None,
    method: Method = "simclr",
    sheet: Place | None = None,
    threads: Threads | None = None,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Look at pictures before training: broken, odd and double ones, leaks, and augmentations that would hide the class.

    Each picture is read once; nothing is changed or removed. The verdict begins with what to act on. Findings are no failure.

    Parameters
    ----------
    data
        Pictures, as for pretrain; with labels, more can be said.
    test
        Pictures that must not be among them, as for data.
    method
        The method whose views the advice is about.
    sheet
        An image file for the views that the method would make, as smallview views writes it.
    threads
        CPU threads. Default: the cores of this machine.
    """
    from smallview.checking import check as look
    from smallview.findings import text
    from smallview.output.sheet import check_sheet
    from smallview.use import sheet as write_sheet

    progress = output.say
    if sheet is not None:
        check_sheet(sheet)
    found = look(data, test, method=method, threads=threads, say=progress)
    if sheet is not None:
        write_sheet(data, sheet, {"method": method}, say=progress)
    print(json.dumps(found.as_dict() | {"sheet": sheet}) if output.json else text(found))
    if sheet is not None and not output.json:
        print(sheet)
