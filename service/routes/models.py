"""/v1/models: what can be fine-tuned, and what has been."""

from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from service import artefacts
from service.deps import GuardedRoute, Organization, ServicesDep
from service.openapi import BINARY
from service.problems import ERROR_RESPONSES
from service.schemas import Deleted, Listing, Model, ModelFiles

# Hub ids have a slash in them, hence `:path`; the longer routes come first.
router = APIRouter(
    prefix="/v1/models", tags=["Models"], responses=ERROR_RESPONSES, route_class=GuardedRoute
)


@router.get("")
def list_models(org: Organization, services: ServicesDep) -> Listing[Model]:
    """Base models in the allowed folders, and the fine-tuned models of the caller.

    Hub ids that a pattern allows can be used too, but are too many to be listed.
    """
    bases = [Model.of_base(name) for name in services.base_models.names()]
    return Listing.of([*bases, *map(Model.of, services.models.all(org))])


@router.get("/{model_id:path}/files")
def list_model_files(model_id: str, org: Organization, services: ServicesDep) -> ModelFiles:
    """Extension: the files of a fine-tuned model, to be downloaded by name."""
    return ModelFiles(data=artefacts.downloadable_model(services, org, model_id).files)


@router.get(
    "/{model_id:path}/files/{name:path}", response_class=StreamingResponse, responses=BINARY
)
def get_model_file(
    model_id: str, name: str, org: Organization, services: ServicesDep
) -> StreamingResponse:
    """Extension: one file of a fine-tuned model; safetensors, tokenizer, config."""
    record = artefacts.downloadable_model(services, org, model_id)
    size, stream = artefacts.stream_model_file(services, record, name)
    file_name = quote(name.rpartition("/")[2], safe="")
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f"attachment; filename*=UTF-8''{file_name}",
    }
    return StreamingResponse(stream, media_type="application/octet-stream", headers=headers)


@router.get("/{model_id:path}")
def get_model(model_id: str, org: Organization, services: ServicesDep) -> Model:
    """A base model, or a fine-tuned one of the caller."""
    if services.base_models.source(model_id) is not None:
        return Model.of_base(model_id)
    return Model.of(services.models.get(org, model_id))


@router.delete("/{model_id:path}")
def delete_model(model_id: str, org: Organization, services: ServicesDep) -> Deleted:
    """Delete a fine-tuned model that no unfinished job or adapter needs, with its files."""
    artefacts.delete_model(services, org, model_id)
    return Deleted(id=model_id, object="model")
