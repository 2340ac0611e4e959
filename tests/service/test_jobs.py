import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from redis import Redis

from service.contract import keys
from service.contract.files import Files
from service.contract.models import Models
from service.contract.queue import VALIDATE, Queue, make_celery
from service.contract.settings import Settings
from service.contract.storage import Storage
from service.contract.store import Store
from service.settings import ServiceSettings
from tests.service.contract.support import file_record
from tests.service.support import JOBS, enqueue, error_of, submit, tuned_model, upload
from tests.support.stack import TINY

COMPARISONS = "/v1/fine_tuning/comparisons"
CONFIG_OF_64 = '{"model_type": "llama", "max_position_embeddings": 64}'


@pytest.fixture
def body(training_file: str) -> dict[str, Any]:
    return {"model": TINY, "training_file": training_file}


@pytest.fixture
def of_64(service_settings: ServiceSettings) -> Iterator[str]:
    """A base model whose context is 64 tokens, by its name."""
    folder = service_settings.model_folders[0] / "of-64"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG_OF_64)
    yield folder.name
    shutil.rmtree(folder)


@pytest.fixture
def queue(settings: Settings, redis: Redis) -> Iterator[Queue]:
    with make_celery(settings) as celery:
        yield Queue(celery, redis)


def _create(http: httpx.Client, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    return http.post(JOBS, json=body, headers={"Idempotency-Key": key} if key else {})


def _count(http: httpx.Client) -> int:
    return len(http.get(JOBS).json()["data"])


def test_a_new_job_waits_in_the_queue_for_validation(
    client: openai.OpenAI, queue: Queue, training_file: str
) -> None:
    job = submit(client, training_file)
    assert queue.waiting(VALIDATE) == {job.id}


@pytest.mark.parametrize("path", [JOBS, COMPARISONS])
def test_sequences_longer_than_the_model_can_take_are_refused_at_once(
    http: httpx.Client, of_64: str, body: dict[str, Any], path: str
) -> None:
    body = {**body, "model": of_64}
    assert http.post(path, json={**body, "max_seq_length": 64}).status_code == 201
    refused = http.post(path, json={**body, "max_seq_length": 65})
    error = error_of(refused)
    assert (refused.status_code, error["code"]) == (400, "unsupported_model")
    assert error["param"] == "max_seq_length"
    assert error["message"] == "max_seq_length is 65; the model's context is 64."
    assert _count(http) == 1


def test_so_they_are_for_a_tuned_model_and_an_adapter_on_it(
    http: httpx.Client, storage: Storage, models: Models, body: dict[str, Any]
) -> None:
    full = tuned_model(storage, "ft:full")
    with storage.write(f"{full.path}/config.json") as file:
        file.write(CONFIG_OF_64.encode())
    adapter = tuned_model(storage, "ft:adapter", base="ft:full", kind="lora")
    with storage.write(f"{adapter.path}/adapter_config.json") as file:
        file.write(b'{"r": 4, "target_modules": ["q_proj"]}')
    for tuned in (full, adapter):
        models.add(tuned)
        answer = _create(http, {**body, "model": tuned.id, "max_seq_length": 65})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "max_seq_length")


@pytest.mark.parametrize("config", ["{}", "no JSON", '{"max_position_embeddings": null}', None])
def test_what_only_the_worker_can_know_of_a_model_is_left_to_it(
    http: httpx.Client,
    service_settings: ServiceSettings,
    of_64: str,
    body: dict[str, Any],
    config: str | None,
) -> None:
    """A hub id for one, whose config the service does not read."""
    if config is not None:
        (service_settings.model_folders[0] / of_64 / "config.json").write_text(config)
    model = "someone/model" if config is None else of_64
    answer = _create(http, {**body, "model": model, "max_seq_length": 2**20})
    assert answer.status_code == 201


