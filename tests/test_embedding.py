"""Embeddings on the disk: as they come, stopped anywhere and gone on with, to the bytes of those that were left alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import smallview as sv
from smallview import embedding
from smallview.cli import main
from smallview.errors import LockedError, SmallviewError, StoppedError, UsageError
from smallview.evaluation.features import features_of
from smallview.networks.encoders import EncoderConfig, build_encoder, save_encoder
from smallview.output import row_file
from smallview.training.launch import lock_folder
from smallview.training.progress import Counting

resource = pytest.importorskip("resource", reason="no limit of file sizes can be had here")
pytestmark = pytest.mark.usefixtures("apart")
N, SIDE = 40, 8
MOMENTS = (
    *(
        ("rows written", 1),
        ("rows written", 7),
        ("rows synced", 1),
        ("rows synced", 6),
        ("word written", 1),
        ("word written", 6),
    ),
    *(("index named", 1), ("told about", 1), ("named", 1)),
)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten batches, each made certain."""
    monkeypatch.setattr(embedding, "BATCH", 4)
    monkeypatch.setattr(row_file, "SAVE_SECONDS", 0.0)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save(tmp_path / "encoder", 0)


def save(folder: Path, seed: int) -> Path:
    net, config = build_encoder("dense_small:8-16", size=SIDE, seed=seed)
    save_encoder(net, EncoderConfig(**{**vars(config), "mean": (0.5,) * 3, "std": (0.25,) * 3}), folder)
    return folder


def pictures(n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n, SIDE, SIDE, 3), dtype=np.uint8)


def embed(encoder: Any, out: Path, data: Any = None, **more: Any) -> str:
    """What is said."""
    said = io.StringIO()
    with Counting(stream=said) as lines:
        embedding.embed_into(
            encoder, pictures() if data is None else data, out, lines=lines, **{"threads": 1, "device": "cpu", **more}
        )
    return said.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def stop_at(monkeypatch: pytest.MonkeyPatch, moment: str, nth: int, what: Callable[[], None]) -> None:
    """At the n-th time that this moment comes, do it."""
    seen = 0

    def point(name: str) -> None:
        nonlocal seen
        seen += name == moment
        if name == moment and seen == nth:
            what()

    monkeypatch.setattr(row_file, "_point", point)


def test_a_file_has_the_bytes_that_numpy_writes(encoder: Path, tmp_path: Path) -> None:
    said = embed(encoder, tmp_path / "out")
    made = files(tmp_path / "out")
    assert sorted(made) == ["embeddings.json", "embeddings.npy", "index.jsonl"]
    # a busy machine waits for pictures and has the time to tell how far it is; nothing else is said
    assert all("no pictures for" in line or " pictures/s" in line for line in said.splitlines())
    whole = sv.embed(encoder, pictures(), threads=1, device="cpu")
    file = io.BytesIO()
    np.save(file, whole)
    assert made["embeddings.npy"] == file.getvalue() and whole.shape == (N, 16)
    index = [json.loads(line) for line in made["index.jsonl"].splitlines()]
    assert [line["row"] for line in index] == list(range(N))
    about = json.loads(made["embeddings.json"])
    assert about["rows"] == N and about["sha256"] == row_file.digest_of(tmp_path / "out" / "embeddings.npy")
    mapped = sv.embed(encoder, pictures(), out=tmp_path / "out", threads=1, device="cpu", quiet=True)
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped, whole)
    cut = sv.embed(encoder, pictures(), out=tmp_path / "cut", normalize=True, threads=1, device="cpu", quiet=True)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(("moment", "nth"), MOMENTS)
def test_killed_anywhere_it_ends_with_the_same_bytes(moment: str, nth: int, encoder: Path, tmp_path: Path) -> None:
    embed(encoder, tmp_path / "whole")
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                stop_at(patch, moment, nth, lambda: os.kill(os.getpid(), signal.SIGKILL))
                embed(encoder, out)
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = row_file.begun(out).get("rows")
    said = embed(encoder, out)
    if moment == "rows written":
        assert before == 4 * (nth - 1) and f"going on at picture {before} of {N}" in said
    assert files(out) == files(tmp_path / "whole")


