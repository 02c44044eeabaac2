"""The fault matrix with its target figures: kills, full disks, flipped bits, signals, dead processes. `make soak` runs all of it.

    python benchmarks/soak.py               # all rows, about half an hour on two cores
    python benchmarks/soak.py F1 F5         # some
    python benchmarks/soak.py --share 0.05  # a trial with a twentieth of the tries

A line is printed for each row; docs/reliability.md gets the table, in which rows that were not run stay as they were. Ends with 1 where a
figure misses its target.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from kill_server import Server  # noqa: E402

from smallview.errors import SmallviewError  # noqa: E402
from smallview.training import checkpoint  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
METHODS = ("simclr", "moco_v2", "byol", "simo", "relic", "light_moco", "barlow_twins", "lejepa")
COUNTED = re.compile(r"(\d+) (passed|failed|error)")


@dataclass(frozen=True)
class Row:
    """A row's outcome. extra: what else was found."""

    tries: int
    survived: int
    extra: str = ""


@dataclass(frozen=True)
class Fault:
    """A row of the matrix: what happens, what the user sees, how often it is tried, what does it, the tests that hold it in `make test`."""

    fault: str
    seen: str
    target: int
    run: Callable[[Path, int], Row]
    held: str


def environment(desk: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "SMALLVIEW_CACHE": str(desk / "cache"), "OMP_NUM_THREADS": "1"}


def pictures(desk: Path) -> Path:
    path = desk / "array.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), dtype=np.uint8))
    return path


def tokens(desk: Path, out: Path, method: str, epochs: int = 4, *more: str) -> list[str]:
    text = f"pretrain {pictures(desk)} --method {method} --size 16 --batch-size 16 --epochs {epochs} --threads 1"
    return [*text.split(), "--save-every", "0.1", "--out", str(out), *more]


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def losses(folder: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records]


