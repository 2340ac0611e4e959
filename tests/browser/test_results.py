"""What the status page shows of a job's results, and of a comparison."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from redis import Redis

from service.auth import make_key
from service.contract.files import FileRecord, Files
from service.contract.job import new_id
from service.contract.settings import Settings
from service.contract.spec import ComparisonOptions
from service.contract.storage import Storage
from service.contract.store import Store
from tests.browser.conftest import Server, serving
from tests.support.comparison import cell, report
from tests.support.job_scene import ORG, SceneJob

pytestmark = pytest.mark.browser
TIMES = "\N{MULTIPLICATION SIGN}"
CONTENT = b"step,train_loss\n1,2.5\n"
ASKED = ComparisonOptions(losses=["full_logits", "cce"], batch_sizes=[1, 16], steps=20)
Stored = Callable[..., str]


@pytest.fixture
def stored(settings: Settings, redis: Redis) -> Stored:
    """Store a result file; its id."""

    def store(name: str, org: str = ORG) -> str:
        record = FileRecord(
            id=new_id("file-"),
            org=org,
            bytes=len(CONTENT),
            created_at=int(time.time()),
            filename=name,
            purpose="fine-tune-results",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
        )
        with Storage(settings.storage_url).write(record.path) as target:
            target.write(CONTENT)
        Files(redis).add(record)
        return record.id

    return store


def started(store: Store, **how: object) -> SceneJob:
    """A job that a worker has."""
    job = SceneJob(store, **how)
    job.queue()
    job.start(ledger=False)
    return job


def saved(page: Page, name: str) -> bytes:
    """What a click on a result file saves."""
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    assert download.value.suggested_filename == name
    return Path(download.value.path()).read_bytes()


def test_the_model_and_the_result_files_of_a_finished_job(
    page: Page, server: Server, store: Store, stored: Stored
) -> None:
    job = started(store)
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#job-status")).to_have_text("running")
    expect(page.locator("#results-card")).to_be_hidden()
    job.succeed([stored("step_metrics.csv"), "file-deleted"])
    model = store.get(job.id).fine_tuned_model
    shown = page.locator("#results")
    expect(shown).to_contain_text(f"Model {model}")
    expect(shown).to_contain_text(f"headroom download {model} FOLDER")
    expect(shown.locator("li")).to_have_text(["step_metrics.csv22 B", "file-deleted was deleted"])
    assert saved(page, "step_metrics.csv") == CONTENT


def test_result_files_are_saved_with_the_key_in_use(
    page: Page, settings: Settings, store: Store, stored: Stored, redis: Redis, tmp_path: Path
) -> None:
    key, line = make_key("acme")
    keys = tmp_path / "keys"
    keys.write_text(line)
    job = started(store, org="acme")
    file = stored("report.json", org="acme")
    job.succeed([file])
    with serving(settings, api_keys_file=keys) as server:
        page.goto(server.url)
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        assert saved(page, "report.json") == CONTENT
        assert key not in page.url
        files = Files(redis)
        files.remove(files.get("acme", file))
        page.get_by_role("link", name="report.json").click()
        expect(page.locator("#results")).to_contain_text("not saved: No such")


def test_a_comparison_as_its_figures_come(
    page: Page, server: Server, store: Store, stored: Stored
) -> None:
    job = started(store, suffix=None, comparison=ASKED)
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#job-list .tag")).to_have_text("comparison")
    expect(page.locator("#job-title")).to_have_text("Comparison on tiny-llama")
    shown = page.locator("#comparison")
    expect(shown).to_contain_text("full logits, cut cross-entropy, at batch sizes 1, 16: 20 steps")
    expect(shown).to_contain_text("The first figures come when a loss has done its steps.")
    for title in ("Loss", "Memory of the loss", "Memory of the job"):
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_hidden()
    job.compare(cell("full_logits", 1, peak_bytes=1))  # of an attempt that was lost
    job.compare(cell("full_logits", 1))
    job.compare(cell("cce", 1, peak_bytes=7 << 30))
    job.compare(report().cells[8])
    job.conclude([stored(f"comparison.{kind}") for kind in ("json", "csv", "html")])
    rows = shown.locator("tbody tr")
    expect(rows).to_have_count(3)
    assert rows.nth(0).locator("td").all_text_contents() == [
        "1", "full logits", "14.0 GiB", "\N{EN DASH}", "10,000", "0.00300", "2.5000",
    ]  # fmt: skip
    assert rows.nth(1).locator("td").all_text_contents()[2:4] == ["7.0 GiB", f"2.0{TIMES} less"]
    expect(rows.nth(2)).to_contain_text("out of memory")
    expect(shown).to_contain_text("full logits at batch size 16: It asked for <16 GiB>.")
    expect(page.locator("#facts")).not_to_contain_text("Training loss")
    assert saved(page, "comparison.html") == CONTENT


def test_a_comparison_without_a_validation_file_has_no_column_for_its_loss(
    page: Page, server: Server, store: Store
) -> None:
    job = started(store, suffix=None, comparison=ASKED, validation_file=None)
    job.compare(cell("cce", 1, valid_loss=None, valid_mean_token_accuracy=None))
    page.goto(f"{server.url}/#{job.id}")
    heads = page.locator("#comparison thead th")
    expect(heads).to_have_count(6)
    expect(heads.last).to_have_text("Gradient error")
    expect(page.locator("#comparison tbody td")).to_have_count(6)


def test_a_training_job_after_a_comparison_has_its_cards_again(
    page: Page, server: Server, store: Store
) -> None:
    comparison = started(store, suffix=None, comparison=ASKED)
    comparison.compare(cell("cce", 1))
    other = started(store, suffix=None, comparison=ASKED)
    started(store)
    page.goto(f"{server.url}/#{comparison.id}")
    expect(page.locator("#comparison tbody tr")).to_have_count(1)
    page.locator(f'#job-list a[href="#{other.id}"]').click()
    expect(page.locator("#comparison")).to_contain_text("The first figures come")
    page.locator("#job-list a", has_text="docs").click()
    expect(page.locator("#comparison")).to_be_hidden()
    expect(page.locator("#curve")).to_be_visible()


@pytest.mark.parametrize("width", [400, 1280])
def test_a_comparison_is_no_wider_than_the_window(
    page: Page, server: Server, store: Store, stored: Stored, width: int
) -> None:
    job = started(store, suffix=None, comparison=ASKED)
    for each in report().cells:
        job.compare(each)
    job.conclude([stored("comparison.html")])
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#comparison tbody tr")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