def test_killed_again_and_again(encoder: Path, tmp_path: Path) -> None:
    embed(encoder, tmp_path / "whole")
    out = tmp_path / "out"
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                with pytest.MonkeyPatch.context() as patch:
                    stop_at(patch, "rows written", 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
                    embed(encoder, out)
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert row_file.begun(out)["rows"] == 4 * 2 * 4  # two certain batches each time
    embed(encoder, out)
    assert files(out) == files(tmp_path / "whole")


def test_a_signal_stops_it_and_the_same_command_goes_on(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("array.npy", pictures())
    line = ["embed", str(encoder), "array.npy", "--out", "out", "--device", "cpu", "--threads", "1"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        stop_at(patch, "rows written", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        main(line)
    said = capsys.readouterr().err
    assert ended.value.code == 75 and "Traceback" not in said
    assert "stopped at picture" in said and f"go on with: smallview {' '.join(line)}" in said
    main([*line, "--json"])
    told = capsys.readouterr()
    assert json.loads(told.out)["rows"] == N and "going on at picture" in told.err
    embed(encoder, tmp_path / "whole", "array.npy")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    main(line)
    assert "nothing was left to do" in capsys.readouterr().err


def test_what_is_finished_is_not_done_again_unless_it_is_damaged(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(encoder, out)
    made = files(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "_fill", lambda *_: pytest.fail("it is finished"))
        assert "nothing was left to do" in embed(encoder, out, threads=2)  # rows of other threads are as good
        (out / "index.jsonl").unlink()
        embed(encoder, out)
    assert files(out) == made
    data = bytearray(made["embeddings.npy"])
    data[-3] ^= 1
    (out / "embeddings.npy").write_bytes(data)
    assert "stay until these are whole" in embed(encoder, out)
    assert files(out) == made


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": pictures(seed=1)}, "other pictures"),
        ({"data": pictures(N - 1)}, "other pictures"),
        ({"normalize": True}, "another normalize"),
        ({"size": 12}, "another view"),
        ({"encoder": "other"}, "another encoder"),
    ],
)
def test_another_encoder_or_other_pictures_start_anew_with_a_word(
    change: dict[str, Any], told: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**change, "encoder": save(tmp_path / "other", 1) if "encoder" in change else encoder}
    embed(out=tmp_path / "whole", **given)
    half(encoder, tmp_path / "out")
    said = embed(out=tmp_path / "out", **given)
    assert "starting anew" in said and told in said
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    # finished ones stay until the new ones are whole
    old = files(tmp_path / "out")
    half(encoder, tmp_path / "out")
    assert files(tmp_path / "out").items() >= old.items()
    embed(encoder, tmp_path / "out")
    embed(encoder, tmp_path / "first")
    assert files(tmp_path / "out") == files(tmp_path / "first")


def half(encoder: Path, out: Path) -> None:
    """Stopped after five batches, by an exception in their midst."""

    def stop() -> None:
        raise RuntimeError("in the midst")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="in the midst"):
        stop_at(patch, "rows written", 6, stop)
        embed(encoder, out)


def test_damage_under_way_is_seen(encoder: Path, tmp_path: Path) -> None:
    embed(encoder, tmp_path / "whole")
    for name, at in ((row_file.PART, 200), (row_file.PART, 3), (row_file.STATE, 2)):
        out = tmp_path / f"out-{name}-{at}"
        half(encoder, out)
        data = bytearray((out / name).read_bytes())
        data[at] ^= 0x15
        (out / name).write_bytes(data)
        said = embed(encoder, out)
        assert "damaged; starting anew" in said or name == row_file.STATE
        assert files(out) == files(tmp_path / "whole")
    out = tmp_path / "short"
    half(encoder, out)
    os.truncate(out / row_file.PART, 300)
    assert "damaged; starting anew" in embed(encoder, out)
    assert files(out) == files(tmp_path / "whole")


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 100, 700, 1500, 2600])
def test_a_full_disk_leaves_a_state_that_goes_on(limit: int, encoder: Path, tmp_path: Path) -> None:
    embed(encoder, tmp_path / "whole")
    out = tmp_path / "out"
    with files_up_to(limit), pytest.raises(SmallviewError, match=r"cannot write to .*out: File too large"):
        embed(encoder, out)
    assert not (out / "embeddings.npy").exists()
    said = embed(encoder, out)
    assert ("going on at picture" in said) == (limit >= 1500)
    assert files(out) == files(tmp_path / "whole")


