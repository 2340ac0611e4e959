"""The life of a job through the openai client; the worker's part is played on the store."""

import asyncio
import time
from typing import Any

import httpx
import openai
import pytest

from service.contract.job import Event, JobError, JobStatus, Progress, ReducedBatch
from service.contract.memory import StepPhases
from service.contract.spec import ResolvedOptions
from service.contract.store import Store
from tests.service.contract.support import EVENT, checkpoint
from tests.service.support import CHAT, JOBS, LEDGER, enqueue, error_of, start, submit
from tests.support.stack import TINY

# Of the wire format; clients rely on each being there.
REQUIRED = {
    "id", "object", "created_at", "error", "finished_at", "fine_tuned_model", "hyperparameters",
    "model", "organization_id", "result_files", "status", "trained_tokens", "training_file",
    "validation_file", "seed",
}  # fmt: skip
EXTENSIONS = {
    "progress", "memory", "phases", "queue_position", "attempt", "worker", "receipt", "resolved",
    "reduced_batch",
}  # fmt: skip


def _metrics(step: int) -> Event:
    data = {"step": step, "total_steps": 6, "train_loss": 9.0 - step, "learning_rate": 0.1}
    return Event(message=f"Step {step}/6", type="metrics", data=data)


def test_a_new_job_has_every_field(client: openai.OpenAI, http: httpx.Client) -> None:
    before = int(time.time())
    file = client.files.create(file=("a.jsonl", CHAT), purpose="fine-tune").id
    body = {"model": TINY, "training_file": file}
    answer = http.post(JOBS, json=body)
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{JOBS}/{job['id']}"
    assert job.keys() >= REQUIRED | EXTENSIONS
    assert job["id"].startswith("ftjob-")
    assert (job["object"], job["status"]) == ("fine_tuning.job", "validating_files")
    assert before <= job["created_at"] <= time.time()
    assert (job["model"], job["training_file"]) == (TINY, file)
    assert (job["organization_id"], job["result_files"], job["attempt"]) == ("org-local", [], 0)
    assert job["hyperparameters"] == {
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        "n_epochs": "auto",
    }
    empty = REQUIRED | EXTENSIONS - {"attempt"}
    empty -= {key for key, value in job.items() if value is not None}
    assert empty == {
        "error", "finished_at", "fine_tuned_model", "trained_tokens", "validation_file",
        "progress", "memory", "phases", "queue_position", "worker", "receipt", "resolved",
        "reduced_batch",
    }  # fmt: skip
    assert http.get(answer.headers["Location"]).json() == job


def test_from_the_queue_to_the_result(
    client: openai.OpenAI, store: Store, training_file: str
) -> None:
    jobs = client.fine_tuning.jobs
    job = submit(client, training_file, suffix="mine", seed=3)
    assert (job.status, job.seed) == ("validating_files", 3)
    enqueue(store, job.id)
    waiting = jobs.retrieve(job.id)
    assert (waiting.status, waiting.queue_position) == ("queued", 1)  # type: ignore[attr-defined]
    claim = store.claim(job.id, "worker-1", JobStatus.QUEUED)
    assert claim is not None
    progress = Progress(phase="training", step=1, total_steps=4, eta_s=60.0)
    store.update(claim, progress=progress)
    running = jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish is not None
    assert running.estimated_finish > time.time() + 30
    assert running.model_extra is not None
    assert running.model_extra["progress"]["step"] == 1
    assert (running.model_extra["worker"], running.model_extra["attempt"]) == ("worker-1", 1)
    assert running.model_extra["queue_position"] is None
    result = {"fine_tuned_model": "ft:tiny:org-local:mine:1", "trained_tokens": 7}
    store.transition(job.id, JobStatus.SUCCEEDED, EVENT, token=claim.token, **result)
    ended = jobs.retrieve(job.id)
    assert (ended.status, ended.trained_tokens) == ("succeeded", 7)
    assert ended.fine_tuned_model == "ft:tiny:org-local:mine:1"
    assert ended.finished_at is not None
    assert ended.estimated_finish is None


