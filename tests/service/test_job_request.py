"""Every option of a job: taken, echoed, and refused by its name where it is wrong."""

import json
from typing import Any

import httpx
import openai
import pytest

from service.contract.spec import TrainingOptions
from service.contract.store import Store
from service.job_request import JobCreate
from tests.service.support import JOBS, error_of, submit
from tests.support.stack import TINY

LORA = {"type": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": ["q_proj", "v_proj"]}
GOOD: dict[str, list[Any]] = {
    "learning_rate": ["auto", 1e-4],
    "max_seq_length": ["auto", 8, 4096],
    "packing": [True, False],
    "gradient_accumulation_steps": ["auto", 3],
    "micro_batch_size": ["auto", 1],
    "gradient_checkpointing": ["auto", True, False],
    "warmup_ratio": [0, 0.5, 1],
    "lr_scheduler": ["linear", "cosine", "constant", "constant_with_warmup"],
    "weight_decay": [0, 0.1],
    "max_grad_norm": [0.5],
    "dtype": ["auto", "float32", "bfloat16"],
    "adapter": [None, LORA],
    "loss": [{"implementation": "blocked", "preset": "exact"}],
    "checkpoint_every": ["auto", 7],
    "memory_ledger": [True, False],
}
# Values out of range, and of a wrong type.
BAD: dict[str, list[Any]] = {
    "learning_rate": [0, -1, 1, "fast", "1e-4", True, None, [1e-4]],
    "max_seq_length": [7, 2**21, 8.5, "8", True, None],
    "packing": ["yes", 1, None],
    "gradient_accumulation_steps": [0, 1.5, "2", True, None],
    "micro_batch_size": [0, 1.5, "2", True, None],
    "gradient_checkpointing": ["on", 1, None],
    "warmup_ratio": [-0.1, 1.1, "0.1", True, None],
    "lr_scheduler": ["quadratic", 1, None],
    "weight_decay": [-1, "0", None],
    "max_grad_norm": [0, "1", None],
    "dtype": ["int8", 16, None],
    "adapter": ["lora", 4, []],
    "loss": ["exact", None],
    "checkpoint_every": [0, 0.5, "7", None],
    "memory_ledger": ["no", 0, None],
    "suffix": ["", "a:b", "a b", "-a", "x" * 65, 3],
    "seed": [-1, 2**31, 1.5, "7", True],
    "model": ["", 3, None, "x" * 513, "\ud800"],
    "training_file": ["", 3, None, "\ud800"],
    "validation_file": ["", 3],
    "metadata": [[], "a=b", {f"k{n}": "v" for n in range(17)}],
    "method": ["supervised", []],
    "integrations": [[{"type": "wandb", "wandb": {"project": "p"}}], "wandb"],
}
NESTED: list[tuple[dict[str, Any], str, str]] = [
    ({"adapter": {"type": "full"}}, "adapter.type", "invalid_value"),
    ({"adapter": {"rank": 0}}, "adapter.rank", "invalid_value"),
    ({"adapter": {"rank": "4"}}, "adapter.rank", "invalid_type"),
    ({"adapter": {"alpha": 0}}, "adapter.alpha", "invalid_value"),
    ({"adapter": {"dropout": 1}}, "adapter.dropout", "invalid_value"),
    ({"adapter": {"targets": []}}, "adapter.targets", "invalid_value"),
    ({"adapter": {"targets": [""]}}, "adapter.targets[0]", "invalid_value"),
    ({"adapter": {"r": 4}}, "adapter.r", "unknown_parameter"),
    ({"loss": {"implementation": "magic"}}, "loss.implementation", "invalid_value"),
    ({"loss": {"preset": 1}}, "loss.preset", "invalid_value"),
    ({"loss": {"filter": 1}}, "loss.filter", "unknown_parameter"),
    ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65, "invalid_value"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value"),
    ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
    ({"n_epochs": 2}, "n_epochs", "unknown_parameter"),
    ({"method": {"type": "dpo"}}, "method.type", "invalid_value"),
    ({"method": {"type": {}}}, "method.type", "invalid_value"),
    ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "unknown_parameter"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
]
HYPERPARAMETERS: list[tuple[str, Any]] = [
    ("n_epochs", 0),
    ("n_epochs", 51),
    ("n_epochs", "3"),
    ("batch_size", 0),
    ("batch_size", 257),
    ("batch_size", 1.5),
    ("learning_rate_multiplier", 5e-324),
    ("learning_rate_multiplier", 1e9),
    ("learning_rate_multiplier", "2"),
]


@pytest.fixture
def body(training_file: str) -> dict[str, Any]:
    return {"model": TINY, "training_file": training_file}


def _post(http: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    """Send what httpx would not: escapes that are no character."""
    headers = {"Content-Type": "application/json"}
    return http.post(JOBS, content=json.dumps(body), headers=headers)


def test_the_tables_know_every_option() -> None:
    assert GOOD.keys() == TrainingOptions.model_fields.keys()
    assert BAD.keys() | {"hyperparameters"} == JobCreate.model_fields.keys()


@pytest.mark.parametrize("name", GOOD)
def test_an_option_is_echoed_and_recorded(
    client: openai.OpenAI, store: Store, training_file: str, name: str
) -> None:
    for value in GOOD[name]:
        job = submit(client, training_file, extra_body={name: value})
        assert job.model_extra is not None
        assert job.model_extra[name] == value
        recorded = store.get(job.id).spec.options.model_dump(mode="json")
        assert recorded == TrainingOptions().model_dump(mode="json") | {name: value}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_value_is_refused_by_its_name(
    http: httpx.Client, body: dict[str, Any], name: str
) -> None:
    for value in BAD[name]:
        answer = _post(http, {**body, name: value})
        assert answer.status_code == 400, value
        error = error_of(answer)
        assert error["param"] == name, error
        assert error["code"] in {"invalid_value", "invalid_type"}, error
        assert error["message"].startswith(f"{name}: ")
    assert http.get(JOBS).json()["data"] == []


@pytest.mark.parametrize(("fields", "param", "code"), NESTED)
def test_the_param_leads_to_the_value(
    http: httpx.Client, body: dict[str, Any], fields: dict[str, Any], param: str, code: str
) -> None:
    answer = _post(http, {**body, **fields})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(("name", "value"), HYPERPARAMETERS)
def test_a_hyperparameter_out_of_its_range_is_refused_by_its_name(
    http: httpx.Client, body: dict[str, Any], name: str, value: Any
) -> None:
    hyperparameters = {name: value}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    answer = http.post(JOBS, json={**body, "method": method})
    error = error_of(answer)
    assert answer.status_code == 400
    assert error["code"] in {"invalid_value", "invalid_type"}
    assert error["param"] == f"method.supervised.hyperparameters.{name}"
    error = error_of(http.post(JOBS, json={**body, "hyperparameters": hyperparameters}))
    assert error["param"] == f"hyperparameters.{name}"


def test_the_deprecated_hyperparameters_mean_the_same(
    client: openai.OpenAI, training_file: str
) -> None:
    asked = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.5}
    method = {"type": "supervised", "supervised": {"hyperparameters": asked}}
    old = submit(client, training_file, hyperparameters=asked)
    new = submit(client, training_file, method=method)
    for job in (old, new):
        assert job.hyperparameters.model_dump() == asked
        assert job.method is not None
        assert job.method.model_dump(exclude_none=True) == method


def test_a_name_that_is_no_text_is_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    for fields in ({"\ud800": 1}, {"metadata": {"\ud800": "v"}}, {"metadata": {"k": "\ud800"}}):
        answer = _post(http, {**body, **fields})
        assert answer.status_code == 400
        assert error_of(answer)["code"] in {"unknown_parameter", "invalid_value"}


def test_hyperparameters_are_given_once(http: httpx.Client, body: dict[str, Any]) -> None:
    twice = {"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 2}}
    error = error_of(http.post(JOBS, json={**body, **twice}))
    assert "exclude each other" in error["message"]


def test_what_is_missing_is_named(http: httpx.Client) -> None:
    error = error_of(http.post(JOBS, json={}))
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
    assert "training_file" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"integrations": []},
        {"integrations": None, "validation_file": None, "suffix": None, "seed": None},
        {"metadata": None, "method": None, "hyperparameters": None},
        {"metadata": {"k" * 64: "v" * 512} | {f"k{n}": "" for n in range(15)}},
        {"suffix": "a" * 64},
        {"seed": 2**31 - 1},
    ],
)
def test_what_the_wire_format_allows_is_taken(
    http: httpx.Client, body: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert http.post(JOBS, json={**body, **fields}).status_code == 201


def test_without_a_seed_jobs_differ(client: openai.OpenAI, training_file: str) -> None:
    seeds = {submit(client, training_file, suffix=f"s{n}").seed for n in range(3)}
    assert len(seeds) > 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"a"', b'{"model": "\xff"}'])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
def test_a_body_that_is_no_json_object_is_refused(
    http: httpx.Client, content: bytes, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = http.post(JOBS, content=content, headers=headers)
    assert answer.status_code == 400
    assert error_of(answer)["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_a_number_that_is_none_is_refused(http: httpx.Client, number: str) -> None:
    content = f'{{"model": "{TINY}", "training_file": "f", "weight_decay": {number}}}'
    answer = http.post(JOBS, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


def test_json_without_end_is_refused(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post(JOBS, content=b'{"a":' * 100_000, headers=headers)
    assert answer.status_code == 400
    error_of(answer)
