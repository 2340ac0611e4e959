"""The real API in a process of its own, for tests that look at the process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.settings import ServiceSettings

_START_S = 60.0


@contextmanager
def served(settings: ServiceSettings, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve as `python -m service` does, the log in `folder`; yields the URL and the process id."""
    log = folder / "service.log"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "service", "--fd", str(listener.fileno())],
            env=os.environ | environment(settings),
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _START_S
            while b"startup complete" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", process.pid
        finally:
            process.terminate()


def environment(settings: ServiceSettings) -> dict[str, str]:
    """The variables that make these settings, as far as tests change them."""
    folders = ",".join(f'"{folder}"' for folder in settings.model_folders)
    values = {
        "HEADROOM_REDIS_URL": settings.redis_url,
        "HEADROOM_STORAGE_URL": settings.storage_url,
        "HEADROOM_MODEL_FOLDERS": f"[{folders}]",
    }
    if settings.redis_password_file is not None:
        values["HEADROOM_REDIS_PASSWORD_FILE"] = str(settings.redis_password_file)
    return values
