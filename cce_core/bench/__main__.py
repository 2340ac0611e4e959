"""Measure the loss and its peers on the same tensors: memory, time and error; on a CUDA device."""

import argparse
import sys
from pathlib import Path

import torch

from cce_core.bench import cases, check, data, peers, report, trained

KINDS = (*data.KINDS, trained.KIND)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cce_core.bench", description=__doc__)
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=data.SHAPES,
        default=list(data.SHAPES),
        help="of these models' heads (default: all)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        choices=KINDS,
        default=list(data.KINDS),
        help=f"what the tensors are like (default: {' '.join(data.KINDS)})",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=peers.NAMES,
        help="what to measure beside ours (default: all; with --check, none)",
    )
    parser.add_argument(
        "--eps", nargs="*", type=int, default=[], metavar="K", help="also the filter at 2^-K"
    )
    parser.add_argument(
        "--rows", type=int, default=8192, help="rows of hidden states (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=10, help="timed calls of each (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="JSON",
        help="compare with the rows on record; exit 1 where a figure is worse beyond its margin",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="instead of the shapes: sizes N, V and D in turn"
    )
    parser.add_argument("--smoke", action="store_true", help="trained data of a tiny model")
    parser.add_argument(
        "--cache",
        type=Path,
        default=trained.default_cache(),
        help="folder of trained data (default: %(default)s)",
    )
    return parser.parse_args()


def _sizes(arguments: argparse.Namespace, training: trained.Training) -> list[cases.Size]:
    if arguments.sweep:
        return cases.sweep()
    sizes = [
        (data.SHAPES[name], kind, arguments.rows)
        for name in arguments.shapes
        for kind in arguments.data
        if kind != trained.KIND
    ]
    if trained.KIND in arguments.data:
        sizes.append((training.shape, trained.KIND, arguments.rows))
    return sizes


def _selection(arguments: argparse.Namespace) -> cases.Selection:
    others = arguments.peers
    if others is None:
        others = peers.NAMES if arguments.check is None else ()
    training = trained.SMOKE if arguments.smoke else trained.FULL
    return cases.Selection(
        sizes=tuple(_sizes(arguments, training)),
        peers=tuple(others),
        eps=tuple(2.0**-k for k in arguments.eps),
        repeats=arguments.repeats,
        training=training,
        cache=arguments.cache,
    )


def main() -> int:
    """Run the cases, print a table each, write JSON and compare where asked."""
    arguments = _arguments()
    if not torch.cuda.is_available():
        sys.stderr.write("the benchmark needs a CUDA device\n")
        return 2
    selection = _selection(arguments)
    rows = cases.run(selection, arguments.json)
    if arguments.check is None:
        return 0
    recorded = [row for row in report.read(arguments.check) if selection.covers(row)]
    faults = check.regressions(rows, recorded)
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    if {row["device"] for row in rows} != {row["device"] for row in recorded}:
        sys.stdout.write("recorded on another device: times are not compared\n")
    sys.stdout.write(f"{len(recorded)} rows compared, {len(faults)} figures worse\n")
    return 1 if faults or not recorded else 0


if __name__ == "__main__":
    sys.exit(main())