def test_a_disk_without_room_is_told_of_before_anything_is_written(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = embedding.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(embedding.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SmallviewError, match="0 MB free, 0 MB needed; make room"):
        embed(encoder, tmp_path / "out")


def test_one_process_writes(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(embedding, "lock_folder", lambda path, **more: lock_folder(path, wait_s=0.0, **more))
    with lock_folder(tmp_path / "out"), pytest.raises(LockedError, match="in use by pid"):
        embed(encoder, tmp_path / "out")


def test_broken_gray_and_labelled_pictures(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for n in range(6):
        (folder / f"class{n % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, n)[0, :, :, 0]).save(folder / f"class{n % 2}" / f"{n}.png")
    (folder / "class0" / "2.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    embed(encoder, out, folder)
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    wanted = ["class0/0.png", "class0/4.png", "class1/1.png", "class1/3.png", "class1/5.png"]
    assert [(line["row"], line["name"]) for line in index] == list(enumerate(wanted))
    assert index[0]["label"] == "class0" and np.load(out / "embeddings.npy").shape == (5, 16)
    assert json.loads((out / "bad_files.jsonl").read_text())["path"] == "class0/2.png"
    (folder / "class0" / "2.png").unlink()
    assert "are others; they stay" not in embed(encoder, out, folder) and not (out / "bad_files.jsonl").exists()


def test_a_module_of_the_users_own_stays_as_it_is(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.train()
    before = net[0].weight.stride()
    with torch.no_grad():
        wanted = net((torch.from_numpy(pictures()).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.25)
    made = sv.embed(net, pictures(), size=SIDE, threads=1, device="cpu", out=tmp_path / "out", quiet=True)
    assert net.training and net[0].weight.stride() == before
    np.testing.assert_allclose(made, wanted.numpy(), atol=1e-5)


def test_a_module_says_itself_how_many_channels_it_takes() -> None:
    net, _ = build_encoder("patches:8-12", in_channels=1, size=SIDE)
    assert sv.embed(net, pictures()[..., 0], size=SIDE, threads=1, device="cpu", quiet=True).shape == (N, 12 + 32)


def test_weights_of_others_embed(encoder: Path, tmp_path: Path) -> None:
    net = sv.load(encoder)
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "peer.pth")
    given = {"weights": tmp_path / "peer.pth", "size": SIDE, "threads": 1, "device": "cpu", "quiet": True}
    peer = sv.embed("dense_small:8-16", pictures(), **given)
    # the same weights, other statistics of pictures
    assert not np.array_equal(peer, sv.embed(encoder, pictures(), threads=1, device="cpu")) and peer.shape == (N, 16)
    with pytest.raises(UsageError, match="weights_coverage is 2;"):
        sv.embed("dense_small:8-16", pictures(), weights_coverage=2.0, out=tmp_path / "no", **given)
    assert not (tmp_path / "no").exists()
    with pytest.raises(UsageError, match="tensors of the encoder"):
        sv.embed("dense_small:8-24", pictures(), **given)


def test_progress_tells_speed_and_time_left_once_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = io.StringIO(), [0.0]
    monkeypatch.setattr("smallview.training.progress.time.monotonic", lambda: now[0])
    with Counting(stream=said) as lines:
        for done in range(0, 1001, 10):
            now[0] += 1.0
            lines("embedding", done, 1000)
    told = said.getvalue().splitlines()
    assert len(told) == 10 and "\x1b" not in said.getvalue()
    assert told[0] == "embedding 90/1,000 pictures · 10 pictures/s · 1 min 31 s left"


def test_a_stop_from_python_is_an_error_of_ours(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, "rows written", 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(StoppedError, match=r"stopped at picture .* of 40, and saved; the same call goes on"):
        sv.embed(encoder, pictures(), out=tmp_path / "out", threads=1, device="cpu", quiet=True)


class Slow(nn.Module):
    """Takes so long that what is made ahead has all been made when it looks at its views; what it gives is a part of them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return images.flatten(1)


def test_views_stay_while_the_encoder_looks_at_them(tmp_path: Path) -> None:
    embed(Slow(), tmp_path / "e", size=SIDE)
    wanted = (pictures().transpose(0, 3, 1, 2).reshape(N, -1) / 255.0 - 0.5) / 0.25
    np.testing.assert_allclose(np.load(tmp_path / "e" / row_file.NAME), wanted, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_stay_when_the_next_views_take_the_place_of_theirs(layout: torch.memory_format) -> None:
    views = torch.arange(3 * 2 * 3 * 4 * 4.0).reshape(3, 2, 3, 4, 4)
    place = torch.empty(2, 3, 4, 4)
    # a view of channels_last that holds no copy: [B, H, W, C] flattened, and the plain one
    encoder = Rows() if layout is torch.channels_last else nn.Flatten()
    made = list(features_of(encoder, (place.copy_(part) for part in views), "cpu", layout))
    wanted = [Rows()(part) if layout is torch.channels_last else part.flatten(1) for part in views]
    assert all(torch.equal(one, other) for one, other in zip(made, wanted, strict=True))


class Rows(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)
