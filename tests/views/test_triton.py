"""The Triton kernels in Triton's interpreter against torch's operations; tests/views/test_gpu.py runs them on a device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smallview.errors import UsageError
from smallview.views import kernel_triton
from smallview.views.making import ViewMaker
from smallview.views.view import View


@pytest.mark.skipif(kernel_triton.triton is None, reason="triton has no wheel for this platform")
def test_interpreted_kernels_make_the_views_that_torch_makes() -> None:
    script = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run([sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 30
    assert max(found.values()) < 0.6, found  # grey levels; two are promised, half precision takes the rest


def test_the_cpu_has_no_triton_and_says_so(packed: Callable[..., Any]) -> None:
    assert kernel_triton.unusable(torch.device("cpu")) == "the device is cpu"
    for channels, mode, why in (
        (3, "fast", "the device is cpu"),
        (1, "fast", "pictures have 1 channels"),
        (3, "parity", "views are in parity mode"),
    ):
        with pytest.raises(UsageError, match=f"executor is triton and {why}; wanted auto or torch"):
            ViewMaker(
                packed([(8, 8, channels)]), [View()], 8, [0.5] * channels, [0.25] * channels, 0, mode=mode, executor="triton"
            )


def test_a_device_on_which_triton_fails_is_told_of_and_left_to_torch(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fails(*given: object) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(kernel_triton, "_weights", fails)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
    monkeypatch.setattr(kernel_triton, "triton", object())
    kernel_triton.unusable.cache_clear()
    for _ in range(2):
        assert kernel_triton.unusable(torch.device("cuda")) == "triton makes no kernel here (Failed to find C compiler.)"
    assert [record.message for record in caplog.records].count(
        "Triton makes no kernel here, so that views take torch's slower operations: Failed to find C compiler."
    ) == 1
    kernel_triton.unusable.cache_clear()
