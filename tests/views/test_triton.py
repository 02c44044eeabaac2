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
    assert kernel_triton.unusable(torch.device("cpu")) in ("cpu is no CUDA device", "triton is not installed")
    with pytest.raises(UsageError, match="executor is triton, and it makes no views on a CPU; wanted auto or torch"):
        ViewMaker(packed([(8, 8, 3)]), [View()], 8, [0.5] * 3, [0.25] * 3, 0, executor="triton")
