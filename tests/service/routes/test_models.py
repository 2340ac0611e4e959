import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from service.contract.models import Models
from service.contract.storage import Storage
from tests.service.support import JOBS, error_of, submit, tuned_model
from tests.support.stack import TINY

TUNED = f"ft:{TINY}:org-local:mine:1"


@pytest.fixture
def tuned(models: Models, storage: Storage) -> str:
    models.add(tuned_model(storage, TUNED, created_at=int(time.time())))
    return TUNED


def test_base_models_and_tuned_ones_are_listed(client: openai.OpenAI, tuned: str) -> None:
    base, mine = client.models.list()
    assert (base.id, base.object, base.owned_by, base.created) == (TINY, "model", "headroom", 0)
    assert (mine.id, mine.owned_by) == (tuned, "org-local")
    assert mine.created > 0


def test_a_model_is_found_by_its_id(client: openai.OpenAI, tuned: str) -> None:
    model = client.models.retrieve(tuned)
    assert model.model_extra is not None
    assert (model.model_extra["base"], model.model_extra["kind"]) == (TINY, "full")
    assert model.model_extra["files"] == [{"name": "config.json", "bytes": 2}]
    assert "path" not in model.model_extra
    assert client.models.retrieve(TINY).id == TINY


def test_a_hub_id_is_a_model_where_a_pattern_allows_it(client: openai.OpenAI) -> None:
    assert client.models.retrieve("someone/some-model").id == "someone/some-model"
    for name in ("nobody/some-model", "someone/../secret", "someone/a/b"):
        with pytest.raises(openai.NotFoundError) as error:
            client.models.retrieve(name)
        assert error.value.code == "model_not_found"


def test_a_tuned_model_is_downloaded_by_name(http: httpx.Client, tuned: str) -> None:
    [file] = http.get(f"/v1/models/{tuned}/files").json()["data"]
    answer = http.get(f"/v1/models/{tuned}/files/{file['name']}")
    assert answer.content == b"{}"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert int(answer.headers["Content-Length"]) == file["bytes"]
    assert "config.json" in answer.headers["Content-Disposition"]


@pytest.mark.parametrize("name", ["other.json", "..%2F..%2Fconfig.json", "%2Fetc%2Fpasswd", ""])
def test_only_what_the_record_names_is_served(http: httpx.Client, tuned: str, name: str) -> None:
    answer = http.get(f"/v1/models/{tuned}/files/{name}")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_file_not_found")


def test_base_models_are_not_for_download_or_deletion(
    http: httpx.Client, client: openai.OpenAI
) -> None:
    for path in ("files", "files/config.json"):
        answer = http.get(f"/v1/models/{TINY}/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (400, "model_not_downloadable")
    with pytest.raises(openai.BadRequestError) as error:
        client.models.delete(TINY)
    assert error.value.code == "model_not_deletable"


def test_a_deleted_model_is_gone_with_its_files(
    client: openai.OpenAI, tuned: str, storage: Storage
) -> None:
    assert client.models.delete(tuned).model_dump() == {
        "id": tuned,
        "object": "model",
        "deleted": True,
    }
    assert not storage.exists(f"models/{tuned}")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(tuned)
    assert [model.id for model in client.models.list()] == [TINY]


def test_a_model_that_a_job_needs_stays(
    client: openai.OpenAI, tuned: str, training_file: str
) -> None:
    job = submit(client, training_file, model=tuned)
    with pytest.raises(openai.ConflictError) as error:
        client.models.delete(tuned)
    assert error.value.code == "model_in_use"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.models.delete(tuned).deleted


def test_a_model_stays_while_an_adapter_stands_on_it(
    client: openai.OpenAI, models: Models, storage: Storage, tuned: str, training_file: str
) -> None:
    """Without it an adapter is nothing, nor can a job on the adapter run."""
    adapter = f"{TUNED}-lora"
    models.add(tuned_model(storage, adapter, base=tuned, kind="lora"))
    models.add(tuned_model(storage, f"{TUNED}-full", base=tuned))
    job = submit(client, training_file, model=adapter)
    with pytest.raises(openai.ConflictError) as error:
        client.models.delete(tuned)
    assert error.value.code == "model_in_use"
    assert adapter in error.value.message
    client.fine_tuning.jobs.cancel(job.id)
    assert client.models.delete(adapter).deleted
    assert client.models.delete(tuned).deleted


def test_a_model_is_not_deleted_from_under_a_job_that_is_created_meanwhile(
    http: httpx.Client,
    models: Models,
    storage: Storage,
    training_file: str,
) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            name = f"{TUNED}{number}"
            models.add(tuned_model(storage, name))
            body = {"model": name, "training_file": training_file}
            created = pool.submit(http.post, JOBS, json=body)
            deleted = pool.submit(http.delete, f"/v1/models/{name}")
            statuses = (created.result().status_code, deleted.result().status_code)
            assert statuses in {(201, 409), (400, 200)}
