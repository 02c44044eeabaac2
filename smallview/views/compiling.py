"""What turns the kernels' Python into machine code of this very processor: numba, cached on disk; and vectors wider than a loop's.

numba leaves it to LLVM to find the vectors in a loop, which fails where sums must stay in registers over an outer loop. The two
products below say so themselves, as a few lines of LLVM's own language: they compile for any processor, wide vectors or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_log = logging.getLogger("smallview.views")
# sums may be taken in any order and products fused; NaN and infinity keep their meaning
_FREE = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile by numba with the GIL free and the machine code cached on disk, or kept in memory where no disk can be written."""
    settings: dict[str, Any] = {"nogil": True, "fastmath": _FREE, "error_model": "numpy"}
    try:
        kernel = numba.njit(cache=True, **settings)(function)
        # numba asks only whether this function's own file changed; what it calls stands in the folder's other files too
        with suppress(AttributeError):
            kernel._cache._cache_file._source_stamp = _stamp()
        return cast(Callable[..., Any], kernel)
    except RuntimeError:  # "no locator available": neither the package's folder nor the user's cache folder can be written
        _say_uncached()
        return cast(Callable[..., Any], numba.njit(**settings)(function))


@lru_cache(maxsize=1)
def _stamp() -> tuple[tuple[str, int, int], ...]:
    """What tells one state of this folder's files from another."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=1)
def _say_uncached() -> None:
    _log.warning(
        "no folder for compiled code can be written: each start compiles anew, some seconds; set NUMBA_CACHE_DIR to one that can"
    )


class _Vectors:
    """What the two products share: vectors of LANES floats, loaded, spread, multiplied and stored."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder
        self.kind = ir.VectorType(ir.FloatType(), LANES)
        self.zero = ir.Constant(self.kind, [0.0] * LANES)
        shape = ir.FunctionType(self.kind, [self.kind] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, shape, f"llvm.fmuladd.v{LANES}f32")

    def data(self, array: Any, value: Any) -> Any:
        return self.context.make_array(array)(self.context, self.builder, value).data

    def load(self, start: Any, at: Any) -> Any:
        b, byte = self.builder, start.type.pointee != ir.FloatType()
        kind = ir.VectorType(start.type.pointee, LANES)
        found = b.load(b.bitcast(b.gep(start, [at]), kind.as_pointer()), align=1 if byte else 4)
        return b.uitofp(found, self.kind) if byte else found

    def spread(self, number: Any) -> Any:
        b, none = self.builder, ir.Constant(self.kind, ir.Undefined)
        first = b.insert_element(none, number, ir.Constant(ir.IntType(32), 0))
        return b.shuffle_vector(first, none, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    def store(self, vector: Any, start: Any, at: Any) -> None:
        b = self.builder
        b.store(vector, b.bitcast(b.gep(start, [at]), self.kind.as_pointer()), align=4)

    def sums(self, count: Any, n: int, terms: Callable[[Any], list[tuple[Any, Any]]]) -> list[Any]:
        """N vectors, each the sum over x < count of the products that terms(x) gives; count is at least 1."""
        b, whole = self.builder, count.type
        before, loop, after = b.block, b.append_basic_block("sum"), b.append_basic_block("sum.end")
        b.branch(loop)
        b.position_at_end(loop)
        x = b.phi(whole)
        x.add_incoming(ir.Constant(whole, 0), before)
        totals = [b.phi(self.kind) for _ in range(n)]
        new = [b.call(self.fma, [p, q, total]) for (p, q), total in zip(terms(x), totals, strict=True)]
        following = b.add(x, ir.Constant(whole, 1))
        x.add_incoming(following, loop)
        for total, value in zip(totals, new, strict=True):
            total.add_incoming(self.zero, before)
            total.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, after)
        b.position_at_end(after)
        return new


def columns_product(rows: int, channels: int) -> Any:
    """Weighted sums along the rows of an interleaved picture, LANES outputs at a time, for `rows` rows and `channels` channels at once.

    The compiled function (weights, w_at, count, values, v_at, v_row, v_step, out, o_at, o_plane, o_row) sets
    out[o_at + c * o_plane + r * o_row + j] = sum over x < count of
    weights[w_at + x * LANES + j] * values[v_at + r * v_row + x * v_step + c].
    """

    @intrinsic
    def product(  # type: ignore[no-untyped-def]
        typing, weights, w_at, count, values, v_at, v_row, v_step, out, o_at, o_plane, o_row
    ):
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            v = _Vectors(context, builder)
            w, values, out = (v.data(signature.args[i], given[i]) for i in (0, 3, 7))
            w_at, count, v_at, v_row, v_step, o_at, o_plane, o_row = (given[i] for i in (1, 2, 4, 5, 6, 8, 9, 10))
            number: Callable[[int], Any] = lambda n: ir.Constant(count.type, n)  # noqa: E731
            cells = [(r, c) for r in range(rows) for c in range(channels)]
            starts = [builder.add(v_at, builder.mul(v_row, number(r))) for r in range(rows)]

            def terms(x: Any) -> list[tuple[Any, Any]]:
                weight = v.load(w, builder.add(w_at, builder.mul(x, number(LANES))))
                along = builder.mul(x, v_step)
                places = [builder.add(builder.add(starts[r], along), number(c)) for r, c in cells]
                return [(weight, v.spread(builder.load(builder.gep(values, [place])))) for place in places]

            for (r, c), total in zip(cells, v.sums(count, len(cells), terms), strict=True):
                place = builder.add(builder.mul(o_row, number(r)), builder.mul(o_plane, number(c)))
                v.store(total, out, builder.add(o_at, place))
            return context.get_dummy_value()

        whole = types.intp
        return types.void(weights, whole, whole, values, whole, whole, whole, out, whole, whole, whole), code

    return product


def rows_product(vectors: int) -> Any:
    """Weighted sums of rows, vectors * LANES neighbours at a time; the values may be bytes or floats.

    The compiled function (weights, w_at, count, values, v_at, v_step, out, o_at) sets
    out[o_at + j] = sum over k < count of weights[w_at + k] * values[v_at + k * v_step + j].
    """

    @intrinsic
    def product(typing, weights, w_at, count, values, v_at, v_step, out, o_at):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            v = _Vectors(context, builder)
            w, values, out = (v.data(signature.args[i], given[i]) for i in (0, 3, 6))
            w_at, count, v_at, v_step, o_at = (given[i] for i in (1, 2, 4, 5, 7))
            shifts = [ir.Constant(count.type, LANES * n) for n in range(vectors)]

            def terms(k: Any) -> list[tuple[Any, Any]]:
                weight = v.spread(builder.load(builder.gep(w, [builder.add(w_at, k)])))
                row = builder.add(v_at, builder.mul(k, v_step))
                return [(weight, v.load(values, builder.add(row, shift))) for shift in shifts]

            for shift, total in zip(shifts, v.sums(count, vectors, terms), strict=True):
                v.store(total, out, builder.add(o_at, shift))
            return context.get_dummy_value()

        whole = types.intp
        return types.void(weights, whole, whole, values, whole, whole, out, whole), code

    return product
