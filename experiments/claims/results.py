"""Write what the ledger has of every claim into docs/claims.md, between its marks.

python experiments/claims/results.py            # writes
python experiments/claims/results.py --check    # ends with 1 where the page says something else than the ledger
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from grid import Claim, table

from smallview import ledger

NAMES = (
    "eqco",
    "simo_queue",
    "batch_size",
    "one_patch",
    "disturbances",
    "light",
    "relic",
    "multi_crop",
    "masked_background",
    "layers",
    "rankings",
)
PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
BEGIN, END = "<!-- claims -->", "<!-- end of the claims -->"


def claims() -> list[Claim]:
    """All of them, in order."""
    return [import_module(name).CLAIM for name in NAMES]


def section(claim: Claim, number: int) -> str:
    """One claim with what was measured, or that nothing was yet."""
    entries = ledger.read(experiment=claim.experiment)
    head = f"## {number}. {claim.title}\n\n{claim.says}\n\n"
    command = f"    SMALLVIEW_DATA=... python experiments/claims/{claim.experiment}.py --out runs/claims\n\n"
    if not entries:
        return f"{head}{command}Not measured yet.\n"
    hours = sum(e.cost.get("train_seconds", 0.0) for e in entries) / 60.0
    cost = f"{len(entries)} runs, {hours:.0f} minutes of training.\n"
    return f"{head}{claim.found}\n\n{command}{table(claim, entries)}\n{cost}"


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = "\n".join(section(claim, number) for number, claim in enumerate(claims(), 1))
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    wanted = page()
    if parser.parse_args().check:
        sys.exit(
            0
            if PAGE.read_text(encoding="utf-8") == wanted
            else f"{PAGE.name} is not what the ledger says; run this without --check"
        )
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
