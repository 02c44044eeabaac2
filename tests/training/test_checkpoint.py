from __future__ import annotations

import builtins
import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smallview import files
from smallview.errors import SmallviewError
from smallview.training import checkpoint, tensor_file
from smallview.training.checkpoint import load_latest, save, sweep

torch.set_num_threads(1)


def tensors_of(step: int) -> dict[str, Tensor]:
    return {"weight": torch.arange(300, dtype=torch.float32) + step, "count": torch.tensor(step)}


def save_step(folder: Path, step: int, **options: Any) -> Path:
    return save(folder, step, tensors_of(step), {"epoch": step // 10}, **options)


def assert_holds(folder: Path, step: int) -> list[str]:
    loaded = load_latest(folder)
    assert loaded is not None
    found, tensors, state, notes = loaded
    assert found == step
    assert state == {"epoch": step // 10}
    assert {name: t.tolist() for name, t in tensors.items()} == {name: t.tolist() for name, t in tensors_of(step).items()}
    return notes


def test_round_trip_of_every_sort_of_tensor(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    tensors = {
        "bf16": torch.randn(3).bfloat16(),
        "half": torch.randn(3).half(),
        "double": torch.randn(3).double(),
        "int64": torch.tensor([2**62, -1]),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "tied.a": tied,
        "tied.b": tied,
        "slice": tied[1:3],
        "turned": tied.T,
        "every other": torch.arange(10)[::2],
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "expanded": torch.ones(1).expand(5),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    save(tmp_path / "c", 3, tensors, {"name": "é", "deep": [{"x": 1e-300}], "best": float("inf")})
    loaded = load_latest(tmp_path / "c")
    assert loaded is not None
    assert loaded[0] == 3
    assert loaded[2] == {"name": "é", "deep": [{"x": 1e-300}], "best": float("inf")}
    assert loaded[1].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[1][name].dtype == tensor.dtype
        assert torch.equal(loaded[1][name].nan_to_num(7.0), tensor.detach().nan_to_num(7.0)), name
    loaded[1]["bf16"].add_(1)  # what is loaded can be trained on
    assert save(tmp_path / "none", 0, {}, {}).is_dir()
    assert load_latest(tmp_path / "none") == (0, {}, {}, [])


def test_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None
    sweep(tmp_path / "absent")


def test_the_last_two_stay(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000, 1_000_001):
        save_step(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-1000000", "step-1000001"]
    assert (tmp_path / "latest").read_text() == "step-1000001\n"
    assert assert_holds(tmp_path, 1_000_001) == []
    save_step(tmp_path, 1_000_002, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-1000002"]


def test_same_state_gives_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_step(tmp_path / name, 7)
    for path in (tmp_path / "a" / "step-000007").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "step-000007" / path.name).read_bytes()


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 4, {"weight": torch.zeros(2)}, {"epoch": 9})
    save_step(tmp_path, 4)
    assert_holds(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000004"]
    (tmp_path / "step-000004" / "state.json").write_text("{")
    save_step(tmp_path, 4)
    assert_holds(tmp_path, 4)


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save_step(tmp_path / "c", 1)
    finally:
        os.umask(before)
    for name in ("tensors.safetensors", "state.json", "manifest.json", "../latest"):
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o640
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def points_of(prepare: Callable[[Path], object], act: Callable[[Path], object], folder: Path) -> list[str]:
    """The named moments that `act` passes, in order."""
    seen: list[str] = []
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_point", seen.append)
        act(folder)
    return seen


def die_at(moment: int, act: Callable[[Path], object], folder: Path) -> None:
    """Runs `act` in a forked process that ends, without any clean-up, at its moment of that number."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child
        left = [moment]

        def point(name: str) -> None:
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1

        checkpoint._point = point
        try:
            act(folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("second", [20, 10], ids=["next step", "same step"])
def test_killed_inside_a_save(tmp_path: Path, second: int) -> None:
    def prepare(folder: Path) -> None:
        save_step(folder, 10)

    def act(folder: Path) -> None:
        save_step(folder, second, keep=1)

    moments = points_of(prepare, act, tmp_path / "seen")
    assert len(moments) >= 8
    assert moments[-1] == "older one removed"
    for number, name in enumerate(moments):
        folder = tmp_path / str(number)
        prepare(folder)
        die_at(number, act, folder)
        reached = second if number >= moments.index("renamed") else 10
        assert assert_holds(folder, reached) == [], name
        sweep(folder)
        assert assert_holds(folder, reached) == [], name
        left = [path.name for path in folder.iterdir() if "tmp" in path.name or "old" in path.name]
        assert left == [], name
        save_step(folder, 30, keep=1)
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000030"]


def test_sweep_leaves_living_processes_alone(tmp_path: Path) -> None:
    for name in (f"step-000001.tmp-{os.getpid()}", f"step-000001.tmp-{os.getppid()}", "step-000001.tmp-99999999999", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / f".latest.tmp-{os.getpid()}").write_text("x")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", f"step-000001.tmp-{os.getppid()}"]


def damaged(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    save_step(tmp_path, 1_180)
    newest = save_step(tmp_path, 1_240)
    whole = (newest / name).read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        bit = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        (newest / name).write_bytes(flipped)
        notes = assert_holds(tmp_path, 1_180)
        assert len(notes) == 1
        assert notes[0].startswith("step 1,240 is damaged (")
        assert notes[0].endswith("); using step 1,180")
    (newest / name).write_bytes(whole)
    assert assert_holds(tmp_path, 1_240) == []


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_cut_lengthened_and_missing_files(tmp_path: Path, name: str) -> None:
    save_step(tmp_path, 1_180)
    newest = save_step(tmp_path, 1_240)
    whole = (newest / name).read_bytes()
    for part in (b"", whole[:1], whole[:8], whole[: len(whole) // 2], whole[:-1], whole + b"\0", whole * 2, b"[" * 100_000):
        (newest / name).write_bytes(part)
        assert_holds(tmp_path, 1_180)
    (newest / name).unlink()
    assert assert_holds(tmp_path, 1_180) == [f"step 1,240 is damaged ({name} is missing); using step 1,180"]
    (newest / name).mkdir()
    assert_holds(tmp_path, 1_180)


def test_the_note_says_what_happened(tmp_path: Path) -> None:
    save_step(tmp_path, 1_180)
    damaged(save_step(tmp_path, 1_240), "tensors.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))
    assert assert_holds(tmp_path, 1_180) == ["step 1,240 is damaged (hash); using step 1,180"]


def test_files_and_folders_swapped_between_steps(tmp_path: Path) -> None:
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        folder = tmp_path / name
        old, new = save_step(folder, 1), save_step(folder, 20)
        held = (old / name).read_bytes()
        (old / name).write_bytes((new / name).read_bytes())
        (new / name).write_bytes(held)
        with pytest.raises(SmallviewError, match=r"no checkpoint in .* can be used: step 20 is damaged"):
            load_latest(folder)
    folder = tmp_path / "whole"
    old, new = save_step(folder, 1), save_step(folder, 20)
    shutil.rmtree(new)
    shutil.copytree(old, new)
    assert assert_holds(folder, 1) == ["step 20 is damaged (it is step 1 under another name); using step 1"]


def test_a_newer_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallview.training import manifest

    save_step(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT_VERSION", 2)
        save_step(tmp_path, 2)
    assert assert_holds(tmp_path, 1) == ["step 2 is damaged (written by a newer smallview); using step 1"]


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    damaged(save_step(tmp_path, 2), "state.json", lambda raw: b"")
    save_step(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001", "step-000003"]


class FailingDisk:
    """Raises at the k-th write or sync, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int, number: int) -> None:
        self.count, self.fails_at, self.number = 0, fails_at, number
        real_sync = os.fsync

        def fake_open(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = builtins.open(path, mode, *args, **options)  # noqa: SIM115
            return _Wrapped(file, self) if "w" in mode else file

        def fake_sync(handle: int) -> None:
            self.step()
            real_sync(handle)

        monkeypatch.setattr(checkpoint, "open", fake_open, raising=False)
        monkeypatch.setattr(files, "open", fake_open, raising=False)
        monkeypatch.setattr(os, "fsync", fake_sync)
        monkeypatch.setattr(checkpoint, "_CHUNK", 256)

    def step(self) -> None:
        self.count += 1
        if self.count == self.fails_at:
            raise OSError(self.number, os.strerror(self.number))


class _Wrapped:
    def __init__(self, file: Any, disk: FailingDisk) -> None:
        self.file, self.disk = file, disk

    def write(self, data: Any) -> int:
        self.disk.step()
        return int(self.file.write(data))

    def __enter__(self) -> _Wrapped:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("second", [20, 10], ids=["next step", "same step"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_write(tmp_path: Path, second: int, number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        save_step(tmp_path / "count", 10)
        disk = FailingDisk(patch, 0, number)
        save_step(tmp_path / "count", second)
        total = disk.count
    assert total > 10
    failures = 0
    for k in range(1, total + 1):
        folder = tmp_path / str(k)
        save_step(folder, 10)
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, k, number)
            try:
                save_step(folder, second)
            except SmallviewError as error:
                failures += 1
                assert "training goes on with the checkpoint of step 10" in str(error)
                assert assert_holds(folder, 10) == []
                assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000010"]
            else:  # syncing a folder is asked for, not insisted on
                assert_holds(folder, second)
    assert failures >= total - 3


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"weight": torch.zeros(250_000)}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_500_000))
    with pytest.raises(SmallviewError, match="cannot save step 1,180: 2 MB free, 2 MB needed; training goes on with no"):
        save(tmp_path / "c", 1_180, big, {})
    save_step(tmp_path / "c", 1_180)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12_345))
    with pytest.raises(SmallviewError) as caught:
        save(tmp_path / "c", 1_240, big, {})
    assert str(caught.value) == (
        "cannot save step 1,240: 12 kB free, 2 MB needed; training goes on with the checkpoint of step 1,180"
    )
    assert_holds(tmp_path / "c", 1_180)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SmallviewError, match="cannot save step 1: Not a directory"):
        save_step(tmp_path / "file" / "c", 1)
    assert load_latest(tmp_path / "file") is None


def test_state_that_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save(tmp_path, 1, tensors_of(1), {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_milestones_stay_beside_the_last_two(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {}, milestone=step in (2, 5))
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    # the newest counts as one of the two, whatever it is
    assert names == ["step-000002", "step-000004", "step-000005"]
    checkpoint.save(tmp_path, 6, {"w": torch.zeros(3)}, {})
    checkpoint.save(tmp_path, 7, {"w": torch.zeros(3)}, {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [f"step-00000{i}" for i in (2, 5, 6, 7)]
    manifest = tmp_path / "step-000006" / "manifest.json"
    # nobody makes a milestone of a checkpoint by writing into its manifest
    manifest.write_text(manifest.read_text().replace('"format_version"', '"milestone": true,\n "format_version"'))
    checkpoint.save(tmp_path, 8, {"w": torch.zeros(3)}, {})
    assert not (tmp_path / "step-000006").exists()


def test_a_named_step(tmp_path: Path) -> None:
    for step in (4, 5):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {"at": step})
    step, tensors, state, notes = checkpoint.load_step(tmp_path, 4)
    assert (step, tensors["w"].tolist(), state, notes) == (4, [4.0] * 3, {"at": 4}, [])
    with pytest.raises(SmallviewError, match=r"there is no step 7 in .*; there are 4, 5"):
        checkpoint.load_step(tmp_path, 7)
    with pytest.raises(SmallviewError, match="there is none at all"):
        checkpoint.load_step(tmp_path / "nothing", 7)
    path = tmp_path / "step-000004" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(SmallviewError, match=r"step 4 in .* is damaged"):
        checkpoint.load_step(tmp_path, 4)


def test_a_checkpoint_that_was_good_and_changed_is_found_when_older_ones_go(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {})
    path = tmp_path / "step-000002" / "tensors.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    checkpoint.save(tmp_path, 3, {"w": torch.zeros(3)}, {})
    # the damaged one went, and the one before it stayed in its place
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["step-000001", "step-000003"]


def test_the_file_is_one_that_the_library_reads_with_every_type_layout_and_shape() -> None:
    import safetensors.torch

    source = torch.Generator().manual_seed(0)
    shared = torch.randn(6, 4, generator=source)
    tensors = {
        "image": torch.randn(2, 3, 4, 5, generator=source).contiguous(memory_format=torch.channels_last),
        "a": shared,
        "b": shared[1:3, ::2],
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        'näme "quoted"': torch.tensor([True, False]),
        **{f"of {dtype}": (torch.arange(5) - 1).to(dtype) for dtype in tensor_file.NAMES},
    }
    read = safetensors.torch.load(b"".join(tensor_file.pieces_of(tensors)))
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape and torch.equal(read[name], value), name
