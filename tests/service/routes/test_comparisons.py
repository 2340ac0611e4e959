"""Comparisons through HTTP: jobs of their own kind, beside the others."""

from typing import Any

import httpx
import openai
import pytest

from service.comparison_request import ComparisonCreate
from service.contract.spec import TrainingOptions
from service.contract.store import Store
from tests.service.support import JOBS, enqueue, error_of, submit
from tests.support.stack import TINY

COMPARISONS = "/v1/fine_tuning/comparisons"
ASKED = {"losses": ["full_logits", "cce"], "batch_sizes": [1, 2], "steps": 5}


@pytest.fixture
def made(http: httpx.Client, training_file: str) -> dict[str, Any]:
    """A new comparison."""
    answer = http.post(COMPARISONS, json={"model": TINY, "training_file": training_file, **ASKED})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"{COMPARISONS}/{answer.json()['id']}"
    return dict(answer.json())


def test_a_comparison_is_a_job_that_says_what_it_compares(
    http: httpx.Client, made: dict[str, Any]
) -> None:
    assert (made["object"], made["status"]) == ("fine_tuning.job", "validating_files")
    assert made["comparison"] == ASKED
    assert made["seed"] == 0
    assert http.get(f"{COMPARISONS}/{made['id']}").json() == made
    assert http.get(f"{JOBS}/{made['id']}").json() == made


def test_a_comparison_has_no_ledger_and_says_where_its_figures_are(
    http: httpx.Client, made: dict[str, Any]
) -> None:
    error = error_of(http.get(f"{JOBS}/{made['id']}/memory"))
    assert error["code"] == "memory_not_measured"
    assert "it is a comparison, which reports the memory of each loss in its result" in str(
        error["message"]
    )


def test_the_options_of_a_job_go_into_its_spec(
    http: httpx.Client, store: Store, training_file: str
) -> None:
    options = {
        "learning_rate": 1e-3,
        "max_seq_length": 64,
        "packing": True,
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
        "adapter": {"type": "lora", "rank": 4},
        "loss": {"preset": "exact"},
    }
    files = {"training_file": training_file, "validation_file": training_file}
    made = http.post(COMPARISONS, json={"model": TINY, "seed": 3, **files, **options}).json()
    spec = store.get(made["id"]).spec
    assert (spec.seed, spec.validation_file) == (3, training_file)
    assert spec.comparison is not None
    assert spec.comparison.model_dump() == {
        "losses": "auto", "batch_sizes": [1, 2, 4, 8], "steps": 20,
    }  # fmt: skip
    found = spec.options.model_dump(exclude_defaults=True)
    assert found.pop("loss")["preset"] == "exact"
    assert found.pop("adapter")["rank"] == 4
    assert found == {name: options[name] for name in found}
    assert len(found) == 5


def test_shared_options_are_those_of_a_job() -> None:
    ours, theirs = (
        {
            name: {**field, "description": None}
            for name, field in model.model_json_schema()["properties"].items()
        }
        for model in (ComparisonCreate, TrainingOptions)
    )
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 7
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("losses", []),
        ("losses", ["cce", "cce"]),
        ("losses", ["linear"]),
        ("losses", "all"),
        ("batch_sizes", []),
        ("batch_sizes", [2, 2]),
        ("batch_sizes", [0]),
        ("batch_sizes", [257]),
        ("batch_sizes", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("batch_sizes", 4),
        ("steps", 3),
        ("steps", 10_001),
        ("steps", "5"),
        ("seed", -1),
        ("n_epochs", 2),
        ("checkpoint_every", 4),
        ("learning_rate", 0),
    ],
)
def test_what_is_wrong_is_named(
    http: httpx.Client, training_file: str, field: str, value: Any
) -> None:
    body = {"model": TINY, "training_file": training_file, field: value}
    answer = http.post(COMPARISONS, json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"].startswith(field)


def test_files_and_models_must_be_there(http: httpx.Client, training_file: str) -> None:
    body = {"model": TINY, "training_file": training_file}
    for field in ("training_file", "validation_file", "model"):
        answer = http.post(COMPARISONS, json={**body, field: "nothing"})
        assert (answer.status_code, error_of(answer)["param"]) == (400, field)


def test_the_list_holds_comparisons_alone_and_pages(
    http: httpx.Client, client: openai.OpenAI, training_file: str, made: dict[str, Any]
) -> None:
    job = submit(client, training_file)
    body = {"model": TINY, "training_file": training_file, "steps": 7}
    second = http.post(COMPARISONS, json=body).json()
    page = http.get(COMPARISONS, params={"limit": 1}).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([second["id"]], True)
    rest = http.get(COMPARISONS, params={"after": page["last_id"]}).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([made["id"]], False)
    assert {each.id for each in client.fine_tuning.jobs.list()} == {
        job.id, second["id"], made["id"],
    }  # fmt: skip


def test_a_repeated_request_gets_the_first_one(
    http: httpx.Client, training_file: str, made: dict[str, Any]
) -> None:
    body = {"model": TINY, "training_file": training_file, **ASKED}
    again = http.post(COMPARISONS, json=body)
    assert (again.status_code, again.json()["id"]) == (200, made["id"])
    other = http.post(COMPARISONS, json=body | {"steps": 6})
    assert other.json()["id"] != made["id"]


def test_events_and_cancellation_are_the_jobs(
    http: httpx.Client, store: Store, made: dict[str, Any]
) -> None:
    path = f"{COMPARISONS}/{made['id']}"
    enqueue(store, made["id"])
    first = http.get(f"{path}/events", params={"order": "asc", "limit": 1}).json()["data"]
    assert first[0]["message"] == f"Created comparison: {made['id']}"
    tag = http.get(path).headers["ETag"]
    assert http.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert http.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert http.get(path).json()["status"] == "cancelled"
    assert http.post(f"{path}/cancel").status_code == 409


@pytest.mark.parametrize("param", ["after", "limit", "order"])
@pytest.mark.parametrize("path", [JOBS, COMPARISONS])
def test_a_history_names_the_parameter_at_fault(
    http: httpx.Client, made: dict[str, Any], path: str, param: str
) -> None:
    answer = http.get(f"{path}/{made['id']}/events", params={param: "0"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_a_job_that_compares_nothing_is_none(
    http: httpx.Client, client: openai.OpenAI, training_file: str
) -> None:
    job = submit(client, training_file)
    for method, part in (("GET", ""), ("POST", "/cancel"), ("GET", "/events")):
        answer = http.request(method, f"{COMPARISONS}/{job.id}{part}")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "comparison_not_found"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
