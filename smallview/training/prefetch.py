"""Views made one step ahead, in a thread, so that the network does not wait for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

MAKING = threading.Lock()  # held while something is made ahead
From = TypeVar("From")
To = TypeVar("To")


def ahead(make: Callable[[From], To], items: Iterable[From], depth: int = 2) -> Generator[tuple[From, To], None, None]:
    """(item, make(item)) in order, made up to `depth` items ahead in one thread; errors come out where the item would.

    Example:
        >>> list(ahead(lambda n: n * n, [1, 2, 3]))
        [(1, 1), (2, 4), (3, 9)]
    """
    ready: queue.Queue[tuple[From, To] | BaseException | None] = queue.Queue(maxsize=depth)
    closed = threading.Event()

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
                    made = make(item)
                if not put((item, made)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="smallview-views", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        closed.set()
        thread.join()
