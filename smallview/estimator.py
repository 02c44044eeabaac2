"""The scikit-learn face: an encoder pretrained on X without y, for pipelines, searches and cross-validation."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from smallview.beside import BAD
from smallview.config import smallest_side
from smallview.data.pack_folders import cache_in
from smallview.data.packing import open_pack
from smallview.data.sources import Source, open_source
from smallview.data.tables import Range, Shape, as_bytes, check_range, far_outside, range_of, shape_of_row
from smallview.errors import DataError, StoppedError
from smallview.evaluation.features import extract, recalibrate
from smallview.evaluation.subject import evaluation_pack, open_subject
from smallview.files import read_jsonl
from smallview.networks.encoders import load_encoder
from smallview.parts import fresh_encoder
from smallview.run import pretrain
from smallview.settle import kept_threads, settle, thread_count
from smallview.single import Run
from smallview.training.precision import cpu_flags, fixed_rule

MOST_SEEDS = 2**31
# torch's number of threads is one for the process: two fits in two threads of it would take each other's
_one_at_a_time = threading.Lock()


class SelfSupervisedEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer: `fit` trains an encoder on pictures without labels, `transform` gives features float32 [N, F].

    X: whatever `pretrain` takes (uint8 [N, H, W] or [N, H, W, C], a list of pictures or of paths, a folder, a data set), a Series or one
    column of paths, arrays of other numbers, and tables [N, H * W * C] in which a row is a picture, flattened as by `reshape(N, -1)`.
    Numbers that are no bytes are rounded to 256 levels between black and white: those within 0..1 as they are, all others between
    the smallest and the largest that fit saw. What lies outside later is cut off, and a warning tells of another scale.

    method, encoder, size, epochs, minutes, batch_size, device: as in `pretrain`, whose defaults hold where they are None.
    steps: the length, in steps; one of epochs, minutes and steps. epochs=0 is the untrained encoder, a floor to compare with.
    sets: settings at any depth by path, as in {"optimizer.lr": 0.001}.
    weights_from: a run or encoder folder to start from; with epochs=0 to take as it is, and then it may be a name of timm's too.
    image_shape: (H, W) or (H, W, C) of a table's pictures, one of them perhaps -1. None: square gray ones, from 8 x 8 on, if no number
        is below 0; all else is refused.
    value_range: (black, white); None: found by fit, as above.
    threads: None is OMP_NUM_THREADS, which joblib sets in its processes, else all processors.
    out: keeps the run folder, and goes on with a run that was stopped there. None: a temporary one.
    random_state: an int gives the same bits each time at the same number of threads, those of `pretrain` with this seed.
    verbose: 1 tells how the training does.

    Fitted: encoder_, a module in evaluation mode, and encoder_config_; seed_, threads_; run_, the folder kept or None; history_, the
    records of metrics.jsonl; cost_; image_shape_, value_range_; n_features_in_ of tables. Weights are held: a pickle needs no folder.

    Raises:
        ValueError: tables and parameters that cannot be meant. SmallviewError: pictures and settings, as in `pretrain`. KeyboardInterrupt:
            on Ctrl-C, once the run is saved. A collapse is a ConvergenceWarning.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> pixels = load_digits(n_class=2).data[:40]  # [40, 64], from 0 to 16
        >>> encoder = SelfSupervisedEncoder(encoder="dense_small:8-16", epochs=1, random_state=0, threads=1).fit(pixels)
        >>> encoder.transform(pixels).shape, encoder.image_shape_, encoder.value_range_
        ((40, 16), (8, 8, 1), (0.0, 16.0))
    """

    image_shape_: Shape | None
    value_range_: Range | None

    def __init__(
        self,
        method: str | None = None,
        encoder: str | nn.Module | None = None,
        *,
        size: int | None = None,
        epochs: float | None = None,
        minutes: float | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        sets: Mapping[str, object] | None = None,
        weights_from: str | Path | None = None,
        image_shape: Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        device: str = "auto",
        threads: int | None = None,
        out: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.encoder = encoder
        self.size = size
        self.epochs = epochs
        self.minutes = minutes
        self.steps = steps
        self.batch_size = batch_size
        self.sets = sets
        self.weights_from = weights_from
        self.image_shape = image_shape
        self.value_range = value_range
        self.device = device
        self.threads = threads
        self.out = out
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def from_run(cls, run: str | Path, **parameters: Any) -> Self:
        """The encoder of a trained run, fitted already; `fit` trains nothing, and a clone's reads the run again.

        run: a run or encoder folder, or the name of timm's weights on this machine. parameters: image_shape and value_range for
        tables; size; threads; encoder, the module, where the run trained one of yours.

        Example:
            >>> import smallview as sv
            >>> pictures = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     run = sv.pretrain(pictures, encoder="dense_small:8-16", epochs=1, out=f"{folder}/run", quiet=True)
            ...     SelfSupervisedEncoder.from_run(run.path).transform(pictures).shape
            (8, 16)
        """
        wrapped = cls(weights_from=run, epochs=0, **parameters)
        wrapped.image_shape_, wrapped.value_range_ = None, check_range(wrapped.value_range)
        wrapped._take_weights(thread_count(wrapped.threads))
        return wrapped

    def fit(self, X: Any, y: object = None) -> Self:
        """Train an encoder on the pictures of X; with epochs=0 take that of `weights_from`, or an untrained one. y is not looked at."""
        given = [name for name in ("epochs", "minutes", "steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; wanted one of them, or none for 100 epochs")
        self.image_shape_, self.value_range_ = None, check_range(self.value_range)
        pictures = self._pictures(X, fitting=True)
        threads, seed = _threads(self.threads), self._seed()
        if self.epochs is not None and self.epochs == 0:
            if self.weights_from is not None:
                self._take_weights(threads)
            else:
                with _one_at_a_time, _packs_of(pictures):
                    self._untrained(pictures, seed, threads)
            return self
        with _one_at_a_time, _packs_of(pictures), _folder(self.out) as folder:
            run = self._pretrained(pictures, folder, seed, threads)
            self.encoder_, self.encoder_config_ = load_encoder(run.path, into=run.encoder)
            self.history_ = read_jsonl(run.path / "metrics.jsonl")
            self.cost_ = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))["cost"]
        self.run_ = None if self.out is None else run.path
        self.seed_, self.threads_ = seed, threads
        if self.cost_.get("verdict") in BAD:
            told = f"the embeddings are {self.cost_['verdict']}; try a lower learning rate, sets={{'optimizer.lr': ...}}, or another method"
            warnings.warn(told, ConvergenceWarning, stacklevel=2)
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Features float32 [N, F] of the pictures, in X's order.

        Raises:
            NotFittedError. DataError: pictures that cannot be decoded, named: every row of X is owed a row. ValueError: another width.
        """
        check_is_fitted(self, "encoder_")
        pictures = self._pictures(X, fitting=False)
        threads = _threads(self.threads)
        with _one_at_a_time, _packs_of(pictures), kept_threads():
            torch.set_num_threads(threads)
            source, pack = evaluation_pack(pictures, self.encoder_config_, threads=threads, labels=False)
            if pack.bad:
                named = ", ".join(f"{bad.name} ({bad.reason})" for bad in pack.bad[:3])
                raise DataError(
                    f"{len(pack.bad):,} of {len(source):,} pictures cannot be decoded, e.g. {named}; leave them out of X and y: every row "
                    "of X is owed a row of features"
                )
            # in the layout that embed and evaluate take, so that all of them give the same bits
            layout = fixed_rule(self.encoder_, torch.device("cpu"), cpu_flags()).memory_format
            net = copy.deepcopy(self.encoder_).to(memory_format=layout)
            return extract(net, self.encoder_config_, pack, memory_format=layout, threads=threads).numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.encoder_config_.features)

    def _seed(self) -> int:
        """An int is the seed that `pretrain` has; anything else draws one."""
        state = self.random_state
        if isinstance(state, (int, np.integer)) and 0 <= state < MOST_SEEDS:
            return int(state)
        return int(check_random_state(state).randint(MOST_SEEDS - 1))

    def _pretrained(self, pictures: Any, folder: Path, seed: int, threads: int) -> Run:
        names = ("size", "steps", "batch_size", "device", "weights_from")
        settings = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        settings |= {} if "weights_from" not in settings else {"weights_from": str(self.weights_from)}
        try:
            return pretrain(
                *(pictures, self.method, self.encoder, folder, self.epochs, self.minutes, seed),
                sets=self.sets,
                quiet=not self.verbose,
                threads=threads,
                **settings,
            )
        except StoppedError as error:
            # no Exception, which a search over parameters would take for a score of nan and go on
            kept = str(error) if self.out is not None else "stopped; its temporary run folder is gone, and out=DIR keeps one"
            raise KeyboardInterrupt(kept) from error

    def _take_weights(self, threads: int) -> None:
        assert self.weights_from is not None
        if isinstance(self.encoder, nn.Module):
            self.encoder_, self.encoder_config_ = load_encoder(self.weights_from, into=copy.deepcopy(self.encoder))
            self.cost_, self.seed_ = {}, 0
        else:
            subject = open_subject(self.weights_from, size=self.size)
            self.encoder_, self.encoder_config_ = subject.encoder, subject.config
            self.cost_, self.seed_ = subject.cost, subject.seed
        self.history_, self.run_, self.threads_ = [], None, threads

    def _untrained(self, pictures: Any, seed: int, threads: int) -> None:
        """The encoder as its training would begin, with the BatchNorm statistics of the pictures: the floor of `evaluate`."""
        given = {name: getattr(self, name) for name in ("method", "size", "batch_size", "device")}
        source = open_source(pictures, labels=False)
        config, _ = settle(pictures, source, {**given, "seed": seed, "threads": threads}, None, self.sets, self.encoder)
        with kept_threads():
            torch.set_num_threads(threads)
            pack = open_pack(source, short_side=smallest_side(config), kind=config.pack, threads=threads)
            net, self.encoder_config_ = fresh_encoder(config, pack, self.encoder)
            self.encoder_ = recalibrate(net, self.encoder_config_, pack)
        self.history_, self.cost_, self.run_ = [], {}, None
        self.seed_, self.threads_ = seed, threads

    def _pictures(self, X: Any, *, fitting: bool) -> Any:
        """X as `open_source` takes it."""
        X = _column(X)
        if _is_table(X):
            rows = validate_data(self, X, reset=fitting, dtype="numeric", ensure_min_samples=2 if fitting else 1)
            known = self.image_shape if fitting or self.image_shape_ is None else self.image_shape_
            shape = shape_of_row(rows.shape[1], known, least=float(rows.min()))
            if fitting:
                self.image_shape_ = shape
            return self._bytes(rows.reshape(-1, *shape), fitting)
        if fitting:
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
        if isinstance(X, np.ndarray):
            array = check_array(X, dtype="numeric", allow_nd=True, ensure_2d=False, ensure_min_samples=2 if fitting else 1)
            if fitting:
                height, width, channels = (*array.shape[1:], 1)[:3]
                self.image_shape_ = (height, width, channels)
            return self._bytes(array, fitting)
        return X

    def _bytes(self, values: npt.NDArray[Any], fitting: bool) -> npt.NDArray[np.uint8]:
        if fitting and self.value_range_ is None:
            self.value_range_ = range_of(values)
        span = self.value_range_
        if span is None:
            span = range_of(values)
            if span not in ((0.0, 255.0), (0.0, 1.0)):
                raise ValueError(
                    f"the numbers go from {span[0]:g} to {span[1]:g}; wanted bytes, 0..1, or value_range=(black, white)"
                )
        if far_outside(values, span):
            warnings.warn(
                f"numbers from {values.min():g} to {values.max():g}, and {span[0]:g} is black and {span[1]:g} is white; "
                "wanted the scale that fit saw, or value_range=(black, white)",
                stacklevel=4,
            )
        return as_bytes(values, span)


def _threads(asked: int | None) -> int:
    told = os.environ.get("OMP_NUM_THREADS", "")
    return thread_count(int(told) if asked is None and told.isdecimal() and int(told) else asked)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _column(X: Any) -> Any:
    """The list of pictures or paths in a Series, a frame or array of one column, or an array of objects; anything else as it is."""
    if getattr(X, "shape", (0,))[1:] not in ((), (1,)):
        return X
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "OUT" or values.size == 0:
        return X
    entries = values.reshape(-1).tolist()
    return entries if _is_path(entries[0]) or isinstance(entries[0], (Image.Image, np.ndarray)) else X


def _is_table(X: Any) -> bool:
    """Whether X is rows of numbers, or what scikit-learn has to refuse as such."""
    if _is_path(X) or isinstance(X, (Source, Image.Image)):
        return False
    if isinstance(X, (list, tuple)):
        first = X[0] if len(X) else None
        return isinstance(first, (list, tuple, int, float, complex, np.number)) or (
            isinstance(first, np.ndarray) and first.ndim < 2
        )
    if hasattr(X, "ndim"):
        return bool(X.ndim < 3)
    return hasattr(X, "__array__") or hasattr(X, "__array_interface__") or hasattr(X, "__dataframe__")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="smallview-") as folder:
        yield Path(folder) / "run"


@contextmanager
def _packs_of(pictures: Any) -> Iterator[None]:
    """Pictures in memory leave no pack in the cache: every fold of a cross-validation would leave its own."""
    several = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    if all(_is_path(entry) or isinstance(entry, Source) for entry in several):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="smallview-") as folder, cache_in(Path(folder)):
        yield
