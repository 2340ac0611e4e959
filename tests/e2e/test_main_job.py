"""The whole life cycle of a job with the official client, unchanged, sync and async."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from openai.types.fine_tuning import FineTuningJob
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.stack import Stack
from tests.support.stack import TINY, write_chat
from tests.worker.support import until

DONE = {"succeeded", "failed", "cancelled"}
LONG = {"n_epochs": 50, "batch_size": 1}


def _method(**hyperparameters: int) -> dict:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="unused") as client:
        yield client


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return write_chat(tmp_path / "chat.jsonl")


@pytest.fixture(scope="module")
def trained(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> FineTuningJob:
    """A job that the client has uploaded for, created and waited for."""
    folder = tmp_path_factory.mktemp("trained")
    with OpenAI(base_url=f"{stack.url}/v1", api_key="unused") as client:
        training = client.files.create(file=write_chat(folder / "chat.jsonl"), purpose="fine-tune")
        assert (training.status, training.filename) == ("processed", "chat.jsonl")
        validation = client.files.create(
            file=write_chat(folder / "validation.jsonl", rows=4), purpose="fine-tune"
        )
        created = client.fine_tuning.jobs.create(
            model=TINY,
            training_file=training.id,
            validation_file=validation.id,
            suffix="e2e",
            seed=7,
            metadata={"why": "test"},
            method=_method(n_epochs=2, batch_size=4),
            extra_body={"learning_rate": 1e-2, "max_seq_length": 64, "checkpoint_every": 6},
        )
        assert created.status == "validating_files"
        return _finished(client, created.id)


@pytest.fixture
def cancelled(client: OpenAI, chat: Path) -> tuple[str, str, dict[str, str]]:
    """Two jobs of the same metadata, oldest first, and the metadata."""
    file = client.files.create(file=chat, purpose="fine-tune").id
    metadata = {"pair": file}
    first, second = (
        client.fine_tuning.jobs.create(
            model=TINY, training_file=file, suffix=suffix, metadata=metadata
        ).id
        for suffix in ("first", "second")
    )
    for job_id in (first, second):
        client.fine_tuning.jobs.cancel(job_id)
    return first, second, metadata


def test_a_job_from_upload_to_a_model_that_transformers_loads(
    client: OpenAI, stack: Stack, trained: FineTuningJob, tmp_path: Path
) -> None:
    assert TINY in {model.id for model in client.models.list()}
    assert trained.status == "succeeded", trained.error
    assert trained.trained_tokens > 0
    assert trained.fine_tuned_model.startswith(f"ft:{TINY}:")
    assert ":e2e:" in trained.fine_tuned_model
    assert trained.method.supervised.hyperparameters.n_epochs == 2
    _check_events(client, trained.id)
    _check_extensions(trained.model_extra)
    _check_results(client, trained.result_files)
    memory = httpx.get(f"{stack.url}/v1/fine_tuning/jobs/{trained.id}/memory").json()
    assert memory["ledger"] == trained.model_extra["memory"]
    _check_model(stack, trained.fine_tuned_model, tmp_path / "model")
    assert client.models.retrieve(trained.fine_tuned_model).id == trained.fine_tuned_model
    assert client.models.delete(trained.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(trained.fine_tuned_model)


def test_checkpoints_are_models_after_the_job_and_keep_no_training_state(
    client: OpenAI, stack: Stack, trained: FineTuningJob, tmp_path: Path
) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(trained.id))
    folder = stack.logs.parent / "storage" / "checkpoints" / trained.id
    until(lambda: not [*folder.glob("*/state")], 60, what="the training state to go")
    assert len([*folder.iterdir()]) == len(checkpoints) >= 2
    for checkpoint in checkpoints:
        name = f"model-{checkpoint.step_number}"
        _check_model(stack, checkpoint.fine_tuned_model_checkpoint, tmp_path / name)


def test_the_client_pages_through_jobs_and_checkpoints_and_filters_by_metadata(
    client: OpenAI, trained: FineTuningJob, cancelled: tuple[str, str, dict[str, str]]
) -> None:
    first, second, metadata = cancelled
    jobs = client.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=1, metadata=metadata)] == [second, first]
    assert [job.id for job in jobs.list(metadata={"why": "test"})] == [trained.id]
    every = [job.id for job in jobs.list(limit=1)]
    assert len({*every}) == len(every)
    assert {first, second, trained.id} <= {*every}
    checkpoints = list(jobs.checkpoints.list(trained.id, limit=1))
    steps = [checkpoint.step_number for checkpoint in checkpoints]
    assert steps == sorted(steps, reverse=True)
    assert {6, 12} <= {*steps}
    assert None not in checkpoints[0].metrics.model_dump().values()


def test_the_async_client_sees_the_same(
    stack: Stack, trained: FineTuningJob, cancelled: tuple[str, str, dict[str, str]]
) -> None:
    first, second, metadata = cancelled

    async def scenario() -> None:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused") as client:
            jobs = client.fine_tuning.jobs
            assert await jobs.retrieve(trained.id) == trained
            found = [job.id async for job in jobs.list(limit=1, metadata=metadata)]
            assert found == [second, first]
            events = [event async for event in jobs.list_events(trained.id, limit=5)]
            assert len({event.id for event in events}) == len(events) > 5
            assert events[-1].message == f"Created fine-tuning job: {trained.id}"
            checkpoints = [each async for each in jobs.checkpoints.list(trained.id, limit=1)]
            assert {6, 12} <= {each.step_number for each in checkpoints}
            model = await client.models.retrieve(checkpoints[-1].fine_tuned_model_checkpoint)
            assert model.owned_by == trained.organization_id
            for file_id in trained.result_files:
                content = await client.files.content(file_id)
                assert len(content.content) == (await client.files.retrieve(file_id)).bytes > 0
            results = client.files.list(purpose="fine-tune-results", limit=1)
            assert {*trained.result_files} <= {file.id async for file in results}

    asyncio.run(scenario())


def test_the_async_client_cancels_a_running_job(stack: Stack, chat: Path) -> None:
    async def scenario() -> None:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused") as client:
            file = await client.files.create(file=chat, purpose="fine-tune")
            job = await client.fine_tuning.jobs.create(
                model=TINY, training_file=file.id, method=_method(**LONG)
            )
            while job.status not in DONE and not _step(job):
                await asyncio.sleep(0.1)
                job = await client.fine_tuning.jobs.retrieve(job.id)
            assert job.status == "running"
            asked = time.monotonic()
            await client.fine_tuning.jobs.cancel(job.id)
            while job.status not in DONE:
                await asyncio.sleep(0.1)
                job = await client.fine_tuning.jobs.retrieve(job.id)
            assert job.status == "cancelled"
            assert time.monotonic() - asked < 5
            events = [event async for event in client.fine_tuning.jobs.list_events(job.id)]
            assert "ancelled" in events[0].message
            assert (await client.files.delete(file.id)).deleted

    asyncio.run(scenario())


def test_what_is_wrong_with_a_request_is_an_openai_error(client: OpenAI, chat: Path) -> None:
    file = client.files.create(file=chat, purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as unknown_model:
        client.fine_tuning.jobs.create(model="no-such-model", training_file=file.id)
    assert unknown_model.value.param == "model"
    assert unknown_model.value.code
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-nothing")


def _finished(client: OpenAI, job_id: str) -> FineTuningJob:
    deadline = time.monotonic() + 120
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in DONE:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def _step(job: FineTuningJob) -> int:
    progress = job.model_extra.get("progress")
    return progress["step"] if progress else 0


def _check_events(client: OpenAI, job_id: str) -> None:
    """Paged by the client, newest first, with a loss that falls."""
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=5))
    assert len({event.id for event in events}) == len(events) > 5
    assert "succeeded" in events[0].message
    metrics = [event.data for event in events if event.type == "metrics"][::-1]
    losses = [data["train_loss"] for data in metrics if "train_loss" in data]
    assert losses[-1] < losses[0]


def _check_extensions(extra: dict) -> None:
    assert extra["progress"]["step"] == extra["progress"]["total_steps"] == 12
    assert extra["attempt"] == 1
    assert extra["worker"]
    by_loss = {entry["loss"]: entry["loss_layer"] for entry in extra["memory"]["losses"]}
    assert by_loss["cce"]["provenance"] == "measured"
    assert {"full_logits", "chunked", "cce"} <= set(by_loss)
    assert extra["phases"]["backward"] > 0
    assert (extra["micro_batch"]["size"], extra["micro_batch"]["chosen_by"]) == (4, "rule")
    assert abs(extra["estimate"]["error"]) < 0.15
    assert extra["receipt"]["resumed_from_step"] is None
    assert extra["reduced_batch"] is None


def test_what_a_job_would_need_is_known_before_it_runs(
    client: OpenAI, stack: Stack, trained: FineTuningJob
) -> None:
    """Exactly, since a job has tokenized the file, on the device that the worker has told of."""
    body = {"model": TINY, "training_file": trained.training_file, "max_seq_length": 64}
    with httpx.Client(base_url=f"{stack.url}/v1") as http:
        until(lambda: http.get("fleet").json()["data"], 60, what="the worker's device")
        estimate = http.post("fine_tuning/estimate", json=body).raise_for_status().json()
    assert estimate["data"]["basis"] == "tokenized"
    assert estimate["data"]["examples"] == 24
    (device,) = estimate["devices"]
    assert device["fits"] is True
    assert device["workers"]


def test_what_the_job_measured_is_exported(stack: Stack, trained: FineTuningJob) -> None:
    text = httpx.get(f"{stack.url}/metrics").raise_for_status().text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    jobs = {sample.labels["status"]: sample.value for sample in families["headroom_jobs"].samples}
    assert jobs["succeeded"] >= 1
    baselines = {saving["baseline"] for saving in trained.model_extra["memory"]["savings"]}
    for name, labels in [
        ("headroom_estimate_error_ratio", [{}]),
        ("headroom_loss_layer_saving_ratio", [{"baseline": each} for each in baselines]),
    ]:
        found = [each.labels for each in families[name].samples if each.labels.get("le") == "+Inf"]
        for wanted in labels:
            assert any({**wanted, "trained": "full"}.items() <= each.items() for each in found)


def _check_results(client: OpenAI, files: list[str]) -> None:
    contents = [client.files.content(file_id).text for file_id in files]
    header = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    table = next(text for text in contents if text.startswith(header))
    rows = list(csv.DictReader(io.StringIO(table)))
    assert float(rows[-1]["train_loss"]) > 0
    outliers = next(text for text in contents if text.startswith("epoch,line,loss,tokens"))
    worst = list(csv.DictReader(io.StringIO(outliers)))
    assert {row["epoch"] for row in worst} == {"1", "2"}
    assert float(worst[0]["loss"]) >= float(worst[1]["loss"]) > 0
    report = next(json.loads(text) for text in contents if text.startswith("{"))
    assert report["receipt"]["training_file_sha256"] == report["training_file_sha256"]


def _check_model(stack: Stack, model_id: str, folder: Path) -> None:
    """Download what the model resource lists, and use it."""
    url = f"{stack.url}/v1/models/{model_id}"
    folder.mkdir()
    for file in httpx.get(url).json()["files"]:
        content = httpx.get(f"{url}/files/{file['name']}").raise_for_status().content
        assert len(content) == file["bytes"]
        (folder / file["name"]).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("What is", return_tensors="pt")
    with torch.inference_mode():
        assert torch.isfinite(model(**tokens).logits).all()
