"""Help comes at once: neither `import smallview` nor `smallview --help` loads torch or numpy."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "timm", "sklearn", "PIL", "numba")


def loaded_after(code: str) -> list[str]:
    told = f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return done.stderr.split()


@pytest.mark.parametrize(
    "tokens",
    [["--help"], ["pretrain", "--help"], ["demo", "--help"], ["--version"], []],
    ids=lambda tokens: " ".join(tokens) or "bare",
)
def test_help_loads_nothing_heavy(tokens: list[str]) -> None:
    assert loaded_after(f"from smallview.cli import main\nmain({tokens!r})") == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import smallview\ndir(smallview)") == []


def test_a_misspelt_flag_is_told_without_torch() -> None:
    code = "from smallview.cli import main\ntry:\n    main(['pretrain', 'x', '--epoch', '3'])\nexcept SystemExit: pass"
    told = " ".join(loaded_after(code))
    assert told == "smallview: Unknown option: --epoch. Did you mean --epochs? See smallview pretrain --help."


def cpu_seconds(*command: str) -> float:
    """User and system time of one process, which other processes on the machine hardly change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_takes_at_most_a_fifth_of_importing_torch() -> None:
    shown = min(cpu_seconds("-m", "smallview", "--help") for _ in range(2))
    imported = min(cpu_seconds("-c", "import torch") for _ in range(2))
    assert shown <= imported / 5, f"--help {shown:.2f} s, import torch {imported:.2f} s"


def test_a_name_of_the_package_stays_what_it_is() -> None:
    """A module that has a function's name would take its place once it is imported."""
    code = (
        "import smallview, types\n"
        "import smallview.cli_evaluate, smallview.sweeping, smallview.planning\n"
        "for name in smallview.__all__ * 2:\n"
        "    assert not isinstance(getattr(smallview, name), types.ModuleType), name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
