"""A real Chromium on a real server: uvicorn with the whole application, on a real Redis."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from service.app import create_app
from service.contract.settings import Settings
from service.settings import ServiceSettings

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_START_S = 20.0
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server:
    """The application under uvicorn, in a thread; it keeps its port over a restart."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        config = uvicorn.Config(create_app(self._settings), port=self._port, log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            assert self._thread.is_alive(), "uvicorn ended while starting"
            assert time.monotonic() < deadline, "uvicorn does not start"
            time.sleep(0.02)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def serving(settings: Settings, **more: object) -> Iterator[Server]:
    server = Server(ServiceSettings(**settings.model_dump(), **more))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    """The application without API keys."""
    with serving(settings) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; not for longer, since its event loop would be in the way of other tests' own."""
    if _CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh tab; what the page's scripts do wrong, or its policy forbids, fails the test."""
    errors: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if _is_defect(line.text) else None)
        yield page
    assert errors == []


def _is_defect(text: str) -> bool:
    """Whether a line of the console is no mere report of a request that was refused."""
    return not text.startswith("Failed to load resource")
