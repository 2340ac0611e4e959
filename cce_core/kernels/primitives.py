"""What kernels share: tile order, the logit's post-processing, products of tiles, the barrier.

Letters: N rows, V vocabulary, D width; a tile is BLOCK_N rows by BLOCK_V columns.
"""

# ruff: noqa: N803 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def grouped_tile(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Map a running number to (m, n), n slow inside bands of GROUP tiles of m.

    A band's operand stays in the L2 while the other one streams past it once.
    """
    band = GROUP * tiles_n
    first_m = (tile // band) * GROUP
    height = min(tiles_m - first_m, GROUP)
    inside = tile % band
    return first_m + inside % height, inside // height


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """Acc + a b in fp32; UPCAST serves the interpreter, whose 16-bit products are wrong."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def window(matrix, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Boxes of a contiguous (rows, columns) matrix: as the host describes it, or described here."""
    if isinstance(matrix, tl.tensor_descriptor):
        return matrix
    else:
        return tl.make_tensor_descriptor(matrix, [rows, columns], [columns, 1], [ROWS, COLUMNS])


@triton.jit
def capped(x, cap):
    """Cap * tanh(x / cap) as cap - 2 cap / (exp(2 x / cap) + 1): exact to a few 1e-7 cap."""
    return cap - 2.0 * cap / (tl.exp2(x * (2.0 * LOG2E / cap)) + 1.0)


@triton.jit
def halves(x):
    """The left and the right half of a tile's columns; no data moves."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def merged(upper, lower):
    """The fp32 number whose upper 24 bits are these int16 and int8."""
    bits = (upper.to(tl.int32) << 16) | ((lower.to(tl.int32) & 0xFF) << 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def grid_barrier(arrived_ptr, goal, ASYNC: tl.constexpr):
    """Wait for all programs; what each wrote before, all see after. They must run at once.

    `arrived_ptr`, () int32, counts arrivals: `goal` is the number of programs times the barrier's
    own, from one. Where ASYNC, tiles move by the copy engine (sm_90 on): its writes are waited for
    and fenced off from the loads that follow, whichever way either go.
    """
    if ASYNC:
        tl.inline_asm_elementwise(
            "cp.async.bulk.wait_group 0; fence.proxy.async; mov.u32 $0, 0;",
            "=r",
            [],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < goal:
        arrived = tl.atomic_add(arrived_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
    if ASYNC:
        tl.inline_asm_elementwise(
            "fence.proxy.async; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
