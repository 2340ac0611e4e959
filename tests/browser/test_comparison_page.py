"""The report of a comparison in Chromium, at the width of a phone and of a desk."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.comparison import report
from worker.training import comparison_html

pytestmark = pytest.mark.browser
LEGIBLE_PX = 9


@pytest.mark.parametrize("width", [400, 1280])
def test_plots_stay_legible_and_what_is_wider_than_the_window_scrolls(
    page: Page, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "comparison.html"
    path.write_text(comparison_html.page(report()))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scales = page.locator("figure svg").evaluate_all("plots => plots.map(p => p.getScreenCTM().a)")
    assert len(scales) == 5
    assert min(scales) * 12 >= LEGIBLE_PX
    if width == 400:
        table = page.get_by_role("region", name="Figures")
        table.press("ArrowRight")
        expect(table).not_to_have_js_property("scrollLeft", 0)