def test_a_failure_says_why(client: openai.OpenAI, store: Store, training_file: str) -> None:
    job = submit(client, training_file)
    claim = start(store, job.id)
    error = JobError(code="out_of_memory", message="It asked for 9 GB.")
    store.transition(job.id, JobStatus.FAILED, EVENT, token=claim.token, error=error)
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.model_dump() == error.model_dump()


def test_resolved_values_take_the_place_of_auto(
    client: openai.OpenAI, store: Store, training_file: str
) -> None:
    job = submit(client, training_file, extra_body={"adapter": {"type": "lora"}})
    resolved = ResolvedOptions(
        device="cpu",
        trained="lora",
        batch_size=4,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        n_epochs=3,
        learning_rate_multiplier=1.0,
        learning_rate=2e-4,
        max_seq_length=64,
        gradient_checkpointing=False,
        dtype="float32",
        loss_implementation="blocked",
        checkpoint_every=5,
        total_steps=50,
    )
    store.update(start(store, job.id), resolved=resolved)
    seen = client.fine_tuning.jobs.retrieve(job.id)
    expected = {"batch_size": 4, "learning_rate_multiplier": 1.0, "n_epochs": 3}
    assert seen.hyperparameters.model_dump() == expected
    assert seen.method is not None
    assert seen.method.supervised is not None
    assert seen.method.supervised.hyperparameters is not None
    assert seen.method.supervised.hyperparameters.model_dump() == expected
    assert seen.model_extra is not None
    echoed = {name: seen.model_extra[name] for name in ("learning_rate", "dtype", "loss")}
    assert echoed == {
        "learning_rate": 2e-4,
        "dtype": "float32",
        "loss": {"implementation": "blocked", "preset": "default"},
    }
    assert seen.model_extra["adapter"]["rank"] == 16
    assert seen.model_extra["resolved"]["total_steps"] == 50


def test_jobs_are_paged_newest_first(client: openai.OpenAI, training_file: str) -> None:
    made = [submit(client, training_file, suffix=f"s{n}").id for n in range(5)]
    jobs = client.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2)] == made[::-1]
    page = jobs.list(limit=2)
    assert ([job.id for job in page.data], page.has_more) == (made[:2:-1], True)
    assert [job.id for job in jobs.list(after=made[2])] == made[1::-1]


def test_jobs_are_filtered_by_metadata(client: openai.OpenAI, training_file: str) -> None:
    pairs = [{"team": "a", "run": "1"}, {"team": "b"}, {"team": "a", "run": "2", "[k]": "=&"}]
    made = [submit(client, training_file, metadata=each).id for each in pairs]
    found = {
        "a": [job.id for job in client.fine_tuning.jobs.list(limit=1, metadata={"team": "a"})],
        "2": [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a", "run": "2"})],
        "odd": [job.id for job in client.fine_tuning.jobs.list(metadata={"[k]": "=&"})],
        "none": [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "c"})],
    }
    assert found == {"a": [made[2], made[0]], "2": [made[2]], "odd": [made[2]], "none": []}


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?after=file-1", "after"),
        ("?metadata=team", "metadata"),
        ("?metadata[team=a", "metadata"),
        ("?metadata.team=a", "metadata"),
        ("/{id}/events?after=1", "after"),
        ("/{id}/events?order=up", "order"),
        ("/{id}/events?limit=-1", "limit"),
        ("/{id}/checkpoints?after=1", "after"),
        ("/{id}/metrics?resolution=1", "resolution"),
    ],
)
def test_a_query_names_the_parameter_at_fault(
    client: openai.OpenAI, http: httpx.Client, training_file: str, path: str, param: str
) -> None:
    job = submit(client, training_file)
    answer = http.get(JOBS + path.format(id=job.id))
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


