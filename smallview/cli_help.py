"""What the help of each verb opens with and ends with: commands to copy, exit codes, and where to read more."""

from __future__ import annotations

from typing import Any

from cyclopts import Group

FIRST = Group("To begin with", sort_key=1)
BEFORE = Group("Before training", sort_key=2)
TRAINING = Group("Training", sort_key=3)
AFTER = Group("With a trained encoder", sort_key=4)
OPTIONS = Group("Options", sort_key=0)
OTHER = Group("Other", sort_key=5)

_CODES = {
    0: "done",
    1: "failed",
    2: "a name or a setting that cannot be meant",
    3: "pictures that cannot be used",
    4: "another process uses the run folder",
    5: "diverged",
    75: "stopped and saved, the same command goes on",
    130: "broken off",
}
_ANY = (0, 1, 2, 3, 130)

# For each verb: its heading, commands to copy, exit codes, and pages of docs/.
_VERBS: dict[str, tuple[Group, tuple[str, ...], tuple[int, ...], tuple[str, ...]]] = {
    "demo": (FIRST, ("smallview demo", "smallview demo --out runs/first --json"), (0, 1, 2, 75, 130), ("start",)),
    "check": (
        BEFORE,
        ("smallview check photos/", "smallview check photos/ --test held-out/ --json"),
        _ANY,
        ("check", "pictures"),
    ),
    "plan": (
        BEFORE,
        ("smallview plan photos/ --minutes 30", "smallview plan photos/ --minutes 30 --memory 4 --task retrieval"),
        _ANY,
        ("budget",),
    ),
    "methods": (BEFORE, ("smallview methods", "smallview methods simo"), (0, 2), ("choose", "methods")),
    "views": (
        BEFORE,
        ("smallview views photos/ --out sheet.png", "smallview views photos/ --method byol --set method.views.0.blur=1"),
        _ANY,
        ("methods", "saliency"),
    ),
    "pretrain": (
        TRAINING,
        (
            "smallview pretrain photos/",
            "smallview pretrain photos/ --minutes 30",
            "smallview pretrain photos/ --method byol --encoder resnet18 --epochs 200 --out runs/byol",
        ),
        tuple(_CODES),
        ("start", "training", "budget", "choose"),
    ),
    "sweep": (
        TRAINING,
        (
            "smallview sweep photos/ --over optimizer.lr=0.001,0.003 --epochs 10 --seeds 3",
            "smallview sweep photos/ --over method=simclr,byol --over optimizer.lr=0.001,0.003 --random 3",
        ),
        tuple(_CODES),
        ("evaluation", "choose"),
    ),
    "evaluate": (
        AFTER,
        (
            "smallview evaluate runs/photos-simclr-patches --train labeled/train --test labeled/test",
            "smallview evaluate runs/a --train labeled/train --test labeled/test --protocols knn,lowshot --json",
        ),
        _ANY,
        ("evaluation",),
    ),
    "compare": (
        AFTER,
        (
            "smallview compare runs/simclr-0 runs/simclr-1 runs/byol-0 runs/byol-1",
            "smallview compare runs/a-0 runs/b-0 --csv table.csv",
        ),
        (0, 1, 2, 130),
        ("evaluation",),
    ),
    "report": (
        AFTER,
        ("smallview report runs/photos-simclr-patches", "smallview report runs/a-0 runs/a-1 runs/b-0 --out report.html"),
        _ANY,
        ("report",),
    ),
    "embed": (
        AFTER,
        (
            "smallview embed runs/photos-simclr-patches photos/ --out embeddings/",
            "smallview embed runs/a photos/ --out embeddings/ --normalize",
        ),
        _ANY,
        ("files",),
    ),
    "search": (
        AFTER,
        (
            "smallview search runs/photos-simclr-patches query.png --in photos/ --out sheet.png",
            "smallview search runs/photos-simclr-patches held-out/ --in embeddings/ --top 5 --json",
        ),
        (0, 1, 2, 3, 4, 75, 130),
        ("search",),
    ),
    "cluster": (
        AFTER,
        (
            "smallview cluster runs/photos-simclr-patches photos/ --out sorted/",
            "smallview cluster runs/photos-simclr-patches embeddings/ --k 5 --out sorted/ --json",
        ),
        (0, 1, 2, 3, 4, 75, 130),
        ("search",),
    ),
    "duplicates": (
        AFTER,
        (
            "smallview duplicates runs/photos-simclr-patches photos/ --out duplicates/",
            "smallview duplicates runs/a photos/ --out duplicates/ --semantic 0.3 --no-mirrored --no-cropped --json",
        ),
        (0, 1, 2, 3, 4, 75, 130),
        ("duplicates",),
    ),
    "select": (
        AFTER,
        (
            "smallview select runs/photos-simclr-patches photos/ --n 200 --out selected.csv --sheet selected.png",
            "smallview select runs/a photos/ --n 100 --labeled selected.csv --by labels --out selected-2.csv",
        ),
        (0, 1, 2, 3, 4, 75, 130),
        ("label-first",),
    ),
    "export": (
        AFTER,
        (
            "smallview export runs/photos-simclr-resnet18 --to timm --out encoder-timm/",
            "smallview export runs/photos-simclr-patches --to onnx --input uint8 --out encoder-onnx/",
        ),
        _ANY,
        ("export",),
    ),
}


def told(verb: str) -> dict[str, Any]:
    """How a verb is registered: the heading that it stands under, what its help opens with, and what it ends with."""
    group, examples, codes, pages = _VERBS[verb]
    return {
        "group": group,
        "help_prologue": "Examples:\n\n" + "\n".join(f"- `{line}`" for line in examples),
        "help_epilogue": (
            f"Exit codes: {', '.join(f'{code} {_CODES[code]}' for code in codes)}.\n\n"
            f"An option may also come from the environment: `SMALLVIEW_{verb.upper()}_` and its name in capitals, with _ for -. "
            f"More: {', '.join(f'docs/{page}.md' for page in pages)}."
        ),
    }


PROLOGUE = """Type first:

- `smallview demo`: the whole road in two minutes, on pictures that need no download
- `smallview plan photos/ --minutes 30`: what to run on your own pictures
- `smallview pretrain photos/ --minutes 30`: run it; no labels needed
"""
HELP = """Train compact image encoders on unlabeled pictures with little compute, and judge them honestly.

`smallview VERB --help` tells all about a verb. Any command takes `--debug`, which shows where an error came from.
"""
