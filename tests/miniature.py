"""How the pages of the documentation run in miniature: what is made smaller, what they presume, and what is left out, with its reason."""

from __future__ import annotations

# What costs is made smaller in the commands of a page ...
SHRINK = {
    r"--n 200": "--n 12",
    r"--n 10 ": "--n 5 ",
    r"--epochs \d+": "--epochs 1",
    r"--minutes \d+": "--minutes 0.02",
    r"56x800,112x200,224x100": "8x1,12x1,16x1",
    r"112x200 --size 224": "8x1 --size 16",
    r"32x70,32x30": "16x1,16x1",
    r"16x70%,32x30%": "8x70%,16x30%",
    r"--subset 10%": "--subset 50%",
    r"--seeds 3": "--seeds 1",
    r"--size 64": "--size 32",
}
# ... and by what a command is not told itself.
ENVIRONMENT = {"size": "16", "batch_size": "8", "epochs": "1"}
LENGTHS = ("--epochs", "--minutes", "--stages", "--config")
# Settings of sv.pretrain in Python blocks.
SMALL = {"device": "cpu", "size": 16, "batch_size": 8, "threads": 1, "epochs": 1}

# A block that begins so has lines that stand for one another: the run of one does not await the next.
ONE_OF_THESE = "# one of these"

# Lines that cannot run here, by page and how they begin; "needs" in front of a module: left out where it is not installed.
LEFT_OUT: dict[tuple[str, str], str] = {
    ("README.md", "make demo"): "installs gigabytes; the demo itself runs in tests/test_road.py",
    ("README.md", "make test"): "is what runs this",
    ("README.md", "smallview export runs/photos-simclr-patches --to onnx"): "seconds; tests/output/test_export_onnx.py",
    ("docs/export.md", "smallview export runs/photos-simclr-patches --to onnx"): "seconds; tests/output/test_export_onnx.py",
    ("docs/choose.md", "smallview sweep photos/ --over optimizer.lr=0.001,0.003 --epochs 10 --by label_free"): (
        "160 pictures and more; tests/test_sweep.py"
    ),
    ("docs/start.md", "pip install"): "a network",
    ("docs/start.md", "smallview demo"): "minutes; tests/test_road.py",
    ("docs/pictures.md", "smallview pretrain hf:pictures-on-disk/"): "needs datasets",
    ("docs/export.md", "import onnxruntime"): "the file of the line above; tests/output/test_export_onnx.py",
    ("docs/many-gpus.md", "smallview pretrain photos/ --devices 4"): "four processes; tests/distributed/test_devices.py",
    ("docs/many-gpus.md", "torchrun --standalone --nproc-per-node 4 -m smallview pretrain photos/"): "four processes; tests/distributed",
    ("docs/many-gpus.md", "#!/bin/bash"): "a SLURM job",
    ("docs/pack-format.md", "from smallview.data.packing import read_pack"): "a pack of another machine; tests/test_divided_packs.py",
    ("docs/pack-format.md", "import json, pathlib, numpy as np"): "runs in a pack's folder; tests/data/test_pack_reading.py",
}  # fmt: skip

# Runs that a page has from its reader: method and seed, or another encoder.
READY = {
    "runs/photos-simclr-patches": ("simclr", 0, "dense_small"),
    "runs/photos-simclr-resnet18": ("simclr", 0, "resnet18"),
    "runs/a": ("simclr", 0, "dense_small"),
    "runs/a-0": ("simclr", 0, "dense_small"),
    "runs/a-1": ("simclr", 1, "dense_small"),
    "runs/b-0": ("byol", 0, "dense_small"),
    "runs/b-1": ("byol", 1, "dense_small"),
}
READY |= {f"runs/{method}-{seed}": (method, seed, "dense_small") for method in ("simclr", "byol") for seed in (0, 1, 2)}

# What Python blocks have from the page around them or from the block before.
PRESUMED = {
    "README.md": """
        images, test_images = [np.random.default_rng(0).integers(0, 255, (16, 16, 16, 3), np.uint8) for _ in range(2)]
        labels = test_labels = np.arange(16) % 2
        query, key = torch.randn(2, 16, 8)
    """,
    "docs/architecture.md": "from dataclasses import dataclass",
    "docs/extend.md": "import json",
    "docs/methods.md": "from smallview.schedules import Ramp; from smallview.objectives import NearestSmoothing",
}

# File names in running text that no block of their page writes.
NOT_WRITTEN = {
    "stages/": "of --stages; tests/test_stages.py",
    "foregrounds/": "of masks; tests/data/test_masking.py",
    "model.onnx": "of --to onnx; tests/output/test_export_onnx.py",
    "model.pt2": "another target; tests/output/test_export.py",
    "load.py": "of --to hub; tests/output/test_export.py",
    "method.py": "does not exist, and says why",
    "skipped-step-*.json": "of numbers that are not finite; tests/training/test_loop.py",
    "packs/.building-<family>.<key>/": "only while a pack is made; tests/data/test_pack_build.py",
    "meta.json": "in a pack; tests/data/test_pack_reading.py",
    "round-2.csv": "of the next round; tests/test_labeled.py",
    "near_duplicates.jsonl": "where there are leaks; tests/evaluation",
}
# Options in running text that are not of the command line, and where they are.
OTHERS = {
    "--track": "experiments/records/ladder.py",
    "--data": "experiments/label_first.py",
    "--round": "experiments/label_first.py",
    "--commands": "experiments/claims/grid.py",
    "--scale": "experiments/claims/grid.py",
    "--max-restarts": "torchrun",
    "--malloc": "benchmarks/step.py",
    "--steps": "experiments/views_modes.py",
}
