"""The demo: the whole road in two minutes, on scikit-learn's handwritten digits, without a download."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallview.errors import SmallviewError, UsageError
from smallview.evaluation.features import extract, raw_pixels, recalibrate
from smallview.evaluation.linear import fit_linear
from smallview.evaluation.lowshot import Lowshot, lowshot
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.files import check_folder, write_text
from smallview.networks.encoders import build_encoder
from smallview.output.embed import write_embeddings
from smallview.run import pretrain, say_on_stderr
from smallview.seeds import derive, generator
from smallview.settle import cores
from smallview.use import sheet

OUT = Path("runs/demo")
PER_CLASS = (1, 5, 10)
DRAWS = 20
TEST = 500
EPOCHS = 60
# A mirrored digit is another sign, so nothing flips; half the digits of a batch are far from each other, so a soft temperature does.
SETTINGS: dict[str, object] = {
    "method.objective.contrastive.loss.temperature": 0.5,
    **{f"method.views.{v}.{name}": value for v in (0, 1) for name, value in (("flip", 0.0), ("scale", (0.3, 1.0)))},
}


def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Training and test pictures uint8 [N, 8, 8] and labels, split by a fixed seed.

    Source: Alpaydin and Kaynak, 1998 (the test part of the optical recognition of handwritten digits), as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    images = np.round(pictures.reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    order = generator(0, "demo split").permutation(len(images))
    test, train = order[:TEST], order[TEST:]
    return images[train], labels[train].astype(np.int64), images[test], labels[test].astype(np.int64)


@contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(train: Tensor, y: Tensor, test: Tensor, t: Tensor, *, draws: int = DRAWS) -> tuple[dict[int, Lowshot], float]:
    """Accuracy at few labels, and with all labels by the linear probe: the same rules for every contestant."""
    few = {n: lowshot(train, y, test, t, per_class=n, draws=draws, seed=0, classes=10) for n in PER_CLASS}
    probe = fit_linear(train, y, 10, seed=0)
    return few, 100.0 * float((probe.predict(test) == t).float().mean())


def demo(out: Path, *, as_json: bool = False, epochs: float = EPOCHS) -> dict[str, object]:
    """Pretrain on digits without their labels, judge with few labels, embed; print the table and what was written.

    Writes under `out`: the pictures, the run folder, the views' contact sheet, the embeddings and results.json. A second call
    finds the finished run and only judges again.
    """
    again = "smallview demo" + ("" if out == OUT else f" --out {shlex.quote(str(out))}") + " --json" * as_json
    check_folder(out)
    x, y, x_test, y_test = digits()
    pictures = _save(out, x, y)
    say_on_stderr(f"{len(x):,} handwritten digits of 8x8 pixels, their labels unused; {len(x_test):,} more to judge on")
    contact, *_ = sheet(str(pictures), out / "views.png", {"size": 16}, sets=SETTINGS)
    given: dict[str, Any] = {
        "epochs": epochs,
        "encoder": "dense_small",
        "size": 16,
        "sets": SETTINGS,
        "command": lambda _: again,
    }
    try:
        run = pretrain(str(pictures), "simclr", out=out / "run", **given)
    except UsageError as error:  # a demo of another version lies there: it stays, and this one gets a folder beside it
        say_on_stderr(str(error))
        run = pretrain(str(pictures), "simclr", out=out / "run", fresh=True, **given)
    with _threads():
        subject = open_subject(run.path)
        _, train = evaluation_pack((x, y), subject.config)
        _, test = evaluation_pack((x_test, y_test), subject.config)
        labels, test_labels = torch.from_numpy(y), torch.from_numpy(y_test)
        fresh, _ = build_encoder(
            subject.config.architecture,
            in_channels=1,
            size=subject.config.size,
            stem=subject.config.stem,
            seed=derive(subject.seed, "encoder"),
        )
        fresh = recalibrate(fresh, subject.config, train)
        features = {
            "raw pixels": (raw_pixels(train, 16), raw_pixels(test, 16)),
            "untrained encoder": (extract(fresh, subject.config, train), extract(fresh, subject.config, test)),
            "pretrained encoder": (
                extract(subject.encoder, subject.config, train),
                extract(subject.encoder, subject.config, test),
            ),
        }
        figures = {name: measure(a, labels, b, test_labels) for name, (a, b) in features.items()}
    written = [contact, *write_embeddings(features["pretrained encoder"][0].numpy(), train, out / "embeddings")]
    results: dict[str, object] = {
        name: {**{str(n): {"mean": few[n].mean, "std": few[n].std} for n in PER_CLASS}, "all": full}
        for name, (few, full) in figures.items()
    }
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    paths = [run.path / "encoder", *written, out / "results.json"]
    if as_json:
        print(json.dumps({"accuracy": results, "draws": DRAWS, "paths": [str(p) for p in paths]}))
    else:
        _table(figures)
        for path in paths:
            print(path)
    return results


def _save(out: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Path:
    """The pictures as a file that any command takes; whole or not at all."""
    path, partial = out / "digits.npz", out / ".part-digits.npz"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            np.savez(partial, images=images, labels=labels)
            partial.replace(path)
    except OSError as error:
        raise SmallviewError(f"cannot write to the folder {out}: {error.strerror or error}; choose another --out") from error
    return path


def _table(figures: dict[str, tuple[dict[int, Lowshot], float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"digits read right, in % (mean and spread of {DRAWS} draws)", title_justify="left")
    table.add_column("features", no_wrap=True)
    for n in PER_CLASS:
        table.add_column(f"{n} label{'s' * (n > 1)} per class", justify="right", min_width=10)
    table.add_column("all labels", justify="right")
    for name, (few, full) in figures.items():
        table.add_row(name, *(f"{few[n].mean:.1f} ± {few[n].std:.1f}" for n in PER_CLASS), f"{full:.1f}")
    Console().print(table)
    print(
        "The same ridge probe for all three, its penalty chosen by leaving out one of the labeled pictures at a time. With all labels "
        "easy pictures leave little between them: a pretrained encoder pays where labels are few."
    )
