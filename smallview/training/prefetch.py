"""Views made one step ahead, in a thread, so that the network does not wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

MAKING = threading.Lock()  # held while something is made ahead
From = TypeVar("From")
To = TypeVar("To")


PATIENCE_S = 60.0


def ahead(
    make: Callable[[From], To],
    items: Iterable[From],
    depth: int = 2,
    *,
    on_wait: Callable[[From, float], None] | None = None,
    patience: float = PATIENCE_S,
) -> Generator[tuple[From, To], None, None]:
    """(item, make(item)) in order, made up to `depth` items ahead in one thread; errors come out where the item would.

    on_wait: told of the item that is being made and of the seconds waited for it, each time that nothing has come for `patience`
    seconds; the wait goes on.

    Example:
        >>> list(ahead(lambda n: n * n, [1, 2, 3]))
        [(1, 1), (2, 4), (3, 9)]
    """
    ready: queue.Queue[tuple[From, To] | BaseException | None] = queue.Queue(maxsize=depth)
    closed = threading.Event()
    at_work: list[From] = []

    def put(value: tuple[From, To] | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                with MAKING:
                    at_work.append(item)
                    made = make(item)
                    at_work.clear()
                if not put((item, made)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="smallview-views", daemon=True)
    thread.start()

    def get() -> tuple[From, To] | BaseException | None:
        began = time.monotonic()
        while True:
            try:
                return ready.get(timeout=patience)
            except queue.Empty:
                if on_wait is not None and at_work:
                    on_wait(at_work[0], time.monotonic() - began)

    try:
        while (value := get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        closed.set()
        thread.join()
