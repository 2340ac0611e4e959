"""Models: the base models that may be fine-tuned, and the records of the fine-tuned ones."""

import re
from collections.abc import Callable
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict
from redis import Redis

from service.contract import keys
from service.contract.commands import Pipe, typed
from service.contract.connection import available
from service.contract.errors import NotFound
from service.contract.index import batches
from service.contract.removal import remove
from service.contract.settings import Settings
from service.contract.spec import Trained

# Whatever the patterns allow: what is loaded by this name must not lead into a file system.
_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


class ModelFile(BaseModel):
    """A file of a model, by its name below the model's folder."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int


class ModelRecord(BaseModel):
    """A model that a job made; its folder is whole in the storage.

    Attributes:
        base: Name of the model it was trained from.
        kind: `full` weights, or a `lora` adapter that needs its base.
        path: Storage path of its folder.
        step: The optimizer step of a checkpoint's model, None for a job's result.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    org: str
    created_at: int
    base: str
    job_id: str
    kind: Trained
    path: str
    step: int | None = None
    files: list[ModelFile]


def tuned_model_id(
    base: str, org: str, suffix: str | None, job_id: str, step: int | None = None
) -> str:
    """The id of a job's model, or of the model that its checkpoint at `step` is.

    A model that was itself tuned from a tuned one carries the name of the first.
    """
    root = base.split(":")[1] if base.startswith("ft:") else base
    checkpoint = "" if step is None else f":ckpt-step-{step}"
    return f"ft:{root}:{org}:{suffix or ''}:{job_id.removeprefix('ftjob-')}{checkpoint}"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model` of a hub."""
    return "/" in name and _HUB_ID.fullmatch(name) is not None


class BaseModels:
    """The allow-list: subfolders of configured folders, and hub ids by pattern."""

    def __init__(self, settings: Settings) -> None:
        self._folders = settings.model_folders
        self._patterns = settings.hub_models

    def names(self) -> list[str]:
        """Names of the folders that hold a model, sorted."""
        found = {
            path.parent.name for folder in self._folders for path in folder.glob("*/config.json")
        }
        return sorted(found)

    def source(self, name: str) -> str | None:
        """What `from_pretrained` loads for `name`: a folder or a hub id; None if not allowed."""
        if name in self.names():
            folder = next(f for f in self._folders if (f / name / "config.json").is_file())
            return str((folder / name).resolve())
        allowed = any(fnmatchcase(name, pattern) for pattern in self._patterns)
        return name if allowed and _HUB_ID.fullmatch(name) else None


class Models:
    """The records of fine-tuned models."""

    def __init__(self, redis: Redis) -> None:
        self._redis = typed(redis)

    def add(self, record: ModelRecord) -> None:
        """Record a model whose folder is already whole in the storage."""
        with available(), self._redis.pipeline() as pipe:
            self.write(pipe, record)
            pipe.execute()

    @staticmethod
    def write(pipe: Pipe, record: ModelRecord) -> None:
        """Queue the record on a pipeline, so that it appears with the change that names it."""
        pipe.set(keys.model(record.id), record.model_dump_json())
        pipe.zadd(keys.org_index(record.org, "models"), {record.id: record.created_at})
        if record.kind == "lora":
            pipe.sadd(keys.adapters(record.base), record.id)

    def get(self, org: str, model_id: str) -> ModelRecord:
        """A model of `org`.

        Raises:
            NotFound: No such model, or another organization's.
        """
        with available():
            raw = self._redis.get(keys.model(model_id))
        record = ModelRecord.model_validate_json(raw) if raw else None
        if record is None or record.org != org:
            raise NotFound(f"No such model: {model_id}.", code="model_not_found", param="model")
        return record

    def all(self, org: str) -> list[ModelRecord]:
        """Every model of `org`, newest first."""
        with available():
            ids = self._redis.zrevrange(keys.org_index(org, "models"), 0, -1)
            raws = [
                raw
                for batch in batches(ids)
                for raw in self._redis.mget([keys.model(id_) for id_ in batch])
            ]
        return [ModelRecord.model_validate_json(raw) for raw in raws if raw]

    def adapters(self, model_id: str) -> list[str]:
        """Ids of the adapters that are nothing without a model."""
        with available():
            return sorted(self._redis.smembers(keys.adapters(model_id)))

    def remove(self, record: ModelRecord, check: Callable[[], None] | None = None) -> None:
        """Forget a model; its folder is the caller's to delete afterwards.

        Args:
            record: The model.
            check: Raises where a job or an adapter needs it; called again where one came in
                between.
        """
        needs = keys.users(record.id), keys.adapters(record.id)
        remove(self._redis, lambda pipe: self.erase(pipe, record), *needs, check=check)

    @staticmethod
    def erase(pipe: Pipe, record: ModelRecord) -> None:
        """Queue the removal of a record on a pipeline."""
        pipe.delete(keys.model(record.id))
        pipe.zrem(keys.org_index(record.org, "models"), record.id)
        pipe.srem(keys.adapters(record.base), record.id)
