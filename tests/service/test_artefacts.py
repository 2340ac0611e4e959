"""Uploads and deletions, as use cases: what is recorded, in which order, and what is left."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import artefacts
from service.contract.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unavailable
from service.contract.job import JobStatus
from service.contract.models import ModelFile
from service.contract.store import Claim
from service.datasets import InvalidDataset
from service.deps import Services, open_services
from service.settings import ServiceSettings
from tests.service.contract.support import EVENT, checkpoint, create
from tests.service.support import CHAT, start, tuned_model
from tests.support.redis_server import RedisServer
from tests.support.stack import TINY

ORG = "org-local"
MAX_BYTES = 10_000


@pytest.fixture
def services(own_redis: RedisServer, tmp_path: Path) -> Iterator[Services]:
    (tmp_path / "models" / TINY).mkdir(parents=True)
    (tmp_path / "storage").mkdir()  # mounted, if empty
    (tmp_path / "models" / TINY / "config.json").write_text("{}")
    settings = ServiceSettings(
        redis_url=own_redis.url,
        storage_url=str(tmp_path / "storage"),
        model_folders=[tmp_path / "models"],
        max_file_bytes=MAX_BYTES,
    )
    with open_services(settings) as services:
        yield services


def _upload(services: Services, content: bytes = CHAT, name: str = "a.jsonl") -> str:
    return artefacts.upload(services, ORG, io.BytesIO(content), name, None).id


def _stored(services: Services) -> list[str]:
    return services.storage.children("files")


def test_a_record_describes_the_bytes_that_are_stored(services: Services) -> None:
    record = artefacts.upload(services, ORG, io.BytesIO(CHAT * 3), "a.jsonl", 3600)
    assert services.files.get(ORG, record.id) == record
    assert (record.bytes, record.rows, record.format) == (len(CHAT) * 3, 3, "chat")
    assert record.sha256 == hashlib.sha256(CHAT * 3).hexdigest()
    assert record.expires_at == record.created_at + 3600
    assert b"".join(artefacts.stream_file(services, record)) == CHAT * 3


@pytest.mark.parametrize(
    ("content", "error"), [(b"oops\n", InvalidDataset), (CHAT * MAX_BYTES, TooLarge)]
)
def test_what_is_refused_is_neither_stored_nor_recorded(
    services: Services, content: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        _upload(services, content)
    assert _stored(services) == []
    assert services.files.page(ORG, after=None, limit=9, purpose=None, ascending=True).items == []


def test_bytes_that_cannot_be_recorded_are_not_kept(
    services: Services, own_redis: RedisServer
) -> None:
    own_redis.stop()
    with pytest.raises(Unavailable):
        _upload(services)
    assert _stored(services) == []


def test_a_deletion_that_stopped_halfway_can_be_finished(services: Services) -> None:
    file_id = _upload(services)
    services.storage.delete(f"files/{file_id}")
    artefacts.delete_file(services, ORG, file_id)
    with pytest.raises(NotFound):
        services.files.get(ORG, file_id)


def test_another_organizations_file_is_not_there_to_delete(services: Services) -> None:
    file_id = _upload(services)
    with pytest.raises(NotFound):
        artefacts.delete_file(services, "org-other", file_id)
    assert _stored(services) == [f"files/{file_id}"]


def _checkpoint(services: Services) -> tuple[Claim, str]:
    """A running job, and the model that its checkpoint can be used as."""
    claim = start(services.store, create(services.store, org=ORG, model=TINY))
    made, model = checkpoint(claim, step=1)
    record = tuned_model(services.storage, model.id, path=made.path, job_id=claim.job_id, step=1)
    services.store.add_checkpoint(claim, made, record, keep=2)
    return claim, model.id


def test_a_checkpoint_stays_until_its_job_has_ended(services: Services) -> None:
    claim, model_id = _checkpoint(services)
    with pytest.raises(Conflict, match=f"needed by job {claim.job_id}, which is running") as error:
        artefacts.delete_model(services, ORG, model_id)
    assert error.value.code == "model_in_use"
    services.store.transition(claim.job_id, JobStatus.CANCELLED, EVENT, token=claim.token)
    artefacts.delete_model(services, ORG, model_id)
    with pytest.raises(NotFound):
        services.models.get(ORG, model_id)


def test_a_base_model_is_not_deleted(services: Services) -> None:
    with pytest.raises(InvalidRequest) as error:
        artefacts.delete_model(services, ORG, TINY)
    assert error.value.code == "model_not_deletable"
    assert services.base_models.names() == [TINY]


def test_a_large_file_is_streamed_in_portions(services: Services) -> None:
    content = bytes(range(256)) * 2**14
    record = tuned_model(services.storage, "ft:tiny:org-local::1")
    with services.storage.write(f"{record.path}/weights") as file:
        file.write(content)
    record = record.model_copy(update={"files": [ModelFile(name="weights", bytes=len(content))]})
    size, stream = artefacts.stream_model_file(services, record, "weights")
    portions = list(stream)
    assert size == len(content)
    assert b"".join(portions) == content
    assert max(map(len, portions)) <= 2**20


def test_a_file_that_the_storage_has_but_the_record_does_not_name_is_not_served(
    services: Services,
) -> None:
    record = tuned_model(services.storage, "ft:tiny:org-local::1")
    with services.storage.write(f"{record.path}/optimizer.pt") as file:
        file.write(b"x")
    with pytest.raises(NotFound) as error:
        artefacts.stream_model_file(services, record, "optimizer.pt")
    assert error.value.code == "model_file_not_found"
