"""The verbs that judge: `evaluate` an encoder on labeled pictures, and `compare` what was judged."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from smallview import completion, shell
from smallview.errors import UsageError
from smallview.flags import (
    ANY_ENCODER,
    ANY_MACHINE,
    ANY_OUTPUT,
    HOW,
    JUDGED,
    MACHINE,
    Encoder,
    EncoderFlags,
    Json,
    MachineFlags,
    Method,
    Minutes,
    Number,
    On,
    OutputFlags,
    Pixels,
    Place,
    Sets,
    Threads,
    Whole,
    sets_of,
)
from smallview.shell import say

Named = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False, show_default=False)]


def evaluate(
    run: Place,
    /,
    *,
    train: Annotated[Place, JUDGED],
    test: Annotated[Place, JUDGED],
    protocols: Annotated[
        str, HOW, Parameter(metavar="NAMES", completer=completion.listed(*completion.PROTOCOLS))
    ] = "knn,linear",
    set_: Sets = (),
    transfer: Annotated[Named, JUDGED, Parameter(metavar="NAME=TRAIN,TEST")] = (),
    shifted: Annotated[Named, JUDGED, Parameter(metavar="NAME=DATA")] = (),
    train_masks: Annotated[Place | None, JUDGED] = None,
    test_masks: Annotated[Place | None, JUDGED] = None,
    no_leaks: Annotated[On, HOW] = False,
    no_cache: Annotated[On, MACHINE] = False,
    encoder: EncoderFlags = ANY_ENCODER,
    machine: MachineFlags = ANY_MACHINE,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Judge an encoder on labeled pictures, beside raw pixels and the untrained encoder under the same protocol.

    Each figure comes with the sentence that repeats it; a run's figures are kept in its rows.jsonl. The encoder is never changed, and one
    that was changed since its run ended is refused.

    Parameters
    ----------
    run
        A run folder, an encoder folder, or a timm name with its tag; with --weights, the name of an encoder.
    train
        Labeled pictures to fit on: class folders, .npz with labels, CIFAR .bin or idx files.
    test
        Labeled pictures to test on, of the same classes.
    protocols
        Names, separated by commas: knn, linear, linear_sgd, lowshot, finetune, supervised, layers, robust, dense,
        label_free.
    set_
        A protocol's setting by its path, as in --set linear_sgd.epochs=30.
    transfer
        More pictures to judge on in the same way, as NAME=TRAIN,TEST; may be given again.
    shifted
        More test pictures of the same classes, for robust, as NAME=DATA; may be given again.
    train_masks
        A folder of masks named as the training pictures, a class for each pixel, for dense.
    test_masks
        The same for the test pictures.
    no_leaks
        Do not look for test pictures that the training part has as well.
    no_cache
        Keep no features between calls.
    """
    from smallview.assess import evaluate as judge

    rows = judge(
        run,
        train,
        test,
        protocols,
        sets=sets_of(set_),
        transfer={name: _pair(name, data) for name, data in _named("--transfer", transfer).items()},
        shifted=_named("--shifted", shifted),
        masks=_both(train_masks, test_masks),
        **encoder.given(),
        **machine.given(),
        leaks=not no_leaks,
        cache=not no_cache,
        say=output.say,
    )
    if output.json:
        print(json.dumps({"run": run, "rows": [row.as_dict() for row in rows]}))
    else:
        shell.print_rows(rows)