@pytest.mark.parametrize("part", ["", "/events", "/metrics", "/memory", "/checkpoints"])
def test_an_unknown_job_is_not_found(http: httpx.Client, part: str) -> None:
    answer = http.get(f"{JOBS}/ftjob-nothing{part}")
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "job_not_found", "job_id")


def test_a_waiting_job_is_cancelled_at_once(client: openai.OpenAI, training_file: str) -> None:
    job = submit(client, training_file)
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    events = client.fine_tuning.jobs.list_events(job.id)
    assert next(iter(events)).message == "Cancelled by request."
    with pytest.raises(openai.ConflictError) as error:
        client.fine_tuning.jobs.cancel(job.id)
    assert error.value.code == "illegal_transition"
    assert error.value.response.headers["x-should-retry"] == "false"


def test_a_running_job_is_asked_to_stop(
    client: openai.OpenAI, store: Store, training_file: str
) -> None:
    job = submit(client, training_file)
    claim = start(store, job.id)
    for _ in range(2):
        asked = client.fine_tuning.jobs.cancel(job.id)
        assert asked.status == "running"
        assert asked.model_extra is not None
        assert asked.model_extra["cancel_requested"] is True
    assert store.heartbeat(claim).cancel_requested
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.cancel("ftjob-nothing")


def test_events_are_paged_newest_first_and_followed_oldest_first(
    client: openai.OpenAI, http: httpx.Client, store: Store, training_file: str
) -> None:
    job = submit(client, training_file)
    claim = start(store, job.id)
    for step in range(1, 7):
        store.update(claim, _metrics(step))
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=4))
    assert len(events) == 10
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert events[-1].object == "fine_tuning.job.event"
    steps = [event.data["step"] for event in events if event.type == "metrics"]  # type: ignore[index]
    assert steps == [6, 5, 4, 3, 2, 1]
    seen: list[str] = []
    while True:
        query: dict[str, Any] = {"order": "asc", "limit": 3}
        query |= {"after": seen[-1]} if seen else {}
        page = http.get(f"{JOBS}/{job.id}/events", params=query).json()
        seen += [event["id"] for event in page["data"]]
        if not page["has_more"]:
            break
    assert seen == [event.id for event in events][::-1]


def test_metrics_are_the_loss_curve(
    client: openai.OpenAI, http: httpx.Client, store: Store, training_file: str
) -> None:
    job = submit(client, training_file)
    claim = start(store, job.id)
    path = f"{JOBS}/{job.id}/metrics"
    assert http.get(path).json()["data"] == []
    for step in range(1, 7):
        store.update(claim, _metrics(step))
    points = http.get(path).json()["data"]
    assert [point["step"] for point in points] == [1, 2, 3, 4, 5, 6]
    assert (points[0]["train_loss"], points[0]["valid_loss"]) == (8.0, None)
    few = http.get(path, params={"resolution": 3}).json()["data"]
    assert [point["step"] for point in few] == [2, 4, 6]


def test_the_memory_ledger_has_a_resource_of_its_own(
    client: openai.OpenAI, http: httpx.Client, store: Store, training_file: str
) -> None:
    job = submit(client, training_file)
    claim = start(store, job.id)
    path = f"{JOBS}/{job.id}/memory"
    assert error_of(http.get(path))["code"] == "memory_not_measured"
    store.update(claim, memory=LEDGER)
    answer = http.get(path)
    body = answer.json()
    assert body["object"] == "fine_tuning.job.memory"
    assert body["fine_tuning_job_id"] == job.id
    assert body["phases"] is None
    full = body["ledger"]["losses"][0]
    assert full["loss_layer"]["provenance"] == "out_of_memory"
    assert full["largest_micro_batch"]["formula"] == "proportional_step"
    phases = StepPhases(steps=3, data=0.1, forward=1.0, loss=0.2, backward=2.0, optimizer=0.5)
    reduced = ReducedBatch(micro_batch_size=4, times=1)
    store.update(claim, phases=phases, reduced_batch=reduced)
    again = http.get(path, headers={"If-None-Match": answer.headers["ETag"]}).json()
    assert again["phases"] == phases.model_dump()
    assert again["reduced_batch"] == {"micro_batch_size": 4, "times": 1}
    seen = client.fine_tuning.jobs.retrieve(job.id).model_extra
    assert seen is not None
    assert (seen["memory"], seen["phases"]) == (body["ledger"], phases.model_dump())


