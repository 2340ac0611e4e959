"""The real API under a real uvicorn, on a free port, in a thread of the tests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from service.app import create_app
from service.settings import ServiceSettings

_START_S = 20.0


@contextmanager
def serve(settings: ServiceSettings, port: int = 0) -> Iterator[str]:
    """Serve with `settings`, on a free port or on `port`; yields the URL."""
    config = uvicorn.Config(create_app(settings), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with _listener(port) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + _START_S
            while not server.started:
                assert thread.is_alive(), "the server ended while starting"
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _listener(port: int) -> socket.socket:
    """A listening socket that knows it is TCP: asyncio turns Nagle's delay off for such alone."""
    made = socket.create_server(("127.0.0.1", port), backlog=512)
    return socket.socket(fileno=made.detach())
