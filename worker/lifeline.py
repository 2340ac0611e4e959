"""Become another program, in such a way that it dies with the process that started it.

The supervisor runs this file as a script in front of the trainer. The kernel's parent-death signal
outlives `exec`, so the trainer needs no part in it: if the worker is killed outright, no trainer
is left behind that holds a GPU.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run `command` for `parent`; `arguments` are the parent's process id, then the command."""
    parent, *command = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the call above sends no signal any more.
    if os.getppid() != int(parent):
        sys.exit(f"The parent {parent} is gone; not starting {command[0]}.")
    os.execvp(command[0], command)  # noqa: S606 -- the worker's own trainer command


if __name__ == "__main__":
    main(sys.argv[1:])
