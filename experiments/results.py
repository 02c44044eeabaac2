"""Write what the ledger says into the pages that show it, between their marks.

python experiments/results.py            # writes docs/results.md, claims.md, records.md, small-is-beautiful.md and README.md
python experiments/results.py --check    # ends with 1 where a page says something else than the ledger
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from smallview import ledger

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE / "claims"), str(HERE / "records")]

import claims_text as claims_page  # noqa: E402
import records_text as records_page  # noqa: E402
import small_is_beautiful  # noqa: E402
from ladder import EXPERIMENT as RECORD  # noqa: E402
from small_is_beautiful import EXPERIMENT as SMALL  # noqa: E402

HEAD = ("what", "linear %", "beside it", "linear %", "difference, by seed", "untrained", "command")
SCHEDULES = ("half only; equal compute", "half, then full; equal compute", "half, then full; equal epochs")
BEST = (("default", "plain"), ("default", "lightly"), ("plain", "lightly"))
Runs = dict[int, ledger.Entry]


def line(what: str, runs: Runs, beside: str, others: Runs, command: str, metric: str = "linear") -> str:
    """One comparison as a row of the table, by a metric that is a linear probe's accuracy; empty without runs of both."""
    if not runs or not others:
        return ""
    apart = [_linear(runs[seed], metric) - _linear(others[seed], metric) for seed in sorted(runs) if seed in others]
    floors = [e.rows[f"{metric} untrained"] for e in runs.values() if f"{metric} untrained" in e.rows]
    cells = [
        *(what, _mean(runs, metric), beside, _mean(others, metric), ", ".join(f"{value:+.1f}" for value in apart) or "-"),
        *(f"{statistics.fmean(floors):.1f}" if floors else "-", f"`{command}`"),
    ]
    return f"| {' | '.join(cells)} |\n"


def headlines(entries: Sequence[ledger.Entry]) -> str:
    """The comparisons that tell most, one row each."""
    made = [f"| {' | '.join(HEAD)} |\n", f"|{'---|' * len(HEAD)}\n"]

    def of(experiment: str, data: str, arm: str, **settings: object) -> Runs:
        return {
            e.seed: e
            for e in entries
            if (e.experiment, e.data, e.arm, e.scale) == (experiment, data, arm, "cpu")
            and all(e.settings.get(name) == value for name, value in settings.items())
        }

    ladders = sorted({(e.data, float(e.settings["minutes"])) for e in entries if e.experiment == RECORD})
    for data, minutes in ladders:
        command = f"python experiments/records/ladder.py --track {data} --minutes {minutes:g} --out runs/records"
        for step, other in BEST:
            runs, others = (of(RECORD, data, arm, minutes=minutes) for arm in (step, other))
            made.append(line(f"{data}, {minutes:g} minutes: {step}", runs, other, others, command))
    for data, encoder, method in sorted(
        {(e.data, str(e.settings["encoder"]), str(e.settings["method"])) for e in entries if e.experiment == SMALL}
    ):
        command = f"python experiments/small_is_beautiful.py --data {data} --encoder {encoder} "
        command += "--supervised" if method == "supervised" else f"--method {method}"
        for arm in SCHEDULES:
            runs, others = (of(SMALL, data, name, encoder=encoder, method=method) for name in (arm, "full"))
            made.append(line(f"{data}, {encoder}, {method}: {arm}", runs, "full size", others, f"{command} --out runs/small"))
    for claim in claims_page.claims():
        title, metric = next(iter(claim.columns.items()))
        what = f"{claim.title[:1].lower()}{claim.title[1:]}{', ' * (title != 'linear %')}{title.removesuffix('linear %').rstrip(', ')}"
        command = f"python experiments/claims/{claim.experiment}.py --out runs/claims"
        for data in claim.data:
            for arm in claim.telling:
                runs, others = (of(claim.experiment, data, name) for name in (arm, claim.against))
                made.append(line(f"{data}, {what}: {arm}", runs, claim.against, others, command, metric))
    return "".join(made)


def _linear(entry: ledger.Entry, metric: str) -> float:
    """The figure of that name, or of an older line."""
    return next(value for name, value in entry.rows.items() if name == metric or name.startswith(f"{metric} top"))


def _mean(runs: Runs, metric: str) -> str:
    values = [_linear(e, metric) for e in runs.values()]
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


MADE: dict[str, dict[str, Callable[[], str]]] = {
    "docs/results.md": {"results": lambda: headlines(ledger.read())},
    "docs/claims.md": {"claims": claims_page.text},
    "docs/records.md": {"ladders": lambda: records_page.ladders(ledger.read(experiment=RECORD))},
    "docs/small-is-beautiful.md": {"table": lambda: small_is_beautiful.table(ledger.read(experiment=SMALL))},
    "README.md": {"five minutes": lambda: records_page.five_minutes(ledger.read(experiment=RECORD))},
}


def page(name: str) -> str:
    """A page as it should be."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for mark, make in MADE[name].items():
        begin, end = f"<!-- {mark} -->", f"<!-- end of the {mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{make().rstrip()}\n\n{end}{after}"
    return text


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name in MADE:
        wanted = page(name)
        if check and (ROOT / name).read_text(encoding="utf-8") != wanted:
            sys.exit(f"{name} is not what the ledger says; run this without --check")
        if not check:
            (ROOT / name).write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
