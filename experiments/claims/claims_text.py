"""What the ledger has of every claim, as Markdown for docs/claims.md; `experiments/results.py` writes it."""

from __future__ import annotations

from importlib import import_module

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


def text() -> str:
    """What the page of the claims has between its marks."""
    return "\n".join(section(claim, number) for number, claim in enumerate(claims(), 1))