@pytest.mark.parametrize(
    ("options", "ended", "why"),
    [
        ({}, False, "it is running, and measures when training begins"),
        ({}, True, "it cancelled before"),
        ({"memory_ledger": False}, False, "it was created with memory_ledger false"),
    ],
)
def test_a_job_without_a_ledger_says_why(
    client: openai.OpenAI,
    http: httpx.Client,
    store: Store,
    training_file: str,
    options: dict[str, Any],
    ended: bool,
    why: str,
) -> None:
    job = submit(client, training_file, extra_body=options)
    claim = start(store, job.id)
    if ended:
        store.transition(job.id, JobStatus.CANCELLED, EVENT, token=claim.token)
    answer = http.get(f"{JOBS}/{job.id}/memory")
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (404, "job_id")
    assert error["message"] == f"Job {job.id} has no memory ledger: {why}."


def test_checkpoints_are_paged_newest_first_and_are_models(
    client: openai.OpenAI, http: httpx.Client, store: Store, training_file: str
) -> None:
    job = submit(client, training_file)
    claim = start(store, job.id)
    for step in (2, 4, 6):
        time.sleep(0.002)  # ids are in order from one millisecond to the next
        made, model = checkpoint(claim, step)
        made = made.model_copy(update={"metrics": {"train_loss": 1.5}})
        store.add_checkpoint(claim, made, model.model_copy(update={"org": "org-local"}), keep=5)
    found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [each.step_number for each in found] == [6, 4, 2]
    assert found[0].fine_tuning_job_id == job.id
    assert (found[0].metrics.step, found[0].metrics.train_loss) == (6, 1.5)
    page = http.get(f"{JOBS}/{job.id}/checkpoints").json()
    assert (page["first_id"], page["last_id"]) == (found[0].id, found[-1].id)
    assert page["has_more"] is False
    model_id = found[0].fine_tuned_model_checkpoint
    assert model_id.endswith(":ckpt-step-6")
    assert client.models.retrieve(model_id).id == model_id


def test_every_list_says_whether_there_is_more(
    client: openai.OpenAI, http: httpx.Client, training_file: str
) -> None:
    job = submit(client, training_file)
    lists = ["/v1/files", "/v1/models", JOBS]
    lists += [f"{JOBS}/{job.id}/{part}" for part in ("events", "checkpoints", "metrics")]
    for path in lists:
        body = http.get(path).json()
        assert (body["object"], body["has_more"]) == ("list", False)


def test_the_async_client_lives_through_the_same(url: str, store: Store) -> None:
    async def scenario() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            file = await client.files.create(file=("chat.jsonl", CHAT), purpose="fine-tune")
            assert (await client.files.content(file.id)).content == CHAT
            job = await client.fine_tuning.jobs.create(model=TINY, training_file=file.id)
            assert [each.id async for each in client.fine_tuning.jobs.list(limit=1)] == [job.id]
            await asyncio.to_thread(start, store, job.id)
            assert (await client.fine_tuning.jobs.retrieve(job.id)).status == "running"
            assert (await client.fine_tuning.jobs.cancel(job.id)).status == "running"
            events = [each async for each in client.fine_tuning.jobs.list_events(job.id, limit=2)]
            assert events[0].message == "Cancellation requested."
            assert [each async for each in client.fine_tuning.jobs.checkpoints.list(job.id)] == []
            assert [each.id async for each in client.models.list()] == [TINY]
            with pytest.raises(openai.NotFoundError):
                await client.fine_tuning.jobs.retrieve("ftjob-nothing")

    asyncio.run(scenario())
