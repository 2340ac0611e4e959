"""The document of the API, and what the application may not need."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI

ERRORS = {"400", "401", "404", "409", "413", "503"}


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    body: dict[str, Any] = http.get("/openapi.json").json()
    return body


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _values(value: Any, key: str) -> Iterator[Any]:
    """Every value of `key`, at any depth."""
    if isinstance(value, dict):
        yield from (found for name, found in value.items() if name == key)
        for inner in value.values():
            yield from _values(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, key)


def test_the_document_is_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPI.model_validate(document)


def test_every_reference_leads_to_a_schema(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    used = {*_values(document, "$ref")}
    assert used <= known
    assert not [name for name in known if "ValidationError" in name]


def test_operations_have_names_and_links_lead_to_them(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in _operations(document)]
    assert len(names) == len({*names})
    assert {"create_job", "get_job", "upload_file"} <= {*names}
    linked = [name for links in _values(document, "links") for name in links]
    assert linked
    assert {*linked} <= {*names}


def test_every_route_of_the_api_declares_its_errors(document: dict[str, Any]) -> None:
    envelope = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for path, operation in _operations(document):
        if path.startswith("/v1/"):
            assert operation["responses"].keys() >= ERRORS, path
        assert "422" not in operation["responses"]
        for status in ERRORS & operation["responses"].keys():
            assert operation["responses"][status]["content"] == envelope


def test_every_operation_and_parameter_is_described(document: dict[str, Any]) -> None:
    for path, operation in _operations(document):
        assert operation["summary"], path
        assert operation["description"], path
    options = document["components"]["schemas"]["JobCreate"]["properties"]
    assert options["adapter"]["description"]
    assert options["hyperparameters"]["deprecated"] is True


def test_an_upload_is_a_multipart_form_without_nulls(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert body.keys() == {"multipart/form-data"}
    form = document["components"]["schemas"]["FileCreate"]
    assert form["required"] == ["file", "purpose"]
    assert "null" not in [*_values(form, "type")]


def test_status_routes_declare_that_nothing_is_new(document: dict[str, Any]) -> None:
    job = document["paths"]["/v1/fine_tuning/jobs/{job_id}"]["get"]
    assert "304" in job["responses"]
    assert "if-none-match" in {parameter["name"] for parameter in job["parameters"]}


def test_the_page_of_the_document_is_served_with_all_its_parts(http: httpx.Client) -> None:
    page = http.get("/docs").raise_for_status().text
    assert "openapi.json" in page
    parts = re.findall(r"""(?:src|href)="([^"]+)""", page)
    assert any(part.endswith(".js") for part in parts)
    for part in parts:
        assert part.startswith("/")
        assert http.get(part).raise_for_status().content


def test_there_is_no_page_that_asks_others_for_its_parts(http: httpx.Client) -> None:
    assert http.get("/redoc").status_code == 404


def test_the_service_needs_nothing_of_the_training_side() -> None:
    code = (
        "import sys, service.app\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(str(loaded & {'torch', 'transformers', 'worker', 'cce_core', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