def sweep(
    data: Place,
    /,
    *,
    over: Annotated[Named, Parameter(metavar="PATH=VALUE,VALUE")] = (),
    seeds: Whole = 1,
    random: Whole | None = None,
    by: Annotated[str | None, Parameter(metavar="NAME", completer=completion.words("linear", "knn", "label_free"))] = None,
    out: Place = "runs/sweep",
    method: Method | None = None,
    encoder: Encoder | None = None,
    epochs: Number | None = None,
    minutes: Minutes | None = None,
    size: Pixels | None = None,
    batch_size: Whole | None = None,
    set_: Sets = (),
    threads: Threads | None = None,
    output: OutputFlags = ANY_OUTPUT,
) -> None:
    """Train many choices of settings on nine tenths of the pictures, and rank them on the tenth that is left; never on a test part.

    The same command goes on with a sweep that was stopped. Its runs are ordinary ones: compare, evaluate and embed take them.

    Parameters
    ----------
    data
        Pictures, as for pretrain; labels, where they are known, choose settings and train nothing.
    over
        A setting and its values, as in --over optimizer.lr=0.1,0.3; also method, encoder, epochs, size, batch_size; may be given again.
    seeds
        Trainings of each choice.
    random
        Try so many of the combinations, drawn at random, instead of all.
    by
        linear or knn, on the tenth's labels; or label_free. Default: linear where there are labels.
    out
        The folder for all runs and sweep.json.
    method
        As for pretrain, the same for all.
    encoder
        As for pretrain, the same for all.
    epochs
        As for pretrain, the same for all.
    minutes
        As for pretrain, for each run.
    size
        As for pretrain, the same for all.
    batch_size
        As for pretrain, the same for all.
    set_
        Any setting by its path, the same for all.
    threads
        CPU threads. Default: the cores of this machine.
    """
    from smallview.sweeping import read_over
    from smallview.sweeping import sweep as search
    from smallview.training.launch import stopped_early

    flags = {"method": method, "encoder": encoder, "epochs": epochs, "minutes": minutes, "size": size, "batch_size": batch_size}
    given = {name: value for name, value in flags.items() if value is not None}
    if threads is not None:
        given["threads"] = threads
    with stopped_early(shell.go_on):
        found = search(
            data,
            read_over(over),
            out=out,
            seeds=seeds,
            random=random,
            by=by,
            given=given,
            sets=sets_of(set_),
            threads=threads,
            say=output.say,
        )
    if output.json:
        print(json.dumps(found.as_dict()))
        return
    paths = list(found.trials[0].settings)
    rows = [
        [
            *trial.settings.values(),
            "diverged" if trial.mean is None else f"{trial.mean:.2f}" + ("" if trial.std is None else f" ± {trial.std:.2f}"),
        ]
        for trial in found.trials
    ]
    shell.print_table([*paths, found.metric], rows, "chosen on a tenth of the pictures that no training saw, the best first")
    print(f"on all pictures: {found.command}")


def _named(flag: str, pairs: tuple[str, ...]) -> dict[str, str]:
    out: dict[str, str] = {}
    for pair in pairs:
        name, equals, data = pair.partition("=")
        if not equals or not name or not data:
            raise UsageError(f'{flag} is "{pair}"; wanted NAME=DATA, as in {flag} flowers=flowers/train,flowers/test')
        if name in out:
            raise UsageError(f"{flag} names {name} twice; wanted another name for each")
        out[name] = data
    return out


def _both(train: str | None, test: str | None) -> tuple[str, str] | None:
    if train is None and test is None:
        return None
    if train is None or test is None:
        raise UsageError("--train-masks and --test-masks go together; wanted both")
    return train, test


def _pair(name: str, data: str) -> tuple[str, str]:
    train, comma, test = data.partition(",")
    if not comma or not train or not test:
        raise UsageError(f'--transfer {name} is "{data}"; wanted TRAIN,TEST, two folders of class folders')
    return train, test


def compare(
    *runs: Place,
    by: Annotated[str | None, Parameter(metavar="METRIC")] = None,
    csv: Place | None = None,
    markdown: Place | None = None,
    json_: Json = False,
) -> None:
    """Set judged runs side by side: mean and spread over seeds, differences with intervals, costs, and who is best for its cost.

    Runs that differ by their seed alone are one column; each column is set against the first. Figures of different protocols or data
    are refused.

    Parameters
    ----------
    runs
        Run folders that evaluate has judged, the one to compare with first.
    by
        The metric that decides who is best for its cost, as in "linear top-1 %".
    csv
        A file for the table with a line per seed.
    markdown
        A file for the table, what it says, and every protocol in full.
    json_
        One JSON object on stdout.
    """
    from pathlib import Path

    from smallview.comparing import compare as comparison_of
    from smallview.comparing import csv_text, sentences, table
    from smallview.comparing import markdown as as_markdown
    from smallview.files import write_text

    if not runs:
        raise UsageError("no run is named; wanted run folders that smallview evaluate has judged")
    found = comparison_of(runs, by)
    for place, text in ((csv, csv_text), (markdown, as_markdown)):
        if place is not None:
            try:
                write_text(Path(place), text(found))
            except OSError as error:
                raise UsageError(f"cannot write {place}: {error.strerror}; name another file") from error
            say(f"written: {place}")
    if json_:
        print(json.dumps(found.as_dict()))
        return
    shell.print_table(*table(found), "frozen features unless the protocol says otherwise; mean ± standard deviation over seeds")
    for sentence in sentences(found):
        print(sentence)