def start(desk: Path, given: list[str]) -> subprocess.Popen[str]:
    """A process, and a group, of its own."""
    command = [sys.executable, "-m", "smallview", *given]
    return subprocess.Popen(
        command,
        cwd=desk,
        env=environment(desk),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def naming(text: str) -> list[int]:
    """The processes, but this one, whose command names the text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def kills(desk: Path, count: int) -> Row:
    """F1: SIGKILL at random moments, over methods with every kind of state; each run must end with the bytes of one left alone."""
    server, draw = Server(desk), random.Random("F1")
    tries = survived = resumed = runs = 0
    times: dict[str, float] = {}
    while tries < count:
        method = METHODS[runs % len(METHODS)]
        whole = desk / f"whole-{method}"
        if not whole.exists():
            begun = time.monotonic()
            code, said = server.run(tokens(desk, whole, method))
            assert code == 0, said
            times[method] = time.monotonic() - begun
        seconds = times[method]
        out, good, killed = desk / "killed", True, 0
        wanted = min(1 + runs % 3, count - tries)  # kills of one run
        while True:
            begun = time.monotonic()
            child = server.start(tokens(desk, out, method))
            if killed < wanted:
                end = time.monotonic() + draw.uniform(0.02, 0.8) * seconds
                while time.monotonic() < end and not _ended(child):
                    time.sleep(0.002)
                os.kill(child, signal.SIGKILL)
            code, said = server.end()
            good &= "Traceback" not in said and "damaged" not in said and code in (0, -signal.SIGKILL)
            resumed += "resuming at step" in said
            if code != -signal.SIGKILL:
                # what else the machine does changes how long a run takes
                times[method] = (
                    min(seconds, time.monotonic() - begun) if killed == 0 else 0.9 * seconds + 0.1 * min(times.values())
                )
                break
            killed += 1
        runs += 1
        tries += killed
        survived += killed * (good and weights(out) == weights(whole) and losses(out) == losses(whole))
        shutil.rmtree(out)
    server.close()
    return Row(tries, survived, f"{runs} runs, {resumed} starts went on from a checkpoint")


def _ended(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def saves(desk: Path, count: int) -> Row:
    """F2: a kill between any two system calls of a save, and at random moments of a loop that only saves."""
    folder, good, tries = desk / "saves", 0, 0
    tensors = {f"layer {i}": torch.randn(20_000) for i in range(6)}

    def child(work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(0)
        return pid

    def look(first: int) -> bool:
        checkpoint.sweep(folder)
        loaded = checkpoint.load_latest(folder)
        left = [path.name for path in folder.iterdir() if "tmp" in path.name or ".old-" in path.name]
        return loaded is not None and loaded[0] >= first and not left and len(loaded[1]) == 6

    checkpoint.save(folder, 1, tensors, {})
    points: list[str] = []
    seen, checkpoint._point = checkpoint._point, points.append
    checkpoint.save(folder, 2, tensors, {})
    checkpoint.save(folder, 2, tensors, {})
    checkpoint.save(folder, 3, tensors, {})
    checkpoint._point = seen
    for step in (3, 4):  # a step that was there, and a new one
        for k in range(len(points)):
            passed = [0]

            def point(name: str, k: int = k, passed: list[int] = passed) -> None:
                passed[0] += 1
                if passed[0] > k:
                    os.kill(os.getpid(), signal.SIGKILL)

            def work(step: int = step, point: Callable[[str], None] = point) -> None:
                checkpoint._point = point
                checkpoint.save(folder, step, tensors, {})

            os.waitpid(child(work), 0)
            tries += 1
            good += look(2)
    draw, step, came = random.Random("F2"), 10, 0
    for _ in range(count):
        reading, writing = os.pipe()

        def loop(first: int = step, writing: int = writing) -> None:
            for at in range(first, first + 1000):
                checkpoint.save(folder, at, tensors, {})
                os.write(writing, at.to_bytes(4, "big"))

        pid = child(loop)
        os.close(writing)
        time.sleep(draw.uniform(0.002, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        announced = int.from_bytes(said[-4:], "big") if said else step - 1
        came += len(said) // 4
        tries += 1
        good += look(announced if said else 2)
        loaded = checkpoint.load_latest(folder)
        step = max(announced, loaded[0] if loaded else 0, step) + 1
    return Row(tries, good, f"{len(points)} points of a save; {came} saves between the kills")


def signals(desk: Path, count: int) -> Row:
    """F3: SIGTERM and Ctrl-C, from the imports on, to a process and its group, of one and of two; then the same command to the end."""
    draw, good, slowest = random.Random("F3"), 0, 0.0
    server, whole = Server(desk), {}
    for devices in (1, 2):
        whole[devices] = desk / f"whole-{devices}"
        assert _to_end(desk, tokens(desk, whole[devices], "byol", 20, "--devices", str(devices)))[0] == 0
    for n in range(count):
        number, devices = (signal.SIGTERM, signal.SIGINT)[n % 2], 2 if n % 5 == 4 else 1
        out = desk / f"stopped-{n}"
        given = tokens(desk, out, "byol", 20, "--devices", str(devices))
        if n % 5 < 3:  # a fork, as quick as it can be
            child = server.start(given)
            time.sleep(draw.uniform(0.05, 1.5))
            begun = time.monotonic()
            os.kill(child, number)
            code, said = server.end()
            ended = time.monotonic() - begun
        else:
            process = start(desk, given)
            if devices == 1:
                time.sleep(draw.uniform(0.4, 5.0))  # also while libraries are imported
            else:
                wait_for(out / "run.toml", process)
                time.sleep(draw.uniform(0.0, 1.0))
            begun = time.monotonic()
            (os.killpg if n % 4 < 2 else os.kill)(process.pid, number)
            said = process.communicate(timeout=60)[1]
            code, ended = process.returncode, time.monotonic() - begun
        slowest = max(slowest, ended)
        right = code in (75, 0) and "Traceback" not in said and ended < 3.5
        first = f"signal {int(number)} to {devices}, exit {code} after {ended:.1f} s: {said[-1500:]}"
        for _ in range(60):
            if not naming(str(out)):
                break
            time.sleep(0.1)
        left = naming(str(out))
        right &= not left
        code, said = server.run(given) if devices == 1 else _to_end(desk, given)
        same = code == 0 and weights(out) == weights(whole[devices])
        if right and same and "Traceback" not in said:
            good += 1
        else:
            print(f"F3 try {n}: {first}\nleft: {left}; then exit {code}, same bytes {same}: {said[-1500:]}", flush=True)
        shutil.rmtree(out)
    server.close()
    return Row(count, good, f"slowest end {slowest:.1f} s")


def _to_end(desk: Path, given: list[str]) -> tuple[int, str]:
    process = start(desk, given)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def impatience(desk: Path, count: int) -> Row:
    """F4: a second Ctrl-C, 50 ms later, ends a run in the middle of its step or its save; an earlier checkpoint is there."""
    server, good = Server(desk), 0
    for n in range(count):
        out = desk / f"impatient-{n}"
        child = server.start(
            tokens(desk, out, "simclr", 1000, "--encoder", "resnet18")
        )  # so large that its steps and saves take long
        while not (out / "checkpoints" / "latest").exists():
            time.sleep(0.01)
        os.kill(child, signal.SIGINT)
        time.sleep(0.05)
        begun = time.monotonic()
        os.kill(child, signal.SIGINT)
        code, said = server.end()
        at_once = code == 130 and time.monotonic() - begun < 2.0
        good += at_once and "Traceback" not in said and checkpoint.load_latest(out / "checkpoints") is not None
        shutil.rmtree(out)
    server.close()
    return Row(count, good)


def dead_ranks(desk: Path, count: int) -> Row:
    """F5: one of two processes is killed; all start again by themselves and end with the bytes of two left alone."""
    draw, good = random.Random("F5"), 0
    whole = desk / "two"
    code, said = _to_end(desk, tokens(desk, whole, "moco_v2", 20, "--devices", "2"))
    assert code == 0, said
    tries = n = 0
    while tries < count and n < 2 * count:
        out, n = desk / f"dead-{n}", n + 1
        process = start(desk, tokens(desk, out, "moco_v2", 20, "--devices", "2"))
        wait_for(out / "checkpoints" / "latest", process)
        time.sleep(draw.uniform(0.0, 1.0))
        ranks = sorted(pid for pid in naming(str(out)) if pid != process.pid)
        if len(ranks) == 2:
            os.kill(ranks[n % 2], signal.SIGKILL)
        said = process.communicate(timeout=120)[1]
        restarted = f"process {n % 2} died (signal 9); all start again" in said
        right = process.returncode == 0 and "Traceback" not in said
        right = right and weights(out) == weights(whole) and losses(out) == losses(whole)
        tries += restarted or not right  # a run that had ended before is none
        good += restarted and right
        shutil.rmtree(out)
    return Row(tries, good, f"{n} runs")


def bit_rot(desk: Path, count: int) -> Row:
    """F8: one bit of the newest checkpoint flips, anywhere in its files; the one before must be taken, and the damage told."""
    folder, draw, good = desk / "rot", random.Random("F8"), 0
    for step in (1, 2):
        checkpoint.save(folder, step, {"w": torch.randn(1000), "n": torch.arange(7)}, {"seconds": 1.5})
    files = sorted((folder / "step-000002").iterdir())
    sizes = [path.stat().st_size for path in files]
    for _ in range(count):
        # each file as often as the others: by size alone, the manifest would hardly be hit
        path = draw.choice(files)
        kept = path.read_bytes()
        data = bytearray(kept)
        data[draw.randrange(sizes[files.index(path)])] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            loaded = checkpoint.load_latest(folder)
            good += loaded is not None and loaded[0] == 1 and "step 2 is damaged" in loaded[3][0]
        except SmallviewError:
            pass
        path.write_bytes(kept)
    loaded = checkpoint.load_latest(folder)
    assert loaded is not None and loaded[0] == 2
    return Row(count, good)


def fuzz(*more: str) -> Callable[[Path, int], Row]:
    """F12: mutated pictures of ten formats. F9, with --weights: mutated files of weights, and such that hold code."""

    def run(desk: Path, count: int) -> Row:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), *more, "--files", str(count)],
            env=environment(desk),
            capture_output=True,
            text=True,
            check=False,
        )
        return Row(count, count if done.returncode == 0 else 0, " ".join(done.stdout.split("\n")[-2:]).strip()[:80])

    return run


def two_starts(desk: Path, count: int) -> Row:
    """F22: the same command twice at once: one runs, the other tells who does and ends with 4."""
    good = 0
    for n in range(count):
        out = desk / f"twice-{n}"
        given = tokens(desk, out, "simclr", 4000)
        pair = [start(desk, given) for _ in range(2)]
        end = time.monotonic() + 60
        while all(process.poll() is None for process in pair) and time.monotonic() < end:
            time.sleep(0.05)
        ended = [process for process in pair if process.poll() is not None]
        right = len(ended) == 1 and ended[0].returncode == 4
        for process in pair:
            running = process.poll() is None
            process.kill()
            said = process.communicate()[1]
            right &= running or "in use by pid" in said
        code, _ = _to_end(desk, [*tokens(desk, out, "simclr", 4000), "--print-config"])
        good += right and code == 0
        shutil.rmtree(out)
    return Row(count, good)


def demo(desk: Path, count: int) -> Row:
    """F35: the demo, killed once, then to its end, then again: the same figures, and nothing done twice."""
    command = [sys.executable, "-m", "smallview", "demo", "--json"]
    process = subprocess.Popen(command, cwd=desk, env=environment(desk), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(25)
    process.kill()
    process.wait()
    told, seconds = [], []
    for _ in range(2):
        begun = time.monotonic()
        done = subprocess.run(command, cwd=desk, env=environment(desk), capture_output=True, text=True, check=False)
        seconds.append(time.monotonic() - begun)
        told.append((done.returncode, done.stdout))
    same = told[0][0] == 0 and _figures(told[0][1]) == _figures(told[1][1])
    return Row(1, int(same and seconds[1] < 20), f"again in {seconds[1]:.0f} s")


def _figures(text: str) -> list[str]:
    return re.findall(r"\"(?:value|mean)\": ([0-9.]+)", text)


def pytest_row(*arguments: str, worth: int = 1, **more: str) -> Callable[[Path, int], Row]:
    """The outcome of tests, each a try, or so many as it is worth."""

    def run(desk: Path, count: int) -> Row:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        values = {name: str(count) if value == "count" else value for name, value in more.items()}
        done = subprocess.run(
            command, cwd=ROOT, env={**environment(desk), **values}, capture_output=True, text=True, check=False
        )
        found = {word: int(n) for n, word in COUNTED.findall(done.stdout.splitlines()[-1] if done.stdout else "")}
        tests = sum(found.values())
        tries = count if "count" in more.values() and tests else tests
        survived = tries if done.returncode == 0 else found.get("passed", 0)
        return Row(worth * tries, worth * survived, f"{tests} tests")

    return run


EVERY = -1  # as many as there are
SLOW = "slow or not slow"
FAULTS: dict[str, Fault] = {
    "F1": Fault(
        "`kill -9` or power cut at any moment",
        '"resuming at step 1,240"; the run ends with the bytes of one left alone',
        200,
        kills,
        "test_run.py (25 kills, 4 methods)",
    ),
    "F2": Fault("kill inside a save", "as F1; no temporary file stays", 200, saves, "test_checkpoint.py (every point)"),
    "F3": Fault(
        "SIGTERM, first Ctrl-C",
        '"stopping after this step", exit 75; no orphans; the same command goes on to the same bytes',
        50,
        signals,
        "test_run.py, distributed/test_devices.py, faults/test_interrupted_imports.py",
    ),
    "F4": Fault("second Ctrl-C", "ends at once, exit 130", 20, impatience, "test_run.py"),
    "F5": Fault(
        "one of several processes dies",
        '"process 1 died (signal 9); all start again from the last checkpoint"',
        20,
        dead_ranks,
        "distributed/test_devices.py",
    ),
    "F6": Fault(
        "another number of processes",
        "the same pictures in the same steps, losses of 20 float64 steps within 1e-6, every method, 1, 2 and 4 processes",
        EVERY,
        pytest_row("-m", SLOW, "tests/distributed/test_steps_distributed.py", "--timeout=600"),
        "distributed/test_steps_distributed.py (1 and 2)",
    ),
    "F7": Fault(
        "disk full or failing at the k-th write, for every k",
        '"cannot save step 1,240: 12 MB free, 45 MB needed; training goes on with the checkpoint of step 1,180"',
        EVERY,
        pytest_row(
            "tests/training/test_checkpoint.py", "tests/faults/test_full_disk.py", "-k", "full or fail or write or disk"
        ),
        "test_checkpoint.py, faults/test_full_disk.py",
    ),
    "F8": Fault(
        "a bit of a checkpoint flips", '"step 1,240 is damaged (hash); using step 1,180"', 1000, bit_rot, "test_checkpoint.py"
    ),
    "F9": Fault(
        "weights that hold code, claim too much, or are mutated",
        '"refused: it holds code (posix.system), which is never run"',
        10_000,
        fuzz("--weights"),
        "faults/test_hostile_weights.py (102 files)",
    ),
    "F10, F11, F15": Fault(
        "bad pictures, few or many; odd folders",
        "each named in bad_files.jsonl; exit 3 where they are many",
        EVERY,
        pytest_row(
            "-m", SLOW, "tests/data/test_odd_input.py", "tests/data/test_sources.py", "tests/faults/test_bad_pictures.py"
        ),
        "data/test_odd_input.py, data/test_sources.py, faults/test_bad_pictures.py",
    ),
    "F12": Fault("mutated and hostile pictures", "left out and named", 10_000, fuzz(), "data/test_fuzz.py (2,000 files)"),
    "F16": Fault(
        "pictures changed between two starts",
        '"14 pictures are gone, 3 are new; --accept-data-change to go on", exit 3',
        EVERY,
        pytest_row("tests/test_pictures.py", "tests/data/test_changes.py"),
        "test_pictures.py",
    ),
    "F18": Fault(
        "a disk that hangs",
        '"no batch for 60 s; step 813 reads ..."; goes on when it answers',
        EVERY,
        pytest_row("tests/training/test_prefetch.py", "tests/test_pictures.py", "-k", "wait or come"),
        "test_prefetch.py, test_pictures.py",
    ),
    "F19": Fault(
        "numbers that are not finite",
        '"batch skipped (1/3)", its pictures named; exit 5 after three; nothing of it in the weights',
        EVERY,
        pytest_row(
            "tests/training/test_loop.py", "tests/contracts", "tests/faults", "-k", "finite or infinite or skipped or row"
        ),
        "test_loop.py, contracts (every method), faults/test_numbers.py",
    ),
    "F20": Fault(
        "collapse, from step 200 on, in every method",
        "a verdict within 50 steps; none for runs left alone",
        EVERY,
        pytest_row("-m", SLOW, "tests/training/test_watched_runs.py", "--timeout=1800"),
        "test_watched_runs.py",
    ),
    "F21": Fault(
        "memory that does not suffice",
        '"a batch of 256 does not fit into memory; activations are computed again", or advice and exit 1',
        EVERY,
        pytest_row("tests/training/test_memory.py", "tests/training/test_loop.py", "-k", "memory or fit or piece or recompute"),
        "test_loop.py, test_memory.py",
    ),
    "F22": Fault(
        "two starts in one folder",
        '"in use by pid 4711 on host a since 10:02", exit 4',
        20,
        two_starts,
        "test_launch.py, test_run.py",
    ),
    "F23": Fault(
        "a folder that cannot be written",
        "one line before any data is read, exit 1",
        EVERY,
        pytest_row(
            "tests/training/test_launch.py", "tests/faults/test_folders.py", "-k", "folder or read_only or parent or place"
        ),
        "test_launch.py, faults/test_folders.py",
    ),
    "F24": Fault(
        "settings that cannot be meant",
        "one line with the name that was meant, exit 2",
        2000,
        pytest_row("tests/faults/test_settings_fuzz.py", SMALLVIEW_SOAK_EXAMPLES="count"),
        "faults/test_settings_fuzz.py (200)",
    ),
    "F25": Fault(
        "other settings on going on",
        "refused with what differs",
        EVERY,
        pytest_row(
            *("tests/test_run.py", "tests/test_continuing.py", "tests/faults/test_going_on.py"),
            *("-k", "settings or refuse or changed or free or length or version"),
        ),
        "test_run.py, test_continuing.py, faults/test_going_on.py (every setting of every method)",
    ),
    "F30": Fault("no network", "works", EVERY, pytest_row("tests/faults/test_offline.py"), "faults/test_offline.py"),
    "F31": Fault(
        "kill while pictures are packed",
        "the next start goes on; equal to an uninterrupted build",
        50,
        pytest_row("-m", SLOW, "tests/data/test_pack_build.py", "--timeout=900", "-k", "random_moments and 50", worth=50),
        "data/test_pack_build.py (8 kills)",
    ),
    "F32": Fault("the clock jumps", "sane times", EVERY, pytest_row("tests/faults/test_clock.py"), "faults/test_clock.py"),
    "F34": Fault(
        "LC_ALL=C, odd letters in paths",
        "works, the same bytes",
        EVERY,
        pytest_row("tests/faults/test_locale.py"),
        "faults/test_locale.py",
    ),
    "F35": Fault("the demo, killed and run twice", "the same figures", 1, demo, "test_road.py"),
}


def table(results: dict[str, list[str]]) -> str:
    head = "| | fault | what you see | tried | survived | target | in `make test` |\n|---|---|---|---:|---:|---:|---|"
    return "\n".join([head, *(f"| {' | '.join(results[name])} |" for name in FAULTS if name in results)])


def read_table() -> dict[str, list[str]]:
    inside = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in inside.splitlines()
        if line.startswith("| F")
    ]
    return {cells[0]: cells for cells in rows}


def machine() -> str:
    name = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "this machine",
    )
    words = " ".join(name.replace("(R)", "").split()[:2])
    return f"{len(os.sched_getaffinity(0))} cores of an {words}, Python {sys.version.split()[0]}, torch {torch.__version__.split('+')[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(FAULTS))
    parser.add_argument("--share", type=float, default=1.0, help="part of the tries; under 1 nothing is written down")
    parser.add_argument("--desk", type=Path, help="folder for everything, kept; else a temporary one")
    given = parser.parse_args()
    unknown = [name for name in given.rows if name not in FAULTS]
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # started behind, this process ignores it, and its children would too
    results = read_table()
    missed = []
    for name in given.rows or FAULTS:
        fault = FAULTS[name]
        count = max(1, round(fault.target * given.share)) if fault.target > 0 else 0
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-", dir=given.desk) as folder:
            row = fault.run(Path(folder), count)
        target = fault.target if fault.target > 0 else row.tries
        good = row.survived == row.tries > 0 and (given.share < 1.0 or row.tries >= target)
        if not good:
            missed.append(name)
        print(
            f"{name}: {row.survived:,} of {row.tries:,} (target {target:,}) in {time.monotonic() - begun:.0f} s; {row.extra}"
            + ("" if good else "  <- MISSED"),
            flush=True,
        )
        cells = [name, fault.fault, fault.seen, f"{row.tries:,}", f"{row.survived:,}", f"{target:,}", fault.held]
        results = {**read_table(), name: cells}  # rows that another process has written meanwhile stay
        if given.share >= 1.0:
            date = datetime.date.today().isoformat()
            before, rest = PAGE.read_text().split(BEGIN)
            after = rest.split(END)[1]
            PAGE.write_text(f"{before}{BEGIN}\n{machine()}, {date}.\n\n{table(results)}\n{END}{after}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
