"""The device of a job: which it is, its name, and how much of its memory is in use.

`python -m worker.training.device auto` says which it is, as JSON, for the worker to announce.
"""

import argparse
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from service.contract.device import Device, DeviceKind
from service.contract.errors import JobFailure
from worker.events import DeviceChoice

_DRIVER = Path("/proc/driver/nvidia/version")
_PAGE_BYTES = resource.getpagesize()


def pick_device(wanted: DeviceChoice) -> torch.device:
    """The wanted device; `auto` is CUDA where torch was built for it and has a device, else CPU.

    Raises:
        JobFailure: CUDA is wanted or a GPU there, but can't be used: no silent fall to the CPU.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        message = "This worker trains on a GPU alone, and CUDA finds none: has it been lost?"
        raise JobFailure("device_unavailable", message)
    if torch.version.cuda is not None and torch.cuda.device_count() > 0:
        message = "A GPU is there, but CUDA does not start; see the worker's log."
        raise JobFailure("device_unavailable", message)
    return torch.device("cpu")


def name(device: torch.device) -> str:
    """For example `NVIDIA H200`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def driver_version() -> str | None:
    """Of the NVIDIA kernel driver; None where there is none."""
    if not _DRIVER.exists():
        return None
    found = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", _DRIVER.read_text())
    return None if found is None else found[1]


def usage(device: torch.device) -> dict[str, Any]:
    """The fields of the progress that tell of the device; on CPU the process's resident set."""
    if device.type == "cuda":
        return {
            "device": name(device),
            "device_memory_bytes": torch.cuda.memory_allocated(device),
            "device_memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    now, peak = _resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": name(device),
        "device_memory_bytes": now,
        "device_memory_peak_bytes": max(now, peak),  # the kernel adds up the two at its own times
    }


def reset_peak(device: torch.device) -> None:
    """Let the peak of `usage` begin anew; on CPU the system keeps it, from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def total_bytes(device: torch.device) -> int:
    """All memory of the device; on CPU that of the machine."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES


def free_cpu_bytes() -> int:
    """Physical memory of this machine that nobody uses."""
    return os.sysconf("SC_AVPHYS_PAGES") * _PAGE_BYTES


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123 -- a kernel interface, not a path of ours
        return int(statm.read().split()[1]) * _PAGE_BYTES


def facts(device: torch.device) -> Device:
    """What the fleet is told of it."""
    kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
    return Device(kind=kind, name=name(device), total_bytes=total_bytes(device))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker.training.device")
    parser.add_argument("wanted", choices=get_args(DeviceChoice))
    sys.stdout.write(facts(pick_device(parser.parse_args().wanted)).model_dump_json())
