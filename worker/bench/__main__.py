"""Measure what fits on a device, full logits against ours, beside what is predicted.

A case is a model, full or LoRA, with or without checkpointing; one that does not fit, or fails,
costs its own rows alone. As the worker does for its trainer, set
PYTORCH_ALLOC_CONF=expandable_segments:True on CUDA, and on CPU KINETO_LOG_LEVEL=6, which keeps the
lines of torch's profiler from between those of the cases.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import torch

from service.contract.memory import LossName
from worker.bench import report
from worker.bench.measure import Case, Conditions, OutOfTime, Row, blank, measure
from worker.bench.models import PUBLISHED, SHAPES
from worker.training.allocator import is_out_of_memory
from worker.training.device import pick_device

MODES = ("full", "lora")


def main(arguments: list[str]) -> int:
    """Run the cases, write rows as they come, and print the table."""
    options = _parser().parse_args(arguments)
    device = pick_device("auto")
    if device.type == "cpu" and options.memory_gib is None:
        sys.stderr.write("without a GPU, --memory-gib must say what is to be the limit\n")
        return 2
    conditions = Conditions(
        device=device,
        losses=tuple(options.losses),
        seq_length=options.seq_length,
        reference=max(1, options.tokens // options.seq_length),
        memory_bytes=None if options.memory_gib is None else int(options.memory_gib * 2**30),
        deadline=time.monotonic() + 60 * options.minutes,
        commit=options.commit,
    )
    cases = [
        Case(model, mode, checkpointing)
        for model, mode, checkpointing in product(
            options.models, options.modes, [kind == "on" for kind in options.checkpointing]
        )
    ]
    rows: list[Row] = []
    for case in cases:
        for row in _rows(case, conditions):
            rows.append(row)
            sys.stderr.write(f"{report.summary(row)}\n")
            if options.json is not None:
                report.write(rows, options.json)
    sys.stdout.write(f"{report.table(rows, conditions.losses)}\n")
    return 0


def _rows(case: Case, conditions: Conditions) -> Iterator[Row]:
    """A row for each loss, whatever becomes of the case."""
    done = []
    status = "out of time"
    try:
        if time.monotonic() < conditions.deadline:
            for row in measure(case, conditions):
                done.append(row.loss)
                yield row
    except OutOfTime:
        pass
    except RuntimeError as error:  # the device's: the next case may fare better
        status = "out of memory" if is_out_of_memory(error) else f"failed: {error}"
    for loss in conditions.losses:
        if loss not in done:
            yield replace(blank(case, loss, conditions), status=status)
    gc.collect()
    if conditions.kind == "cuda":
        torch.cuda.empty_cache()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=SHAPES,
        default=list(PUBLISHED),
        help=f"sizes to build, with random weights (default: {' '.join(PUBLISHED)})",
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="default: both"
    )
    parser.add_argument(
        "--checkpointing",
        nargs="+",
        choices=("on", "off"),
        default=["on", "off"],
        help="recompute activations in the backward (default: both)",
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        choices=get_args(LossName),
        default=["full_logits", "cce"],
        help="ours is cce (default: full_logits cce)",
    )
    parser.add_argument(
        "--seq-length", type=int, default=2048, help="tokens a sequence (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=8192,
        help="of the batch whose peak is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-gib", type=float, help="the limit of memory; needed where there is no GPU"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="no case begins after these (default: %(default)s)",
    )
    parser.add_argument("--commit", help="what is measured, to be kept with the rows")
    parser.add_argument("--json", type=Path, help="write the rows here, as they come")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
