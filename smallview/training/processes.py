"""Several processes as one run, on torch's own engine: joined through its rendezvous, left together, gradients averaged by DDP."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from smallview import collectives
from smallview.errors import SmallviewError, UsageError
from smallview.joint_embedding import Embed
from smallview.networks.online_target import Networks
from smallview.training.supervise import LIFELINE

PATIENCE_S = 10.0
T = TypeVar("T")
_joins = itertools.count()
TIMEOUT = timedelta(hours=3)  # the others wait while the first one packs


def launched() -> bool:
    """Whether this is one of several processes that torchrun, or `--devices`, has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_world() -> int:
    """How many of the run's processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """This process as one of the run's, where several were launched; alone, nothing happens.

    CUDA tensors go through NCCL and CPU tensors through gloo; a process takes the GPU of its local rank. A group that was
    made before is used as it is.

    Raises:
        UsageError: a group that cannot send tensors of the CPU, or no GPU for this process. SmallviewError: no rendezvous.
    """
    if dist.is_available() and dist.is_initialized():
        if "gloo" not in str(dist.get_backend_config()):
            raise UsageError(
                f"the process group speaks {dist.get_backend()} only; wanted gloo for the CPU too: "
                'init_process_group("cpu:gloo,cuda:nccl")'
            )
        yield
        return
    if not launched():
        yield
        return
    hold_on_to_parent()
    backend = "gloo"
    if device in ("auto", "cuda") and torch.cuda.is_available():
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise UsageError(f"process {local} of this machine has no GPU: there are {there}; wanted one process for each")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, place, size = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun keeps its store over a restart, and a script may train twice: the addresses of those that are gone would be found in it
        attempt = torch._C._distributed_c10d.PrefixStore(
            f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.{next(_joins)}", store
        )
        dist.init_process_group(backend, store=attempt, rank=place, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise SmallviewError(
            f"the {os.environ['WORLD_SIZE']} processes did not find each other ({str(error).splitlines()[0]}); start them by "
            "smallview pretrain --devices N, or by torchrun"
        ) from error
    # Process 0 holds the meeting place: were it to refuse a setting at once and leave, the last to come would find nobody.
    collectives.wait_for_all()
    yield
    # Without it some runs of gloo abort on the way out. After an error nobody waits: the others may be gone.
    collectives.wait_for_all()
    dist.destroy_process_group()


def in_turn(work: Callable[[], T]) -> T:
    """What `work` gives, done by the first process of every machine before the others: what one builds the others find."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0 if launched() else collectives.rank() == 0
    if first:
        made = work()
    collectives.wait_for_all()
    return made if first else work()


def among_processes(networks: Networks) -> Embed:
    """What stands for the networks in a step: themselves, or DDP, which averages gradients while the backward pass goes on."""
    if collectives.world() == 1:
        return networks
    # BatchNorm's statistics and the bank are the same everywhere by themselves; torch has had two names for that choice
    named = inspect.signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers": False}
    # a group of its own: its transfers and those of BatchNorm and of the loss need no common order
    ddp: Embed = DistributedDataParallel(networks, process_group=dist.new_group(), gradient_as_bucket_view=True, **buffers)
    return ddp


def hold_on_to_parent() -> None:
    """Stop, saving first, when the process that started this one is gone, even if it was killed."""
    handle = os.environ.get(LIFELINE)
    if handle is None:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(int(handle), 1)  # nothing is ever written: it comes back when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os._exit(1)

    threading.Thread(target=wait, name="smallview-parent", daemon=True).start()
