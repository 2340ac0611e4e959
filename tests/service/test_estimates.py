"""What a job would need: memory by component and loss, what fits where, tokens, steps and time."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from redis import Redis

from service.contract.device import Device
from service.contract.estimate.fit import usable_bytes
from service.contract.fleet import Fleet, LiveWorker
from service.contract.job import DataSize, Progress
from service.contract.models import Models
from service.contract.spec import ResolvedOptions
from service.contract.storage import Storage
from service.contract.store import Store
from service.settings import ServiceSettings
from tests.service.support import error_of, jsonl, start, submit, tuned_model, upload
from tests.support.server import serve

ESTIMATE = "/v1/fine_tuning/estimate"
LLAMA = "llama-1b"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
PARAMETERS = 1_235_814_400
H100 = Device(kind="cuda", name="NVIDIA H100", total_bytes=85_000_000_000)
CPU = Device(kind="cpu", name="cpu", total_bytes=32_000_000_000)
TEXTS = jsonl(*[{"text": "x" * 3000}] * 100)
SHORT = jsonl(*[{"text": "word " * 20}] * 40)


@pytest.fixture(scope="module", autouse=True)
def llama(service_settings: ServiceSettings) -> Iterator[None]:
    """A base model of which there is the config alone; other modules have the folder for theirs."""
    folder = service_settings.model_folders[0] / LLAMA
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    yield
    shutil.rmtree(folder)


@pytest.fixture
def body(client: openai.OpenAI) -> dict[str, Any]:
    return {"model": LLAMA, "training_file": upload(client, TEXTS).id}


def announce(redis: Redis, **devices: Device) -> None:
    for name, device in devices.items():
        Fleet(redis).announce(LiveWorker(name=name, device=device), ttl_s=60)


def ask(http: httpx.Client, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = http.post(ESTIMATE, json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def only(answer: dict[str, Any]) -> dict[str, Any]:
    (device,) = answer["devices"]
    return dict(device)


def loss(device: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in device["losses"] if each["loss"] == name)


# Memory


def test_memory_is_told_by_component_and_by_loss(
    http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    announce(redis, one=H100)
    answer = ask(http, body)
    assert answer["object"] == "fine_tuning.estimate"
    assert (answer["parameters"], answer["trained_parameters"]) == (PARAMETERS, PARAMETERS)
    device = only(answer)
    parts = device["components"]
    assert parts["weights"] == parts["gradients"] == 2 * PARAMETERS
    assert parts["optimizer"] == 10 * PARAMETERS
    assert all(parts[name] > 0 for name in ("activations", "attention", "working"))
    assert [each["loss"] for each in device["losses"]] == [
        "full_logits",
        "compiled_full_logits",
        "chunked",
        "cce",
    ]
    ours, full = loss(device, "cce"), loss(device, "full_logits")
    assert ours["loss_layer_bytes"] < full["loss_layer_bytes"] / 20
    assert 14 * PARAMETERS < ours["peak_bytes"] <= full["peak_bytes"]
    assert device["fits"] is True
    assert device["resolved"]["dtype"] == "bfloat16"


def test_an_adapter_needs_little_beside_the_weights(
    http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    announce(redis, one=H100)
    answer = ask(http, body, adapter={"type": "lora", "rank": 16})
    assert answer["trained_parameters"] == 11_272_192
    parts = only(answer)["components"]
    assert parts["optimizer"] == 10 * 11_272_192
    assert parts["weights"] == 2 * (PARAMETERS + 11_272_192)


def test_the_largest_micro_batch_is_told_for_each_kind_of_live_device(
    http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    announce(redis, one=H100, two=H100, three=CPU)
    devices = ask(http, body)["devices"]
    assert [(each["device"]["name"], each["workers"]) for each in devices] == [
        ("NVIDIA H100", ["one", "two"]),
        ("cpu", ["three"]),
    ]
    gpu, cpu = devices
    ours, full = loss(gpu, "cce"), loss(gpu, "full_logits")
    assert ours["largest_micro_batch"] > full["largest_micro_batch"] > 0
    assert gpu["multiple"] == pytest.approx(
        ours["largest_micro_batch"] / full["largest_micro_batch"]
    )
    assert gpu["usable_bytes"] == usable_bytes(H100.total_bytes, "cuda")
    assert cpu["resolved"]["dtype"] == "float32"
    assert [each["loss"] for each in cpu["losses"]] == ["full_logits", "chunked", "cce"]
    assert cpu["components"]["optimizer"] == 8 * PARAMETERS


def test_a_device_that_is_too_small_is_said_to_be(
    http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    announce(redis, one=Device(kind="cuda", name="small", total_bytes=12_000_000_000))
    device = only(ask(http, body))
    assert device["fits"] is False
    assert loss(device, "cce")["largest_micro_batch"] == 0
    assert device["multiple"] is None
    assert device["resolved"]["micro_batch_size"] == 1


def test_a_batch_that_does_not_fit_at_once_is_cut(
    http: httpx.Client, redis: Redis, body: dict[str, Any]
) -> None:
    announce(redis, one=Device(kind="cuda", name="small", total_bytes=36_000_000_000))
    hyper = {"hyperparameters": {"batch_size": 256}}
    resolved = only(ask(http, body, **hyper))["resolved"]
    assert resolved["batch_size"] == 100, "all of the data"
    assert 1 < resolved["micro_batch_size"] < 100
    assert only(ask(http, body, **hyper))["fits"] is True
    given = ask(http, body, **hyper, micro_batch_size=3)
    assert only(given)["resolved"]["micro_batch_size"] == 3


def test_without_a_live_worker_a_gpu_of_unknown_size_is_assumed(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    device = only(ask(http, body))
    assert (device["device"], device["workers"], device["fits"]) == (None, [], None)
    assert loss(device, "cce")["largest_micro_batch"] is None
    assert loss(device, "cce")["peak_bytes"] > 14 * PARAMETERS


# Tokens, steps and time


def test_tokens_are_guessed_from_the_bytes(http: httpx.Client, body: dict[str, Any]) -> None:
    answer = ask(http, body, hyperparameters={"n_epochs": 2, "batch_size": 8})
    row = len(TEXTS) // 100 - 1
    assert answer["data"] == {
        "examples": 100,
        "tokens": -(-len(TEXTS) // 4),
        "longest": -(-row // 3),
        "basis": "bytes",
    }
    assert answer["total_steps"] == 2 * 13
    assert answer["trained_tokens"] == 2 * answer["data"]["tokens"]


def test_a_row_is_no_longer_than_a_sequence_may_be(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    assert ask(http, body, max_seq_length=64)["data"]["longest"] == 64


def test_packing_makes_fewer_longer_sequences(http: httpx.Client, client: openai.OpenAI) -> None:
    body = {"model": LLAMA, "training_file": upload(client, SHORT).id}
    options = {"max_seq_length": 256, "hyperparameters": {"batch_size": 1, "n_epochs": 1}}
    apart = ask(http, body, **options)
    packed = ask(http, body, **options, packing=True)
    assert (apart["total_steps"], packed["total_steps"]) == (40, 5)
    peaks = [loss(only(each), "cce")["peak_bytes"] for each in (apart, packed)]
    assert peaks[0] <= peaks[1]


def test_an_earlier_job_on_the_file_has_counted_its_tokens(
    http: httpx.Client, client: openai.OpenAI, store: Store, body: dict[str, Any]
) -> None:
    job = submit(client, body["training_file"], model=LLAMA)
    size = DataSize(examples=100, tokens=12_345, supervised_tokens=12_000, longest=321)
    store.update(start(store, job.id), data=size)
    data = ask(http, body)["data"]
    assert data == {"examples": 100, "tokens": 12_345, "longest": 321, "basis": "tokenized"}


def test_time_is_unknown_until_such_a_job_ran_on_such_a_device(
    http: httpx.Client, client: openai.OpenAI, redis: Redis, store: Store, body: dict[str, Any]
) -> None:
    announce(redis, one=H100)
    resolved = only(ask(http, body))["resolved"]
    assert only(ask(http, body))["seconds"] == "unknown"
    for speed, device in [(1000.0, "NVIDIA H100"), (3000.0, "NVIDIA H100"), (1e9, "cpu")]:
        job = submit(client, body["training_file"], model=LLAMA, suffix=f"{speed:.0f}")
        progress = Progress(tokens_per_s=speed, device=device)
        changes = {"progress": progress, "resolved": ResolvedOptions(**resolved)}
        store.update(start(store, job.id), **changes)
    answer = ask(http, body)
    assert only(answer)["seconds"] == pytest.approx(answer["trained_tokens"] / 2000)
    assert only(ask(http, body, adapter={"type": "lora"}))["seconds"] == "unknown"
    assert only(ask(http, body, gradient_checkpointing=False))["seconds"] == "unknown"


# Models


def test_a_tuned_model_is_as_large_as_its_base(
    http: httpx.Client, storage: Storage, models: Models, body: dict[str, Any]
) -> None:
    full = tuned_model(storage, "ft:full", base=LLAMA)
    with storage.write(f"{full.path}/config.json") as file:
        file.write(json.dumps(CONFIG).encode())
    adapter = tuned_model(storage, "ft:adapter", base="ft:full", kind="lora")
    with storage.write(f"{adapter.path}/adapter_config.json") as file:
        file.write(json.dumps({"r": 4, "target_modules": ["q_proj"]}).encode())
    models.add(full)
    models.add(adapter)
    assert ask(http, {**body, "model": "ft:full"})["trained_parameters"] == PARAMETERS
    answer = ask(http, {**body, "model": "ft:adapter"})
    assert answer["parameters"] == PARAMETERS
    assert answer["trained_parameters"] == 16 * 4 * (2048 + 2048)
    assert only(answer)["resolved"]["learning_rate"] == 2e-4


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "tiny"}, "model", "unsupported_model"),  # its config is empty
        ({"model": "someone/model"}, "model", "unsupported_model"),
        ({"model": "nobody"}, "model", "model_not_found"),
        ({"training_file": "file-nothing"}, "training_file", "file_not_found"),
        ({"max_seq_length": 8193}, "max_seq_length", "unsupported_model"),
        ({"adapter": {"targets": ["lm_head"]}}, "adapter.targets", "invalid_value"),
        ({"micro_batch_size": 0}, "micro_batch_size", "invalid_value"),
        (
            {"hyperparameters": {"batch_size": 2}, "micro_batch_size": 4},
            "micro_batch_size",
            "invalid_value",
        ),
    ],
)
def test_what_could_not_be_created_or_predicted_is_refused(
    http: httpx.Client, body: dict[str, Any], fields: dict[str, Any], param: str, code: str
) -> None:
    answer = http.post(ESTIMATE, json={**body, **fields})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


# What it costs


def test_nothing_is_created(http: httpx.Client, redis: Redis, body: dict[str, Any]) -> None:
    before = {*redis.scan_iter()}
    ask(http, body)
    assert {*redis.scan_iter()} == before


def test_it_takes_under_a_second_and_no_torch(
    service_settings: ServiceSettings, redis: Redis, tmp_path: Path
) -> None:
    """In a process of its own, beside a hundred jobs and on four kinds of devices."""
    program = tmp_path / "ask.py"
    program.write_text(_TIMED)
    announce(redis, **{f"w{n}": H100.model_copy(update={"total_bytes": n << 36}) for n in range(4)})
    with serve(service_settings) as url, httpx.Client(base_url=url) as http:
        files = {"file": ("a.jsonl", TEXTS)}
        file = http.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()["id"]
        for number in range(100):
            body = {"model": LLAMA, "training_file": file, "seed": number}
            assert http.post("/v1/fine_tuning/jobs", json=body).status_code == 201
    done = subprocess.run(
        [sys.executable, program, service_settings.model_dump_json(), LLAMA, file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["torch"] is False
    assert told["seconds"] < 1


_TIMED = """
import json, sys, time
from fastapi.testclient import TestClient
from service.app import create_app
from service.settings import ServiceSettings

settings = ServiceSettings.model_validate_json(sys.argv[1])
body = {"model": sys.argv[2], "training_file": sys.argv[3]}
with TestClient(create_app(settings)) as http:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        http.post("/v1/fine_tuning/estimate", json=body).raise_for_status()
        seconds.append(time.perf_counter() - start)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps({"seconds": min(seconds), "torch": "torch" in loaded}))
"""
