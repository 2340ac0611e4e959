"""The status page in Chromium, on jobs whose records are driven as a worker drives them."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from service.auth import make_key
from service.contract.receipt import FilteredMass
from service.contract.settings import Settings
from service.contract.store import Store
from tests.browser.conftest import Server, serving
from tests.support.job_scene import SceneJob, train_loss
from tests.support.measured import LEDGER, MIB, MICRO_BATCH, RECEIPT, SCORED, TOTAL_STEPS
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.browser
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def job(store: Store) -> SceneJob:
    """A job that is measured and about to train."""
    job = SceneJob(store)
    job.queue()
    job.start()
    return job


def _points(page: Page) -> int:
    """Points of the training curve."""
    path = page.locator("#curve path.train").get_attribute("d") or ""
    return len(re.findall("[ML]", path))


def test_a_running_job_from_the_list_to_its_end(page: Page, server: Server, store: Store) -> None:
    job = SceneJob(store)
    SceneJob(store, suffix="other")
    page.goto(server.url)
    page.locator("#job-list a", has_text="docs").click()
    expect(page).to_have_url(f"{server.url}/#{job.id}")
    expect(page.locator("#job-status")).to_have_text("validating files")
    job.queue()
    expect(page.locator("#progress-text")).to_have_text("Position 1 in the queue")
    job.start()
    expect(page.locator("#ledger")).to_contain_text("less than full logits")
    job.train(range(1, 31))
    expect(page.locator("#progress-text")).to_contain_text(f"step 30 of {TOTAL_STEPS} · 12 %")
    assert _points(page) == 30
    expect(page.locator("#curve circle.valid")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text(f"Training loss{train_loss(30):.4f}")
    job.train(range(31, TOTAL_STEPS + 1))
    job.checkpoint(TOTAL_STEPS)
    job.succeed()
    expect(page.locator("#job-status")).to_have_text("succeeded")
    assert _points(page) == TOTAL_STEPS
    expect(page.locator("#events > li").first).to_contain_text("The job succeeded")
    expect(page.locator("#events > li").nth(1)).to_contain_text("Checkpoint created")
    expect(page.locator("#events")).not_to_contain_text("training loss=")
    page.get_by_label("metrics too").check()
    expect(page.locator("#events")).to_contain_text(f"Step {TOTAL_STEPS}/{TOTAL_STEPS}")


def test_the_ledger_as_bars(page: Page, server: Server, job: SceneJob) -> None:
    page.goto(f"{server.url}/#{job.id}")
    layer = page.locator("#ledger .group", has_text="Loss layer alone")
    expect(layer.locator(".bars > div")).to_have_count(len(LEDGER.losses))
    expect(page.locator("#ledger")).to_contain_text(
        "0.200 s, the mean of 3: data 5 %, forward 30 %"
    )
    expect(page.locator("#ledger .savings li").first).to_have_text(
        f"50.8{TIMES} less than full logits in the loss layer (6.0 MiB instead of 305.0 MiB);"
        f" a forward and backward pass 2.0{TIMES} less;"
        f" a micro-batch 9.0{TIMES} as large fits (modelled)"
    )
    expect(layer.locator(".bars > div").nth(1)).to_contain_text("modelled: two_logits")
    widths = [bar.bounding_box()["width"] for bar in layer.locator(".bar").all()]
    sizes = [entry.loss_layer.bytes for entry in LEDGER.losses]
    assert widths[2] / widths[0] == pytest.approx(sizes[2] / sizes[0], rel=0.02)
    page.get_by_text("log", exact=True).click()
    assert layer.locator(".bar").nth(2).bounding_box()["width"] > 2 * widths[2]


@pytest.mark.parametrize(
    ("layer", "step", "told", "worse"),
    [
        (0.2, 0.5, f"5.0{TIMES} more than full logits in the loss layer (6.0 MiB instead of", 1),
        (1.01, 0.99, "as much as full logits in the loss layer (6.0 MiB instead of", 0),
    ],
)
def test_a_loss_that_took_no_less_is_no_success(
    page: Page, server: Server, job: SceneJob, layer: float, step: float, told: str, worse: int
) -> None:
    saving = LEDGER.savings[0].model_copy(update={"loss_layer_ratio": layer, "step_ratio": step})
    job.measure(LEDGER.model_copy(update={"savings": [saving]}))
    page.goto(f"{server.url}/#{job.id}")
    savings = page.locator("#ledger .savings")
    expect(savings).to_contain_text(told)
    step_told = f"2.0{TIMES} more" if worse else "as much"
    expect(savings).to_contain_text(f"; a forward and backward pass {step_told}")
    expect(savings).not_to_contain_text("less")
    expect(savings.locator("strong.worse")).to_have_count(worse)


def test_the_errors_of_the_receipt(page: Page, server: Server, job: SceneJob) -> None:
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#ledger")).to_contain_text("Forward and backward pass")
    expect(page.locator("#ledger")).not_to_contain_text("fp32 on the first batch")
    job.verify()
    expect(page.locator("#ledger")).to_contain_text(
        "Against fp32 on the first batch: loss 9.60e-6 off, gradients 3.10e-6 off,"
        " of 0.00100 allowed. The filter estimates its error in the gradient of the hidden states:"
        " up to 0.00290."
    )


def test_a_filter_that_estimated_nothing_is_not_quoted(
    page: Page, server: Server, job: SceneJob
) -> None:
    nothing = FilteredMass(step=0, p50=0, p99=0, fallbacks=1)
    job.verify(RECEIPT.model_copy(update={"filtered": [nothing]}))
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#ledger")).to_contain_text("of 0.00100 allowed.")
    expect(page.locator("#ledger")).not_to_contain_text("The filter")


def test_the_prediction_and_what_came_of_it(page: Page, server: Server, job: SceneJob) -> None:
    page.goto(f"{server.url}/#{job.id}")
    shown = page.locator("#prediction")
    expect(shown).to_have_text("Predicted before training begins.")
    job.settle(MICRO_BATCH)
    expect(shown.locator(".bars > div")).to_have_count(1)
    expect(shown).to_contain_text("predicted824.0 MiB")
    expect(shown).not_to_contain_text("memory was predicted")
    expect(shown).to_contain_text("4 of 256 tokens takes the most, at its last layer")
    expect(shown).to_contain_text("weights 120.0 MiB, optimizer 240.0 MiB")
    expect(shown).not_to_contain_text("optimizer step")  # which takes nothing
    expect(shown).not_to_contain_text("attention")  # which is among the activations
    job.score()
    expect(shown.locator(".bars > div")).to_have_count(2)
    expect(shown.locator(".bars .own")).to_contain_text("measured800.0 MiBCPU allocator events")
    expect(shown).to_contain_text("3.0 % too much memory was predicted")
    widths = [bar.bounding_box()["width"] for bar in shown.locator(".bar").all()]
    assert widths[1] / widths[0] == pytest.approx(800 / 824, rel=0.02)
    job.score(SCORED.model_copy(update={"measured_bytes": 900 * MIB, "error": 824 / 900 - 1}))
    expect(shown).to_contain_text("8.4 % too little memory was predicted")
    job.score(SCORED.model_copy(update={"error": -4e-4}))
    expect(shown).to_contain_text("It took as much as predicted")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ["4", "the most of the batch that fit", "4.0", "with full logits, 1 (tried)"]),
        (
            {"size": 1, "chosen_by": "out_of_memory", "full_logits": 0, "multiple": None},
            ["1 sequence at once: halved", "with full logits not one fits (tried)"],
        ),
        (
            {"chosen_by": "request", "full_logits": 2, "multiple": 2.0, "provenance": "modelled"},
            ["4 sequences at once: as asked for", "2.0", "with full logits, 2 (predicted)"],
        ),
        (
            {"chosen_by": "rule", "full_logits": None, "multiple": None},
            ["4 sequences at once: the whole batch"],
        ),
    ],
)
def test_the_micro_batch_and_why(
    page: Page, server: Server, job: SceneJob, changes: dict[str, object], told: list[str]
) -> None:
    job.settle(MICRO_BATCH.model_copy(update=changes))
    page.goto(f"{server.url}/#{job.id}")
    for text in told:
        expect(page.locator("#prediction .savings")).to_contain_text(text)
    if changes.get("full_logits", 1) is None:
        expect(page.locator("#prediction")).not_to_contain_text("full logits")


def test_values_of_the_curve_at_the_pointer_and_by_keys(
    page: Page, server: Server, job: SceneJob
) -> None:
    job.train(range(1, 41))
    page.goto(f"{server.url}/#{job.id}")
    legend, chart = page.locator("#curve-legend"), page.get_by_role("slider")
    expect(legend).to_contain_text("step 40, the latest")
    chart.hover(position={"x": 60, "y": 100})
    expect(legend).not_to_contain_text("latest")
    chart.focus()
    chart.press("Home")
    expect(chart).to_have_attribute("aria-valuetext", f"Step 1: training {train_loss(1):.2f}")
    chart.press("ArrowRight")
    expect(legend).to_contain_text(f"training {train_loss(2):.4f}")


def test_a_resumed_attempt_replaces_the_steps_it_repeats(
    page: Page, server: Server, job: SceneJob
) -> None:
    job.train(range(1, 31))
    job.train(range(11, 21))
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#curve-legend")).to_contain_text("step 20")
    assert _points(page) == 20


def test_events_of_a_job_that_is_looked_at_again_are_newest_first(
    page: Page, server: Server, store: Store, job: SceneJob
) -> None:
    job.succeed()
    other = SceneJob(store, suffix="other")
    shown = page.locator("#events > li")
    page.goto(f"{server.url}/#{job.id}")
    expect(shown.first).to_contain_text("The job succeeded")
    history = shown.all_text_contents()
    for _ in range(2):
        page.locator("#job-list a", has_text="other").click()
        expect(page.locator("#job-id")).to_have_text(other.id)
        page.locator("#job-list a", has_text="docs").click()
        expect(shown).to_have_text(history)


def test_the_history_of_a_long_job_begins_with_its_beginning(
    page: Page, server: Server, job: SceneJob
) -> None:
    job.train([1] * 1000)
    job.succeed()
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#events > li").first).to_contain_text("The job succeeded")
    expect(page.locator("#events > li").last).to_contain_text("Created fine-tuning job")


def test_a_failed_job_says_why(page: Page, server: Server, job: SceneJob) -> None:
    job.train(range(1, 4))
    job.fail("out_of_memory", "2.5 GiB asked, 1.1 GiB free.")
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#job-error")).to_have_text("out_of_memory2.5 GiB asked, 1.1 GiB free.")
    expect(page.locator("#events > li").first).to_contain_text("Error: The job failed")


def test_what_a_caller_wrote_stays_text(page: Page, server: Server, store: Store) -> None:
    SceneJob(store, suffix="<img src=x onerror=alert(1)>", model="<script>alert(2)</script>")
    page.goto(server.url)
    expect(page.locator("#job-title")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("#job img, #job-list img, #job script").count() == 0


def test_no_jobs_and_no_such_job(page: Page, server: Server) -> None:
    page.goto(server.url)
    expect(page.locator("#empty")).to_contain_text("No jobs yet")
    page.goto(f"{server.url}/#ftjob-nothing")
    expect(page.locator("#missing")).to_be_visible()
    expect(page.locator("#job")).to_be_hidden()


def test_more_jobs_than_a_page(page: Page, server: Server, store: Store) -> None:
    jobs = [SceneJob(store, suffix=f"number-{number}") for number in range(23)]
    page.goto(server.url)
    expect(page.locator("#job-list li")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#job-list li")).to_have_count(23)
    expect(page.locator("#job-list li").last).to_contain_text("number-0")
    assert jobs[0].id in page.locator("#job-list a").last.get_attribute("href")


def test_redis_goes_away_and_comes_back(
    page: Page, server: Server, job: SceneJob, redis_server: RedisServer
) -> None:
    page.goto(server.url)
    expect(page.locator("#connection")).to_have_text("Live")
    redis_server.kill()
    try:
        expect(page.get_by_role("alert")).to_contain_text("Redis does not answer")
        expect(page.locator("#job-title")).to_contain_text("tiny-llama")
    finally:
        redis_server.start()
    job.train(range(1, 6))
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#progress-text")).to_contain_text("step 5")


def test_the_api_goes_away_and_comes_back(page: Page, server: Server, job: SceneJob) -> None:
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#connection")).to_have_text("Live")
    server.stop()
    expect(page.get_by_role("alert")).to_contain_text("The API does not answer")
    server.start()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#connection")).to_have_text("Live")


def test_a_change_whose_events_did_not_come_is_shown_when_they_do(
    page: Page, server: Server, job: SceneJob
) -> None:
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#events")).to_contain_text("Options resolved.")
    page.route("**/events?*", lambda route: route.abort())
    job.succeed()
    expect(page.get_by_role("alert")).to_be_visible()
    page.unroute("**/events?*")
    expect(page.locator("#events > li").first).to_contain_text("The job succeeded")


def test_the_key_is_asked_for_and_stays_in_the_tab(
    page: Page, settings: Settings, store: Store, tmp_path: Path
) -> None:
    key, line = make_key("acme")
    keys = tmp_path / "keys"
    keys.write_text(line)
    SceneJob(store, org="acme")
    with serving(settings, api_keys_file=keys) as server:
        page.goto(server.url)
        page.get_by_label("Key", exact=True).fill("sk-wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_contain_text("API key")
        page.get_by_role("button", name="API key").click()
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#job-list li")).to_have_count(1)
        page.reload()
        expect(page.locator("#job-list li")).to_have_count(1)
        assert key not in page.url
        assert page.evaluate("Object.values(localStorage).length") == 0
        page.get_by_role("button", name="API key").click()
        page.get_by_role("button", name="Forget it").click()
        expect(page.locator("#job-list li")).to_have_count(0)


def test_an_unchanged_job_is_asked_for_conditionally(
    page: Page, server: Server, job: SceneJob
) -> None:
    job.train(range(1, 3))
    answers: list[tuple[str, int]] = []
    page.on("response", lambda answer: answers.append((answer.url, answer.status)))
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#curve path.train")).to_be_attached()
    with page.expect_response(lambda answer: answer.status == 304):
        pass
    answers.clear()
    with page.expect_response(lambda answer: answer.status == 304 and job.id in answer.url):
        pass
    assert not [url for url, _ in answers if "/events" in url or "/metrics" in url]


def test_nothing_is_asked_while_the_tab_is_hidden(
    page: Page, server: Server, job: SceneJob
) -> None:
    asked: list[str] = []

    def note(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    page.route("**/v1/**", note)
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#connection")).to_have_text("Live")
    page.evaluate("""() => {
        Object.defineProperty(document, "hidden", { get: () => window.away, configurable: true });
        window.away = true;
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(2500)
    assert asked == []
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(500)
    assert asked


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_is_wider_than_the_window(
    page: Page, server: Server, job: SceneJob, width: int
) -> None:
    job.train(range(1, 41))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{server.url}/#{job.id}")
    expect(page.locator("#curve path.train")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 1280:
        expect(page.locator("#job-list")).to_be_hidden()
        page.get_by_role("link", name="All jobs").click()
        expect(page.locator("#job-list")).to_be_visible()
        expect(page.locator("#job")).to_be_hidden()


@pytest.mark.parametrize("width", [400, 1280])
def test_the_suffix_that_tells_jobs_apart_is_not_cut_off(
    page: Page, server: Server, store: Store, width: int
) -> None:
    """Beside the status there was room for the model's name alone, of a demo's job too."""
    SceneJob(store, model="python-docs-base", suffix="a-suffix-that-says-what-is-new")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(server.url)
    name = page.locator("#job-list .row-name")
    expect(name).to_be_visible()
    assert name.evaluate("name => name.scrollWidth <= name.clientWidth")
    row = page.locator("#job-list a")
    assert row.evaluate("row => row.scrollWidth <= row.clientWidth")