def test_a_create_that_is_replayed_blindly_makes_one_job(
    http: httpx.Client, queue: Queue, body: dict[str, Any]
) -> None:
    first, again = _create(http, body), _create(http, body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert _count(http) == 1
    assert len(queue.waiting(VALIDATE)) == 1


def test_another_body_is_another_job(http: httpx.Client, body: dict[str, Any]) -> None:
    for number in range(3):
        assert _create(http, {**body, "seed": number}).status_code == 201
    assert _count(http) == 3


def test_the_same_body_after_the_window_is_another_job(
    http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    _create(http, body)
    [slot] = redis.keys("dedupe:*")
    assert 0 < redis.ttl(slot) <= 120
    redis.delete(slot)
    assert _create(http, body).status_code == 201


def test_the_same_body_after_the_job_has_ended_is_another_job(
    client: openai.OpenAI, http: httpx.Client, body: dict[str, Any]
) -> None:
    first = _create(http, body).json()["id"]
    client.fine_tuning.jobs.cancel(first)
    second = _create(http, body)
    assert second.status_code == 201
    assert second.json()["id"] != first


def test_replays_at_the_same_time_make_one_job(http: httpx.Client, body: dict[str, Any]) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: _create(http, body), range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert _count(http) == 1


def test_an_idempotency_key_names_one_job_for_a_day(
    client: openai.OpenAI, http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    first = _create(http, body, "mine")
    client.fine_tuning.jobs.cancel(first.json()["id"])
    again = _create(http, body, "mine")
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.json()["status"] == "cancelled"
    [slot] = redis.keys("dedupe:*")
    assert 23 * 3600 < redis.ttl(slot) <= 24 * 3600


def test_an_idempotency_key_names_its_job_although_the_file_is_gone(
    client: openai.OpenAI, http: httpx.Client, body: dict[str, Any]
) -> None:
    first = _create(http, body, "mine").json()["id"]
    client.fine_tuning.jobs.cancel(first)
    client.files.delete(body["training_file"])
    again = _create(http, body, "mine")
    assert (again.status_code, again.json()["id"]) == (200, first)


def test_other_idempotency_keys_are_other_jobs(http: httpx.Client, body: dict[str, Any]) -> None:
    assert _create(http, body, "one").status_code == 201
    assert _create(http, body, "two").status_code == 201
    assert _create(http, body).status_code == 201


def test_an_idempotency_key_of_another_body_is_a_conflict(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    _create(http, body, "mine")
    answer = _create(http, {**body, "suffix": "other"}, "mine")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert error_of(answer)["code"] == "idempotency_key_reused"
    assert _count(http) == 1


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_idempotency_key_that_is_none_is_refused(
    http: httpx.Client, body: dict[str, Any], key: str
) -> None:
    """An empty one, which a script sends whose variable is unset, was one key for all its jobs."""
    answer = http.post(JOBS, json=body, headers={"Idempotency-Key": key})
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, "idempotency-key")
    assert _create(http, body, "k" * 255).status_code == 201


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"model": "nobody/model"}, "model", "model_not_found"),
        ({"model": "../tiny"}, "model", "model_not_found"),
        ({"model": "someone/../../etc"}, "model", "model_not_found"),
        ({"training_file": "file-nothing"}, "training_file", "file_not_found"),
        ({"validation_file": "file-nothing"}, "validation_file", "file_not_found"),
        (
            {"hyperparameters": {"batch_size": 8}, "gradient_accumulation_steps": 3},
            "gradient_accumulation_steps",
            "invalid_value",
        ),
        (
            {"hyperparameters": {"batch_size": 8}, "micro_batch_size": 9},
            "micro_batch_size",
            "invalid_value",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_recorded(
    http: httpx.Client, body: dict[str, Any], fields: dict[str, Any], param: str, code: str
) -> None:
    answer = _create(http, {**body, **fields})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert _count(http) == 0


def test_a_hub_id_that_is_not_allowed_is_told_from_a_typing_error(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    told = error_of(_create(http, {**body, "model": "nobody/model"}))["message"]
    assert "a hub id that this server does not allow; it allows someone/*." in told
    assert "HEADROOM_HUB_MODELS, or `headroom up --hub-model`" in told
    for name in ("tiyn", "../tiny"):
        told = error_of(_create(http, {**body, "model": name}))["message"]
        assert "neither a base model that may be fine-tuned (tiny)" in told
        assert "hub" not in told


@pytest.mark.parametrize("field", ["training_file", "validation_file"])
def test_a_result_is_no_training_data(
    http: httpx.Client, redis: Redis, body: dict[str, Any], field: str
) -> None:
    result = file_record(org="org-local", purpose="fine-tune-results")
    Files(redis).add(result)
    error = error_of(_create(http, {**body, field: result.id}))
    assert (error["param"], error["code"]) == (field, "invalid_file_purpose")


def test_an_expired_file_is_not_there(
    client: openai.OpenAI, http: httpx.Client, redis: Redis
) -> None:
    file = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
    redis.expire(keys.file(file.id), 0)
    error = error_of(_create(http, {"model": TINY, "training_file": file.id}))
    assert (error["param"], error["code"]) == ("training_file", "file_not_found")


@pytest.mark.parametrize("model", [TINY, "someone/model", "ft:tiny:org-local::1"])
def test_a_job_takes_every_model_that_may_be_tuned(
    http: httpx.Client, models: Models, storage: Storage, body: dict[str, Any], model: str
) -> None:
    models.add(tuned_model(storage, "ft:tiny:org-local::1"))
    answer = _create(http, {**body, "model": model})
    assert (answer.status_code, answer.json()["model"]) == (201, model)


@pytest.mark.parametrize("route", ["jobs", "comparisons", "estimate"])
def test_an_adapter_on_an_adapter_is_refused(
    http: httpx.Client, models: Models, storage: Storage, body: dict[str, Any], route: str
) -> None:
    models.add(tuned_model(storage, "ft:adapter", kind="lora"))
    models.add(tuned_model(storage, "ft:full"))
    body["adapter"] = {"type": "lora"}
    error = error_of(http.post(f"/v1/fine_tuning/{route}", json={**body, "model": "ft:adapter"}))
    assert (error["param"], error["code"]) == ("adapter", "unsupported_model")
    assert _count(http) == 0
    assert _create(http, {**body, "model": "ft:full"}).status_code == 201


def test_an_adapter_whose_base_is_gone_is_refused(
    http: httpx.Client, models: Models, storage: Storage, body: dict[str, Any]
) -> None:
    models.add(tuned_model(storage, "ft:adapter", base="gone", kind="lora"))
    answer = _create(http, {**body, "model": "ft:adapter"})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "model_not_found")
    assert "an adapter on gone" in error["message"]


def test_queue_positions_of_a_list(client: openai.OpenAI, store: Store, training_file: str) -> None:
    made = [submit(client, training_file, suffix=f"s{n}").id for n in range(3)]
    enqueue(store, made[2])
    enqueue(store, made[0])
    seen = {job.id: job.model_extra["queue_position"] for job in client.fine_tuning.jobs.list()}
    assert [seen[job_id] for job_id in made] == [2, None, 1]
