"""The config of a model that a job may name, without anything of the model being loaded."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.contract.errors import InvalidRequest, NotFound
from service.contract.models import ModelRecord
from service.contract.spec import LoraAdapter
from service.deps import Services


def config_of(services: Services, org: str, name: str) -> tuple[dict[str, Any], LoraAdapter | None]:
    """The `config.json` of a base model or of one of `org`, and the adapter that it is, if it is.

    Raises:
        InvalidRequest: Only the workers can read it, as that of a hub id, or it is not as expected.
        NotFound: No such model.
        Unavailable: The storage does not answer.
    """
    source = services.base_models.source(name)
    if source is not None:
        folder = Path(source)
        if not folder.is_absolute():  # a hub id
            raise _unknown(name, "its config is on the hub, which the service does not read")
        try:
            return _parsed(name, (folder / "config.json").read_bytes()), None
        except OSError as error:
            raise _unknown(name, f"its config can't be read ({error.strerror})") from error
    record = services.models.get(org, name)
    if record.kind == "full":
        return _parsed(name, _stored(services, record, "config.json")), None
    config, _ = config_of(services, org, record.base)
    return config, _adapter(name, _stored(services, record, "adapter_config.json"))


def context_of(services: Services, org: str, name: str) -> int | None:
    """Tokens that a model's context holds; None where the service can't know, as for a hub id.

    Raises:
        Unavailable: The storage does not answer.
    """
    try:
        config, _ = config_of(services, org, name)
    except (InvalidRequest, NotFound):  # which is for the workers to find out, and to say
        return None
    context = config.get("max_position_embeddings")
    return context if isinstance(context, int) else None


def _adapter(name: str, text: bytes) -> LoraAdapter:
    """The adapter of a peft config, as far as it decides what is trained."""
    config = _parsed(name, text)
    try:
        return LoraAdapter.model_validate(
            {
                "rank": config.get("r"),
                "dropout": config.get("lora_dropout", 0),
                "targets": config.get("target_modules"),
            }
        )
    except ValidationError as error:
        raise _unknown(name, "its adapter is not LoRA on named modules") from error


def _stored(services: Services, record: ModelRecord, file: str) -> bytes:
    with services.storage.read(f"{record.path}/{file}") as stream:
        return stream.read()


def _parsed(name: str, text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _unknown(name, "its config is not JSON") from error
    if not isinstance(config, dict):
        raise _unknown(name, "its config is not a JSON object")
    return config


def _unknown(name: str, why: str) -> InvalidRequest:
    message = f"Nothing can be predicted for model {name!r}: {why}."
    return InvalidRequest(message, code="unsupported_model", param="model")
