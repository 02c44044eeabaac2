"""Which pictures in which step, and the statistics of a pack.

The order is a function of (seed, step) alone, so that resuming needs no saved state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from smallview.data.pack import Pack
from smallview.errors import UsageError
from smallview.records import Batch
from smallview.seeds import generator

_CHUNK = 2**20


def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of n pictures in one epoch, int64 [n].

    Example:
        >>> sorted(epoch_order(4, seed=0, epoch=7).tolist())
        [0, 1, 2, 3]
    """
    return generator(seed, "order", epoch).permutation(n).astype(np.int64, copy=False)


def batches(
    n: int, batch_size: int, seed: int, start_step: int, stop_step: int, *, total_steps: int | None = None
) -> Iterator[Batch]:
    """The batches of steps start_step to stop_step - 1, each with `batch_size` positions of n pictures.

    An epoch is n // batch_size steps; what is left of its order is dropped. Where one starts makes no difference to what
    follows. Their progress is step / total_steps, or 0 where that is None. Raises UsageError where no batch can be filled.

    Example:
        >>> [(batch.step, batch.epoch, len(batch.index)) for batch in batches(5, 2, seed=0, start_step=1, stop_step=4)]
        [(1, 0, 2), (2, 1, 2), (3, 1, 2)]
    """
    if not 1 <= batch_size <= n:
        raise UsageError(f"batch size {batch_size:,} with {n:,} pictures; wanted 1 to {n:,}: set a smaller --batch-size")
    if start_step < 0:
        raise UsageError(f"start step {start_step}; wanted 0 or more")
    if total_steps is not None and total_steps < max(1, stop_step):
        raise UsageError(f"steps to {stop_step:,} of {total_steps:,} in all; wanted at least as many in all")
    return _batches(n, batch_size, seed, start_step, stop_step, total_steps)


def _batches(n: int, batch_size: int, seed: int, start_step: int, stop_step: int, total_steps: int | None) -> Iterator[Batch]:
    steps = n // batch_size
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(start_step, stop_step):
        if step // steps != epoch:
            epoch = step // steps
            order = epoch_order(n, seed, epoch)
        first = step % steps * batch_size
        progress = 0.0 if total_steps is None else step / total_steps
        yield Batch(index=order[first : first + batch_size], epoch=epoch, step=step, progress=progress)


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The part of a batch that process `rank` of `world` makes views of: the parts of all, in order, are the batch.

    Batches that do not divide evenly give the first processes one picture more; which pictures train in which step does not
    depend on the number of processes.

    Example:
        >>> batch = Batch(np.arange(5), epoch=0, step=0)
        >>> [share(batch, rank, 2).index.tolist() for rank in (0, 1)]
        [[0, 1, 2], [3, 4]]
    """
    if not 0 <= rank < world:
        raise UsageError(f"process {rank} of {world}; wanted 0 to {world - 1}")
    n, more = divmod(len(batch.index), world)
    first = rank * n + min(rank, more)
    return replace(batch, index=batch.index[first : first + n + (rank < more)])


def channel_statistics(pack: Pack, seed: int, most: int = 2000) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(mean, standard deviation), each float64 [C] for pixels in 0..1, over at most `most` pictures picked by the seed.

    Every picture counts the same, whatever its size. The deviation is at least 1/255, one gray level, so that flat pictures can
    be normalised.
    """
    n = len(pack)
    chosen = np.arange(n) if n <= most else np.sort(generator(seed, "statistics").choice(n, most, replace=False))
    first, second = np.zeros(pack.channels), np.zeros(pack.channels)
    for i in chosen:
        pixels = pack[int(i)].reshape(-1, pack.channels)
        for c in range(pack.channels):
            shares = _histogram(pixels[:, c]) / len(pixels)
            levels = np.arange(256) / 255
            first[c] += shares @ levels
            second[c] += shares @ levels**2
    mean = first / len(chosen)
    deviation = np.sqrt(np.maximum(second / len(chosen) - mean**2, 0))
    return mean, np.maximum(deviation, 1 / 255)


def _histogram(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    # in pieces, because bincount makes 8 bytes of each
    counts = np.zeros(256, np.int64)
    for start in range(0, len(values), _CHUNK):
        counts += np.bincount(values[start : start + _CHUNK], minlength=256)
    return counts
