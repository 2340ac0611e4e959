"""The one error body, over every route there is."""

import re

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service import problems
from service.app import create_app
from service.contract.errors import JobFailure
from service.middleware import RequestIds
from service.settings import ServiceSettings
from tests.service.support import JOBS, error_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DOCUMENT = create_app(ServiceSettings()).openapi()
PATHS = {
    re.sub(r"\{.*?\}", "nothing", path): {method.upper() for method in operations}
    for path, operations in DOCUMENT["paths"].items()
}


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client, path: str) -> None:
    for method in sorted({*METHODS} - PATHS[path] - _also(path)):
        answer = http.request(method, path)
        assert answer.status_code == 405, method
        assert error_of(answer)["code"] == "method_not_allowed"
        allowed = {*answer.headers["Allow"].split(", ")}
        assert allowed == PATHS[path] | _also(path)


def _also(path: str) -> set[str]:
    """A model's id may have slashes: that of a file of a model can be read as a model's."""
    return {"DELETE"} if "/files" in path and path.startswith("/v1/models/") else set()


@pytest.mark.parametrize("path", [path for path in PATHS if "nothing" in path])
def test_what_is_not_there_is_named(http: httpx.Client, path: str) -> None:
    for method in sorted(PATHS[path]):
        answer = http.request(method, path)
        error = error_of(answer)
        assert answer.status_code == 404
        assert error["code"] in {"file_not_found", "job_not_found", "model_not_found"}
        assert error["param"] in {"file_id", "job_id", "model"}
        assert "nothing" in error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v1/",
        "/v1/files/",
        "/v1/fine_tuning",
        f"{JOBS}/",
        f"{JOBS}/ftjob-1/nothing",
        "/dashboard/nothing.js",
        "/dashboard/..%2Froutes.py",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_has_the_envelope(http: httpx.Client, path: str, method: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code in {404, 405}
    error = error_of(answer)
    assert error["code"] in {"unknown_url", "method_not_allowed"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/files/%00%ff", "/v1/models/%F0%9F%8C%8D", f"{JOBS}/a%0Ab"])
def test_any_path_can_be_answered(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    error_of(answer)


def test_more_faults_than_fit_are_counted(http: httpx.Client) -> None:
    error = error_of(http.post(JOBS, json={f"field{n}": n for n in range(20)}))
    assert error["message"].endswith("; and 12 more.")


def test_a_body_that_is_not_json_is_told_by_where_it_breaks(http: httpx.Client) -> None:
    """It was said that an object was got, where none could be read."""
    answer = http.post(JOBS, content='{"model": x}', headers={"Content-Type": "application/json"})
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("invalid_json", None)
    assert error["message"] == "It is not JSON: Expecting value at character 11."


@pytest.fixture
def broken() -> TestClient:
    """An application with defects."""
    app = FastAPI()
    problems.install(app, app.routes)
    app.add_middleware(RequestIds)

    @app.get("/defect")
    def defect() -> None:
        raise RuntimeError("secret")

    @app.get("/failure")
    def failure() -> None:
        raise JobFailure("out_of_memory", "secret")

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("path", ["/defect", "/failure"])
def test_a_defect_is_told_to_the_log_alone(
    broken: TestClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    answer = broken.get(path)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
    [record] = [each for each in caplog.records if each.name == "service.problems"]
    assert answer.headers["x-request-id"] in record.getMessage()
    assert "secret" in str(record.exc_info)
