"""Views made ahead: in order, never too far, errors at their place, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from smallview.training.prefetch import ahead


def threads() -> int:
    return sum(t.name == "smallview-views" for t in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert threads() == 0
    yield
    assert threads() == 0


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_order(depth: int) -> None:
    assert list(ahead(lambda n: n * n, range(50), depth)) == [(n, n * n) for n in range(50)]
    assert list(ahead(lambda n: n, [], depth)) == []


def test_errors_come_where_the_item_would() -> None:
    def make(n: int) -> int:
        if n == 3:
            raise ValueError("picture 3")
        return n

    seen = []
    with pytest.raises(ValueError, match="picture 3"):
        for item, _ in ahead(make, range(10)):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_errors_of_the_items_themselves() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    feed = ahead(lambda n: n, items())
    assert next(feed) == (1, 1)
    with pytest.raises(OSError, match="disk"):
        next(feed)


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    made = []
    feed = ahead(lambda n: made.append(n) or n, range(10_000), depth=2)
    for item, _ in feed:
        if item == 3:
            break
    feed.close()
    assert threads() == 0
    assert len(made) <= 3 + 1 + 2 + 2  # seen, waiting in the queue, in hand
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count


def test_a_consumer_that_fails_ends_the_thread() -> None:
    def consume() -> None:
        for item, _ in ahead(lambda n: n, range(10_000)):
            if item == 2:
                raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        consume()


def test_it_is_made_ahead_in_another_thread_and_no_further_than_depth() -> None:
    made: list[str] = []
    feed = ahead(lambda n: made.append(threading.current_thread().name), range(100), depth=2)
    next(feed)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    assert len(made) == 4 and set(made) == {"smallview-views"}  # one taken, two ready, one in hand
    feed.close()


def test_a_long_wait_is_told_again_and_again_and_the_run_goes_on() -> None:
    free = threading.Event()
    told: list[tuple[int, float]] = []

    def make(n: int) -> int:
        if n == 2:
            assert free.wait(30)
        return n

    def on_wait(item: int, seconds: float) -> None:
        told.append((item, seconds))
        if len(told) == 3:
            free.set()

    assert [made for _, made in ahead(make, range(5), 2, on_wait=on_wait, patience=0.05)] == list(range(5))
    assert [item for item, _ in told] == [2, 2, 2]
    assert 0.05 <= told[0][1] < told[1][1] < told[2][1] < 30


def test_what_comes_in_time_is_not_told_of() -> None:
    told: list[int] = []
    assert len(list(ahead(lambda n: n, range(5), on_wait=lambda item, _: told.append(item), patience=30))) == 5
    assert told == []
