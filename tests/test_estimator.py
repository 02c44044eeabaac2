"""SelfSupervisedEncoder keeps scikit-learn's rules, gives what pretrain and embed give, and needs nothing but itself once it is fitted."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import smallview as sv
from smallview import SelfSupervisedEncoder
from smallview.beside import Beside
from smallview.errors import DataError
from smallview.evaluation.features import weights_hash

TINY: dict[str, Any] = {"encoder": "dense_small:4-8", "epochs": 1, "threads": 1, "random_state": 0}
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (20, 8, 8, 3), np.uint8)
GRAY = PICTURES[..., 0].copy()

pytestmark = pytest.mark.usefixtures("apart")


def tiny(**parameters: Any) -> SelfSupervisedEncoder:
    return SelfSupervisedEncoder(**(TINY | parameters))


# Every check of scikit-learn applies and passes; its tables of 1 to 10 columns are taken for pictures of one row.
@parametrize_with_checks([tiny(image_shape=(1, -1), random_state=None)])
def test_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_features_are_those_of_pretrain_and_embed(tmp_path: Path) -> None:
    fitted = tiny(random_state=3, size=12).fit(PICTURES)
    run = sv.pretrain(
        PICTURES, encoder="dense_small:4-8", epochs=1, seed=3, size=12, threads=1, out=tmp_path / "run", quiet=True
    )
    assert weights_hash(fitted.encoder_) == weights_hash(run.encoder)
    found = fitted.transform(PICTURES[:7])
    assert found.dtype == np.float32 and found.shape == (7, 8)
    np.testing.assert_array_equal(found, sv.embed(run.path, PICTURES[:7], device="cpu", threads=1))
    assert fitted.seed_ == 3 and fitted.cost_["steps"] == 1 and fitted.history_[-1]["step"] == 1 and fitted.run_ is None


def test_labels_change_nothing_and_the_same_random_state_gives_the_same_bits() -> None:
    first = tiny().fit(GRAY)
    again = clone(first).fit(GRAY, np.arange(20))
    other = tiny(random_state=1).fit(GRAY)
    np.testing.assert_array_equal(first.transform(GRAY), again.transform(GRAY))
    assert weights_hash(first.encoder_) != weights_hash(other.encoder_)
    drawn = [tiny(random_state=np.random.RandomState(5)).fit(GRAY).seed_ for _ in range(2)]
    assert drawn[0] == drawn[1] != 0


@pytest.mark.parametrize(
    "form", ["list of arrays", "Pillow", "paths", "array of paths", "column of paths", "folder", "floats", "tensor"]
)
def test_pictures_in_any_form_give_the_same(form: str, tmp_path: Path) -> None:
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{i:02}.png")
    paths = [str(tmp_path / f"{i:02}.png") for i in range(len(PICTURES))]
    given: dict[str, Any] = {
        "list of arrays": list(PICTURES),
        "Pillow": [Image.fromarray(picture) for picture in PICTURES],
        "paths": paths,
        "array of paths": np.array(paths),
        "column of paths": np.array(paths, object)[:, None],
        "folder": tmp_path,
        "floats": PICTURES / 255,
        "tensor": torch.from_numpy(PICTURES).permute(0, 3, 1, 2),
    }
    wanted = tiny().fit(PICTURES).transform(PICTURES)
    fitted = tiny().fit(given[form])
    np.testing.assert_array_equal(fitted.transform(given[form]), wanted)
    assert not hasattr(fitted, "n_features_in_")


def test_tables_are_pictures_where_that_is_certain() -> None:
    wanted = tiny().fit(GRAY).transform(GRAY)
    for rows in (GRAY.reshape(20, -1), GRAY.reshape(20, -1).astype(np.float32) / 255):
        fitted = tiny().fit(rows)
        assert (fitted.n_features_in_, fitted.image_shape_) == (64, (8, 8, 1))
        np.testing.assert_array_equal(fitted.transform(rows), wanted)
    colour = tiny(image_shape=(8, 8, 3)).fit(PICTURES.reshape(20, -1))
    np.testing.assert_array_equal(colour.transform(PICTURES.reshape(20, -1)), tiny().fit(PICTURES).transform(PICTURES))
    of_arrays = tiny().fit(PICTURES)  # whose shape is known, and need not be guessed from a row
    assert of_arrays.transform(PICTURES.reshape(20, -1)).shape == (20, 8)
    assert not hasattr(colour.fit(PICTURES), "n_features_in_")


@pytest.mark.parametrize(
    ("rows", "parameters", "told"),
    [
        (RNG.random((20, 49)), {}, "a row has 49 numbers: its picture's shape is not certain"),
        (RNG.normal(size=(20, 64)), {}, "numbers down to -"),
        (RNG.random((20, 192)), {}, "wanted image_shape="),
        (RNG.random((20, 64)), {"image_shape": (5, 5)}, r"image_shape is \(5, 5\), and a row has 64 numbers"),
        (RNG.random((20, 64)), {"image_shape": (5, -1)}, "a row has 64 numbers"),
        (RNG.random((20, 64)), {"image_shape": 64}, "image_shape is 64; wanted"),
        (RNG.random((20, 64)), {"image_shape": (-1, -1)}, "one of which may be -1"),
        (RNG.random((20, 64)), {"value_range": (1, 1)}, "two numbers, the smaller one first"),
        (RNG.random((20, 64)), {"steps": 2}, "epochs and steps are given"),
        (RNG.random((1, 64)), {}, "1 sample"),
        (np.where(np.eye(20, 64) > 0, np.nan, 1.0), {}, "NaN"),
        (np.where(np.eye(20, 64) > 0, np.nan, 1.0).reshape(20, 8, 8), {}, "NaN"),
        (RNG.random(64), {}, "1D array"),
    ],
)
def test_what_cannot_be_meant_is_a_value_error(rows: Any, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny(**parameters).fit(rows)


def test_numbers_of_another_scale_are_told_and_not_guessed_anew() -> None:
    rows = GRAY.reshape(20, -1) / 16.0
    fitted = tiny().fit(rows)
    assert fitted.value_range_ == (GRAY.min() / 16, GRAY.max() / 16)
    np.testing.assert_array_equal(fitted.transform(rows[:3]), fitted.transform(rows)[:3])
    with pytest.warns(UserWarning, match="is black and .* is white; wanted the scale that fit saw"):
        fitted.transform(16.0 * rows)
    assert tiny(value_range=(0, 16)).fit(rows).value_range_ == (0.0, 16.0)
    with pytest.raises(ValueError, match=r"wanted bytes, 0\.\.1, or value_range="):
        SelfSupervisedEncoder.from_run(_encoder_folder(fitted)).transform(rows)


def _encoder_folder(fitted: SelfSupervisedEncoder) -> Path:
    from smallview.networks.encoders import save_encoder

    folder = Path(os.environ["SMALLVIEW_CACHE"]) / "encoder"
    save_encoder(fitted.encoder_, fitted.encoder_config_, folder)
    return folder


def test_a_picture_that_cannot_be_decoded_is_owed_a_row(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, picture in zip(paths, PICTURES, strict=False):
        Image.fromarray(picture).save(path)
    paths[2].write_bytes(b"no picture")
    fitted = tiny().fit(paths)
    with pytest.raises(DataError, match=r"1 of 6 pictures cannot be decoded, e.g. 2.png .* leave them out of X and y"):
        fitted.transform(paths)
    assert fitted.transform(paths[3:]).shape == (3, 8)


@pytest.mark.parametrize("dump", ["pickle", "joblib"])
@pytest.mark.parametrize("encoder", ["dense_small:4-8", "module"])
def test_it_holds_its_weights_itself(dump: str, encoder: str, tmp_path: Path) -> None:
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    out = tmp_path / "run"
    fitted = tiny(encoder=own if encoder == "module" else encoder, out=out).fit(PICTURES)
    assert fitted.run_ == out and (out / "encoder" / "model.safetensors").exists()
    wanted = fitted.transform(PICTURES)
    out.rename(tmp_path / "gone")
    np.testing.assert_array_equal(fitted.transform(PICTURES), wanted)
    if dump == "pickle":
        back = pickle.loads(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / "fitted.joblib")
        back = joblib.load(tmp_path / "fitted.joblib")
    np.testing.assert_array_equal(back.transform(PICTURES), wanted)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    large = list(RNG.integers(0, 256, (6, 96, 96, 3), np.uint8))  # these are packed, which bytes of small arrays are not
    tiny(size=16).fit(large).transform(large)
    assert not list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_fitting_into_the_same_folder_goes_on(tmp_path: Path) -> None:
    first = tiny(out=tmp_path / "run").fit(PICTURES)
    again = tiny(out=tmp_path / "run").fit(PICTURES)
    assert weights_hash(first.encoder_) == weights_hash(again.encoder_)
    with pytest.raises(DataError, match="the pictures changed"):
        tiny(out=tmp_path / "run").fit(PICTURES[:19])


def test_a_run_is_wrapped_without_training(tmp_path: Path) -> None:
    run = sv.pretrain(GRAY, encoder="dense_small:4-8", epochs=1, threads=1, out=tmp_path / "run", quiet=True)
    wanted = sv.embed(run.path, GRAY, device="cpu", threads=1)
    wrapped = SelfSupervisedEncoder.from_run(run.path, threads=1, image_shape=(8, 8))
    for ready in (wrapped, wrapped.fit(GRAY.reshape(20, -1)), clone(wrapped).fit(GRAY[:2]), FrozenEstimator(wrapped)):
        np.testing.assert_array_equal(ready.transform(GRAY), wanted)
        np.testing.assert_array_equal(ready.transform(GRAY.reshape(20, -1)), wanted)
    model = make_pipeline(wrapped, LogisticRegression()).fit(GRAY, np.arange(20) % 2)
    np.testing.assert_array_equal(model[:-1].transform(GRAY), wanted)
    further = tiny(weights_from=run.path, sets={"optimizer.lr": 1e-9}).fit(GRAY)
    torch.testing.assert_close(further.encoder_.body[0].weight, run.encoder.body[0].weight)


@pytest.mark.slow
def test_two_processes_score_as_one() -> None:
    model = make_pipeline(tiny(), LogisticRegression())
    alone = cross_val_score(model, GRAY, np.arange(20) % 2, cv=2, n_jobs=1)
    np.testing.assert_array_equal(alone, cross_val_score(model, GRAY, np.arange(20) % 2, cv=2, n_jobs=2))


@pytest.mark.parametrize("encoder", ["dense_small:4-8", "module"])
def test_no_epochs_are_the_untrained_encoder(encoder: str) -> None:
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    given: dict[str, Any] = {"encoder": own if encoder == "module" else encoder, "size": 12}
    untrained, still = tiny(**given, epochs=0).fit(PICTURES), tiny(**given, sets={"optimizer.lr": 1e-9}).fit(PICTURES)
    assert untrained.encoder_config_ == still.encoder_config_
    for (name, one), other in zip(untrained.encoder_.named_parameters(), still.encoder_.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    norm = next(module for module in untrained.encoder_.modules() if isinstance(module, nn.BatchNorm2d))
    first = next(module for module in untrained.encoder_.modules() if isinstance(module, nn.Conv2d))
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, given, out: seen.append(out))
    untrained.transform(PICTURES)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_pipelines_and_searches() -> None:
    digits = load_digits(n_class=2)
    rows, labels = digits.data[:60], digits.target[:60]
    model = Pipeline([("encoder", tiny()), ("head", LogisticRegression())])
    search = GridSearchCV(model, {"encoder__epochs": [0, 1], "head__C": [0.1, 1.0]}, cv=2, error_score="raise")
    search.fit(rows.reshape(-1, 8, 8), labels)
    assert search.best_score_ > 0.6  # zeros and ones
    assert list(model.fit(rows, labels)[:-1].get_feature_names_out()) == [f"selfsupervisedencoder{i}" for i in range(8)]


def test_threads_follow_what_joblib_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert tiny(threads=None).fit(GRAY).threads_ == 1
    assert tiny(threads=2).fit(GRAY).threads_ == 2
    assert torch.get_num_threads() == 1


def test_unfitted_and_half_fitted_are_not_fitted() -> None:
    with pytest.raises(NotFittedError):
        tiny().transform(GRAY)
    half = tiny(encoder="no_such_encoder")
    with pytest.raises(sv.SmallviewError, match="no_such_encoder"):
        half.fit(GRAY.reshape(20, -1))
    with pytest.raises(NotFittedError):
        half.transform(GRAY)


def test_it_is_silent_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    tiny().fit(GRAY).transform(GRAY)
    assert capfd.readouterr() == ("", "")
    tiny(verbose=1).fit(GRAY)
    assert "step 1/1" in capfd.readouterr().err


def test_a_collapse_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = Beside.summary
    monkeypatch.setattr(Beside, "summary", lambda beside: summary(beside) | {"verdict": "collapsed"})
    with pytest.warns(ConvergenceWarning, match="the embeddings are collapsed; try"):
        tiny().fit(GRAY)


def test_ctrl_c_ends_a_search_and_not_only_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Beside, "_watch", interrupted)
    model = Pipeline([("encoder", tiny(epochs=50)), ("head", LogisticRegression())])
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt, match="out=DIR keeps one"):
        cross_val_score(model, GRAY, np.arange(20) % 2, cv=2)
    assert len(calls) == 1


def test_pandas_goes_in_and_out(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(GRAY.reshape(20, -1), columns=[f"pixel{i}" for i in range(64)], index=range(100, 120))
    fitted = tiny().set_output(transform="pandas").fit(frame)
    found = fitted.transform(frame)
    assert list(found.index) == list(frame.index) and found.columns[0] == "selfsupervisedencoder0"
    assert list(fitted.feature_names_in_)[:2] == ["pixel0", "pixel1"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(frame[frame.columns[::-1]])
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, picture in zip(paths, PICTURES, strict=False):
        Image.fromarray(picture).save(path)
    named = pd.DataFrame({"path": [str(path) for path in paths]})
    assert tiny().fit(named["path"]).transform(named[["path"]]).shape == (6, 8)


@pytest.mark.slow
def test_a_fresh_process_reads_the_pickle(tmp_path: Path) -> None:
    fitted = tiny().fit(GRAY)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    np.save(tmp_path / "gray.npy", GRAY)
    code = "import joblib, numpy as np; np.save('found.npy', joblib.load('fitted.joblib').transform(np.load('gray.npy')))"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), fitted.transform(GRAY))
