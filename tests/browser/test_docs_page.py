"""The page of the OpenAPI document, as a browser draws it."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server

pytestmark = pytest.mark.browser


def test_the_page_asks_nobody_but_the_server(page: Page, server: Server) -> None:
    """Nor do its scripts, whose requests the text of the page does not show."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.get_by_text("/v1/fine_tuning/estimate").first).to_be_attached()
    page.wait_for_load_state("networkidle")
    assert f"{server.url}/openapi.json" in asked
    assert [url for url in asked if not url.startswith(f"{server.url}/")] == []
