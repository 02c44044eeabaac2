"""The verb `select`, and the command that goes on with its next round."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from smallview import completion, shell
from smallview.flags import ANY_ENCODER, ANY_MACHINE, ANY_OUTPUT, EncoderFlags, MachineFlags, OutputFlags, Place, Places, Whole
from smallview.shell import say


def select(
    run: Place,
    data: Place,
    /,
    *,
    out: Place,
    n: Whole = 200,
    labeled: Places = (),
    by: Annotated[str, Parameter(metavar="NAME", completer=completion.words("coverage", "labels"))] = "coverage",
    seed: Whole = 0,
    sheet: Place | None = None,
    pictures: Place | None = None,
    encoder: EncoderFlags = ANY_ENCODER,
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Choose which pictures to label first: typical ones, unlike each other and unlike those that have labels already.

    The order is the order to label in: wherever you stop, what you have labeled is a good choice. No label is looked at, except with --by labels.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag; with --weights, the name of an encoder.
    data
        Pictures, as for pretrain, or a folder that smallview embed wrote.
    out
        The .csv to write: order, name, how many pictures each stands for, and an empty column for the label. One with labels in it is kept.
    n
        How many.
    labeled
        What has labels already: a .csv as this writes it, with labels filled in; a text file of names; or a folder of other
        pictures. The chosen are unlike these. May be given several times.
    by
        coverage, or labels: what these labels leave unsure counts for more.
    seed
        Draws the pictures that must be stood for, in sets over 8,192.
    sheet
        A picture file that shows the chosen, in order.
    pictures
        Where the pictures of embeddings lie now.
    """
    from smallview.training.launch import stopped_early

    with stopped_early(shell.go_on):
        from smallview import selecting

        found = selecting.select(
            run,
            data,
            n,
            labeled=list(labeled) if len(labeled) != 1 else labeled[0],
            by=by,  # type: ignore[arg-type]  # told where it is no such name
            seed=seed,
            out=out,
            sheet=sheet,
            pictures=pictures,
            **encoder.given(),
            **machine.given(),
            command=shell.go_on,
            say=output.say,
        )
    following = "" if len(found.chosen) == found.pictures - found.labeled else next_round(shell.go_on(), out)
    if output.json:
        print(json.dumps({**found.as_dict(), "csv": str(out), "sheet": sheet, "next": following or None}))
        return
    print(out)
    if sheet is not None:
        print(sheet)
    if not output.quiet:
        had = f"; {found.labeled:,} with labels already" * bool(found.labeled)
        last = found.chosen[-1].covered
        say(
            f"{len(found.chosen):,} of {found.pictures:,} pictures{had}; covered: {100 * found.before:.0f} % before, {100 * last:.0f} % with them"
        )
        if found.classes:
            fewest = sorted(found.classes.items(), key=lambda one: (one[1], one[0]))[:3]
            say(
                f"by {sum(found.classes.values()):,} labels of {len(found.classes):,} classes, of which a probe from the others tells "
                f"{100 * (found.right or 0.0):.0f} %; fewest: " + ", ".join(f"{name} {count:,}" for name, count in fewest)
            )
        if following:
            say(f"fill in the column label of {out}, then: {following}")


def next_round(command: str, out: str) -> str:
    """The command that chooses the next ones: this one, with what it wrote among the labeled, and new files to write.

    Example:
        >>> next_round("smallview select runs/a photos/ --labeled a.csv --out a-2.csv --sheet=a.png", "a-2.csv")
        'smallview select runs/a photos/ --labeled a.csv --sheet=a-2.png --labeled a-2.csv --out a-3.csv'
    """
    kept: list[str] = []
    given = iter(shlex.split(command))
    for word in given:
        flag, equals, value = word.partition("=")
        if flag == "--out":
            if not equals:
                next(given, None)
        elif flag == "--sheet":
            kept += [f"--sheet={_after(value)}"] if equals else [word, _after(next(given, ""))]
        else:
            kept.append(word)
    return shlex.join([*kept, "--labeled", str(out), "--out", _after(str(out))])


def _after(path: str) -> str:
    """The next name after a.csv, a-2.csv, ..., of which nothing is there yet; a year is no such number."""
    place = Path(path)
    stem, dash, number = place.stem.rpartition("-")
    base, count = (stem, int(number)) if dash and stem and number.isdecimal() and len(number) < 4 else (place.stem, 1)
    while (after := place.with_name(f"{base}-{(count := count + 1)}{place.suffix}")).exists():
        pass
    return str(after)
