"""The embedded stack with a model small enough for tests, and a look at the processes it makes."""

import json
import subprocess
import sys
from pathlib import Path

TINY = "tiny"


def write_chat(path: Path, rows: int = 24) -> Path:
    """A chat dataset of `rows` conversations, each different."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What is {number} plus one?"},
                    {"role": "assistant", "content": f"It is {number + 1}, as everybody knows."},
                ]
            }
        )
        for number in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_tiny_model(folder: Path) -> Path:
    """A Llama that trains in seconds, made by the program that makes the demo's."""
    shape = {"vocab-size": 384, "width": 32, "layers": 1, "heads": 2, "context": 64}
    options = [f"--{name}={value}" for name, value in shape.items()]
    data = write_chat(folder.parent / f"{folder.name}.jsonl")
    subprocess.run(
        [sys.executable, "-m", "worker.training.starter", str(data), str(folder), *options],
        check=True,
        capture_output=True,
    )
    return folder


def processes_of(data: Path) -> dict[int, str]:
    """Command lines of the processes that were started for a data folder, by process id."""
    mark = str(data.resolve()).encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            # Redis writes its title over its environment, but works in the folder.
            traces = command, (entry / "environ").read_bytes(), bytes((entry / "cwd").readlink())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is another user's
        if any(mark in trace for trace in traces):
            found[int(entry.name)] = command.replace(b"\0", b" ").decode()
    return found
