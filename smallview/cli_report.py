"""The verb that tells of runs in one page."""

from __future__ import annotations

import json

from smallview.errors import UsageError
from smallview.flags import ANY_OUTPUT, On, OutputFlags, Place, Threads
from smallview.shell import say


def report(
    *runs: Place,
    out: Place | None = None,
    data: Place | None = None,
    paths: On = False,
    threads: Threads | None = None,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Write one HTML file about runs, to look at, to mail and to print: verdict, cost, curves, pictures, settings.

    It opens anywhere, asks for nothing and stays under 5 MB. What a run folder lacks, or what is damaged in it, is said in the page.

    Parameters
    ----------
    runs
        Run folders; those that differ by their seed alone are taken together, and the first is compared with.
    out
        The file. Default: report.html in the folder of a single run, else in the present one.
    data
        The pictures to show, as for pretrain; up to 2,000 are drawn. Default: those of the first run, where they still are.
    paths
        Show folders in full; without it no place on this machine is told.
    threads
        CPU threads. Default: the cores of this machine.
    """
    if not runs:
        raise UsageError("no run is named; wanted run folders, as in smallview report runs/photos-simclr-patches")
    from smallview.reporting import report as write

    path = write(
        runs, out, data, paths=paths, threads=threads, say=(lambda message: None) if output.quiet or output.json else say
    )
    print(json.dumps({"report": str(path), "bytes": path.stat().st_size}) if output.json else path)
