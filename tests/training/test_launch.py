from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallview.errors import LockedError, SmallviewError, StoppedError, UsageError
from smallview.training import launch
from smallview.training.launch import LOCK, MARKER, StopRequest, lock_folder, prepare_folder, stopped_early

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from smallview.training.launch import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
LOOP = """
import sys, time
from smallview.training.launch import StopRequest
with StopRequest(lambda line: print(line, flush=True)) as stop:
    print("ready", flush=True)
    while not stop.requested or sys.argv[1:] == ["stubborn"]:
        time.sleep(0.01)
print("saved", stop.signal, flush=True)
sys.exit(75)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("held", "ready")
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=10)
    return process.returncode, out


def test_no_torch() -> None:
    code = "import sys, smallview.training.launch, smallview.training.log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    process = start(HOLD, str(tmp_path))
    try:
        begun = time.monotonic()
        with pytest.raises(LockedError) as caught, lock_folder(tmp_path, wait_s=0.3):
            pass
        assert 0.3 <= time.monotonic() - begun < 5
        assert f"{tmp_path} is in use by pid {process.pid} on host " in str(caught.value)
        assert str(caught.value).endswith("; wait for it, or choose another folder with --out")
        assert caught.value.exit_code == 4
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid  # waiting in vain changes nothing
    finally:
        process.kill()
        finish(process)
    with lock_folder(tmp_path, wait_s=5) as lock:
        assert lock.held
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""


def test_waits_for_a_holder_that_ends(tmp_path: Path) -> None:
    process = start(HOLD, str(tmp_path))
    timer = threading.Timer(0.3, process.kill)
    timer.start()
    with lock_folder(tmp_path, wait_s=10) as lock:
        assert lock.held
    timer.join()
    finish(process)


def test_of_many_at_once_exactly_one_runs(tmp_path: Path) -> None:
    code = """
import sys, time
from smallview.errors import LockedError
from smallview.training.launch import lock_folder
try:
    with lock_folder(sys.argv[1], wait_s=0):
        print("held", flush=True)
        sys.stdin.read()
except LockedError as error:
    sys.exit(error.exit_code)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    deadline = time.monotonic() + 20
    while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    held = [p.communicate(timeout=10)[0].strip() == b"held" for p in processes]
    assert sum(held) == 1
    assert sorted(p.returncode for p in processes) == [0, 4, 4, 4, 4, 4]


def test_within_one_process(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        with pytest.raises(LockedError, match=f"pid {os.getpid()} on host"), lock_folder(tmp_path, wait_s=0):
            pass
        (tmp_path / LOCK).write_bytes(b"\xff{")
        with pytest.raises(LockedError, match="in use by another process; wait"), lock_folder(tmp_path, wait_s=0):
            pass


def test_without_locks_one_line_of_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(launch, "fcntl", None)
    with lock_folder(tmp_path, warn=lines.append) as lock:
        assert not lock.held
    assert lines == [f"{tmp_path} is not locked (this system has no file locks); start no second process on it"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    lines: list[str] = []
    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_folder(tmp_path, warn=lines.append) as lock:
        assert not lock.held
    assert "Operation not supported" in lines[0]


def test_prepare_makes_parents_and_marker(tmp_path: Path) -> None:
    path = prepare_folder(tmp_path / "a" / "b c é")
    assert os.listdir(path) == [MARKER]
    (path / "run.toml").write_text("x")
    assert prepare_folder(str(path)) == path
    assert (path / "run.toml").read_text() == "x"


def test_a_first_start_that_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"{MARKER}.tmp-1").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    assert (prepare_folder(tmp_path) / MARKER).exists()


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds other files and is no run folder; choose an empty or a new folder with --out"):
        prepare_folder(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "nul\0l"])
def test_what_cannot_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SmallviewError) as caught:
        prepare_folder(tmp_path / name)
    assert caught.value.exit_code == 1
    assert "choose another --out" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
@pytest.mark.parametrize("existing", [True, False])
def test_a_folder_without_permission(tmp_path: Path, existing: bool) -> None:
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from smallview.errors import SmallviewError
from smallview.training.launch import lock_folder, prepare_folder
if os.geteuid() == 0:
    os.seteuid(65534)
for use in (prepare_folder, lambda path: lock_folder(path).__enter__()):
    try:
        use(sys.argv[2])
    except SmallviewError as error:
        print(error.exit_code, error)
"""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    if existing:
        prepare_folder(tmp_path / "run").chmod(0o555)
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    tmp_path.chmod(0o755)
    if not done.stdout and "smallview" in done.stderr:
        pytest.skip("an unprivileged user cannot read this checkout")
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("1 cannot write to the folder")
    assert lines[0].endswith("Permission denied; choose another --out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: signal.Signals) -> None:
    process = start(LOOP)
    process.send_signal(number)
    assert finish(process) == (75, f"stopping after this step\nsaved {int(number)}\n")


def test_the_second_interrupt_ends_at_once() -> None:
    process = start(LOOP, "stubborn")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert finish(process) == (130, "stopping after this step\n")
    assert time.monotonic() - begun < 2


# ten seconds and more without an instruction of Python's own in the main thread, as in one backward pass
BUSY = """
import hashlib
from smallview.training.launch import StopRequest
with StopRequest(lambda line: print(line, flush=True)) as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
"""


def test_the_second_interrupt_ends_a_long_call_of_a_library() -> None:
    process = start(BUSY)
    for _ in range(2):
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert finish(process) == (130, "")
    assert time.monotonic() - begun < 2


def test_an_event_loops_ear_for_signals_stays() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    try:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            assert os.read(reading, 10) == bytes([signal.SIGTERM])
        assert signal.set_wakeup_fd(before) == writing
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def test_handlers_are_put_back() -> None:
    threads = threading.active_count()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        assert stop.signal == signal.SIGINT
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1 and threading.active_count() == threads


def test_in_another_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_a_message_that_fails_does_not_stop_the_stop() -> None:
    def announce(line: str) -> None:
        raise RuntimeError("reentrant call")

    with StopRequest(announce) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested


@pytest.fixture
def as_in_front() -> Iterator[None]:
    """Ctrl-C as a terminal's process has it: in one that was started behind, it is ignored from the first moment on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallow(number: signal.Signals) -> None:
    """What an import does that must not fail for the lack of something."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(10)
    except BaseException:
        return


@pytest.mark.usefixtures("as_in_front")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_early_signal_that_a_library_swallows_stops_the_training_at_its_first_step(number: signal.Signals) -> None:
    said: list[str] = []
    with stopped_early(lambda: "again"):
        swallow(number)
        with StopRequest(said.append) as stop:
            assert stop.requested and stop.signal == number
    assert said == ["stopping after this step"]
    with StopRequest() as stop:
        assert not stop.requested


@pytest.mark.usefixtures("as_in_front")
def test_what_fails_after_an_early_signal_is_the_stop() -> None:
    with pytest.raises(StoppedError, match="nothing is lost; go on with: again"), stopped_early(lambda: "again"):
        swallow(signal.SIGINT)
        raise RecursionError("half of a library")
    with pytest.raises(UsageError, match="mine"), stopped_early(lambda: "again"):
        swallow(signal.SIGINT)
        raise UsageError("mine")
    with pytest.raises(RecursionError), stopped_early(lambda: "again"):
        raise RecursionError("of its own")
    with pytest.raises(StoppedError), stopped_early(lambda: "again"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
