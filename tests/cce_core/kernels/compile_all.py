"""Compile every shipped configuration for one architecture, without a GPU; print what it takes.

A program of its own, since Triton must not be in its interpreter here. Each line of its output is
`kernel configuration stack-bytes spills-in-loops-of-products shared-bytes`.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cce_core.kernels import (
    entries,
    exact,
    finish,
    forward,
    judge,
    mean_field,
    pairs,
    plan,
    rows,
    tail,
    tiling,
    upstream,
)

INTEGERS = {
    "rows_ptr", "redo_ptr", "index_ptr", "pair_row_ptr", "owner_ptr", "start_ptr",
    "found_ptr", "entry_col_ptr", "exact_ptr", "sample_row_ptr", "count_ptr", "turn_ptr",
    "blocks_ptr", "listed_ptr", "hot_ptr", "heat_ptr", "arrived_ptr", "again_ptr", "picked_ptr",
}  # fmt: skip
HALVES = {
    "mass_ptr", "tail_ptr", "entry_dz_ptr", "e_ptr", "c_ptr", "out_ptr", "pull_ptr", "de_ptr",
    "aux_ptr", "sign_ptr", "sampled_ptr",
}  # fmt: skip
SPLIT = {"de_ptr": "*i16", "aux_ptr": "*i8"}
COMMON = {"UPCAST": False, "PRECISION": "ieee", "PROGRAMS": 132}


def kind(name: str, boxes: dict, special: dict) -> str:
    if name in boxes:
        return "tensordesc<bf16[{}, {}]>".format(*boxes[name]).replace(", ", ",")
    known = dict.fromkeys(INTEGERS, "*i32") | dict.fromkeys(HALVES, "*bf16")
    known |= (
        dict.fromkeys(("scale", "cap", "bar", "finer", "left"), "fp32")
        | {"label_ptr": "*i64"}
        | special
    )
    return known.get(name, "*fp32" if name.endswith("_ptr") else "i32")


def configurations(tiles: tiling.Tilings):
    """(kernel, boxes of descriptors, special types, constants, warps, stages), all of them."""
    t = tiles.logits
    rest = {"WITH_MEAN": False, "WITH_ENTROPY": False, "HAS_BIAS": False, "BLOCK": tiles.block}
    for cap in (False, True):
        block = {"BLOCK_N": t.block_n, "BLOCK_V": t.block_v, "BLOCK_D": t.block_d, "GROUP": t.group}
        boxes = {"e_desc": (t.block_n, t.block_d), "c_desc": (t.block_v, t.block_d)}
        for mass in (False, True):
            more = {"HAS_CAP": cap, "WITH_MASS": mass, "REDO": True, "FLATTEN": t.flatten}
            more["ORDERED"] = not mass
            constants = COMMON | rest | block | more
            yield forward.forward_kernel, boxes, {}, constants, t.warps, t.stages
        for listed, s, g in (
            (False, tiles.slices, tiles.gradients),
            (True, tiles.hot_logits, tiles.gradients),
        ):
            for with_dc in (False, True):
                yield exactly(tiles, s, g, cap=cap, listed=listed, with_dc=with_dc)
        p = tiles.pairs
        c = tiles.scatter
        boxes = {
            "c_desc": (tiles.block, p.block_d),
            "out_desc": (p.block_n, tiles.block // 4),
            "pool_desc": (c.block_d, tiles.block),
            "dc_desc": (tiles.block, c.block_v),
        }
        constants = COMMON | {
            "HAS_CAP": cap, "WITH_POOL": True, "WITH_LIST": True, "EVEN_L": True, "EVEN_D": True,
            "BLOCK": tiles.block, "PAIRS": p.block_n, "BLOCK_L": p.block_d,
            "LOGITS_STAGES": p.stages, "BLOCK_D": c.block_v, "BLOCK_K": c.block_d,
            "STAGES": c.stages, "ASYNC": tiles is not tiling.AMPERE,
        }  # fmt: skip
        yield pairs.pairs_kernel, boxes, {}, constants, p.warps, 3
        w = tiles.tail
        boxes = {
            "c_desc": (tiles.block, w.block_d),
            "sample_desc": (w.block_v, w.block_d),
            "sign_desc": (mean_field.SIGNS, w.block_d),
        }
        constants = COMMON | {
            "HAS_CAP": cap, "SAMPLE": w.block_v, "SIGNS": mean_field.SIGNS, "BLOCK": tiles.block,
            "BLOCK_D": w.block_d,
        }  # fmt: skip
        yield tail.tail_kernel, boxes, {}, constants, w.warps, w.stages
    for split in (False, True):
        special = {"de_ptr": "*i16", "bits_ptr": "*i8"} if split else {"bits_ptr": "*bf16"}
        constants = {"SPLIT": split, "BATCH": 16, "BLOCK_D": 512}
        yield entries.row_gradient_kernel, {}, special, constants, 4, 3
    block = {"BLOCK": tiles.block, "PAIRS": tiles.pairs.block_n, "CHUNK": tiles.chunk}
    yield plan.count_kernel, {}, {}, {k: block[k] for k in ("BLOCK", "CHUNK")}, 4, 3
    yield plan.list_kernel, {}, {}, block, 4, 3
    yield plan.plan_kernel, {}, {}, {"HOT": 0.35, "PAIRS": block["PAIRS"], "SIZE": 4096}, 4, 3
    yield judge.draw_kernel, {}, {}, {"SAMPLE": tiles.tail.block_v, "SIZE": 1024}, 4, 3
    constants = {"SIZE": tiles.tail.block_v * mean_field.SIGNS}
    yield judge.judge_kernel, {}, {}, constants, 4, 3
    constants = {"HAS_BIAS": False, "HAS_CAP": True, "COPY": True, "BLOCK_D": 1024}
    yield rows.rows_kernel, {}, {}, constants, 4, 3
    yield rows.order_kernel, {}, {"ordered_ptr": "*i64"}, {"CHUNK": tiles.chunk}, 8, 3
    yield finish.recount_kernel, {}, {}, {"SIZE": 128}, 4, 3
    constants = {"REDO": True, "MEAN": True, "ENTROPY": True, "SIZE": 128}
    yield finish.statistics_kernel, {}, {}, constants, 4, 3
    constants = {"HAS_MEAN": True, "SHARES": True, "CHUNK": tiles.chunk}
    yield upstream.upstream_kernel, {}, {}, constants, 8, 3


def exactly(tiles, s, g, *, cap: bool, listed: bool, with_dc: bool):
    """The exact kernel's configuration for logits by tiling `s` and gradients by `g`."""
    boxes = {
        "e_desc": (s.block_n, s.block_d),
        "c_desc": (s.block_v, s.block_d),
        "out_desc": (s.block_n, s.block_v // 2),
        "dz_rows_desc": (g.block_n, g.block_d),
        "dz_cols_desc": (g.block_d, g.block_n),
        "ek_desc": (g.block_d, g.block_v),
        "ck_desc": (g.block_d, g.block_v),
        "dc_desc": (g.block_n, g.block_v // 4),
    }
    constants = COMMON | {
        "HAS_BIAS": False, "HAS_MEAN": False, "HAS_CAP": cap, "SPLIT": not listed,
        "WITH_DE": True, "WITH_DC": with_dc, "ASK": True, "LISTED": listed, "BLOCK": tiles.block,
        "BLOCK_N": s.block_n, "BLOCK_V": s.block_v, "BLOCK_L": s.block_d,
        "LOGITS_STAGES": s.stages, "LOGITS_GROUP": s.group,
        "BLOCK_M": g.block_n, "BLOCK_D": g.block_v, "BLOCK_K": g.block_d, "STAGES": g.stages,
        "GROUP": g.group, "ASYNC": tiles is not tiling.AMPERE,
    }  # fmt: skip
    if not with_dc:
        constants |= dict.fromkeys(("dz_cols_desc", "ek_desc", "dc_desc"))
    return exact.exact_kernel, boxes, {} if listed else SPLIT, constants, g.warps, 3


def compiled(configuration, architecture: int):
    """The kernel as the launcher compiles it, sizes and addresses being multiples of 16."""
    kernel, boxes, special, constants, warps, stages = configuration
    if architecture < 90:  # the kernel describes its matrices itself
        special, boxes = special | dict.fromkeys(boxes, "*bf16"), {}
    names = [parameter.name for parameter in kernel.params]
    signature = {
        name: "constexpr" if name in constants else kind(name, boxes, special) for name in names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in {"N", "V", "D", "K", "c_stride", "e_stride"}
    }
    fixed = {(names.index(name),): value for name, value in constants.items() if name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def tool(name: str, *arguments: str, cubin: bytes) -> str:
    """What one of the compiler's tools prints about a kernel."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [path, *arguments, file.name], capture_output=True, text=True, check=True
        ).stdout


def stack_bytes(cubin: bytes) -> int:
    """The stack frame of a kernel, which holds its spills."""
    return int(re.search(r"STACK:(\d+)", tool("cuobjdump", "-res-usage", cubin=cubin)).group(1))


def spills_in_loops(cubin: bytes) -> int:
    """Loads and stores of the stack inside the loops of products, where they would cost time."""
    lines = tool("nvdisasm", "-c", cubin=cubin).splitlines()
    places = {
        found.group(1): i
        for i, line in enumerate(lines)
        if (found := re.match(r"\s*(\.L_x_\d+):", line))
    }
    loops = []
    for i, line in enumerate(lines):
        found = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if found and places[found.group(1)] < i:
            loops.append((places[found.group(1)], i))
    bodies = [
        lines[first:last]
        for first, last in loops
        if not any(first < a and b < last for a, b in loops)
    ]
    products = [body for body in bodies if any("MMA" in line for line in body)]
    spills = re.compile(r"\b(STL|LDL)\b")
    return sum(bool(spills.search(line)) for body in products for line in body)


def main() -> None:
    architecture = int(sys.argv[1])
    tiles = tiling.of_capability(architecture // 10)
    for configuration in configurations(tiles):
        kernel, constants = configuration[0], configuration[3]
        made = compiled(configuration, architecture)
        flags = ",".join(name for name, value in constants.items() if value is True) or "-"
        cubin = made.asm["cubin"]
        figures = stack_bytes(cubin), spills_in_loops(cubin), made.metadata.shared
        sys.stdout.write(" ".join([kernel.__name__, flags, *map(str, figures)]) + "\n")


if __name__ == "__main__":
    main()
