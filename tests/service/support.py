"""Uploads, jobs and the part of a worker, for the tests of the API."""

import json
from typing import Any

import httpx
import openai
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from service.contract.job import JobStatus
from service.contract.memory import Figure, LargestBatch, LossMemory, MemoryLedger
from service.contract.models import ModelFile, ModelRecord
from service.contract.storage import Storage
from service.contract.store import Claim, Store
from tests.service.contract.support import EVENT, take
from tests.support.stack import TINY

JOBS = "/v1/fine_tuning/jobs"
ASK = {"role": "user", "content": "Hello?"}
TELL = {"role": "assistant", "content": "Hi."}


def jsonl(*rows: object) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


LEDGER = MemoryLedger(
    device="NVIDIA H200",
    method="CUDA allocator peak",
    micro_batch_size=8,
    seq_length=512,
    tokens=4000,
    vocab_size=128_256,
    hidden_size=2048,
    dtype="bfloat16",
    room_bytes=100 << 30,
    losses=[
        LossMemory(
            loss="full_logits",
            loss_layer=Figure(bytes=9 << 30, provenance="out_of_memory"),
            step=Figure(bytes=9 << 30, provenance="out_of_memory"),
            largest_micro_batch=LargestBatch(
                sequences=7,
                formula="proportional_step",
                bytes_per_sequence=14 << 30,
                fixed_bytes=0,
            ),
        ),
        LossMemory(
            loss="cce",
            loss_layer=Figure(bytes=60 << 20, provenance="measured"),
            step=Figure(bytes=8 << 30, provenance="measured"),
            tokens_per_s=20_000.0,
            largest_micro_batch=LargestBatch(
                sequences=99, formula="linear_step", bytes_per_sequence=1 << 30, fixed_bytes=1 << 20
            ),
        ),
    ],
    savings=[],
)
CHAT = jsonl({"messages": [ASK, TELL]})


def upload(client: openai.OpenAI, content: bytes = CHAT, **options: Any) -> FileObject:
    """An uploaded training file."""
    return client.files.create(file=("chat.jsonl", content), purpose="fine-tune", **options)


def send(http: httpx.Client, content: bytes, **form: str) -> httpx.Response:
    """The answer to an upload."""
    files = {"file": ("chat.jsonl", content)}
    return http.post("/v1/files", files=files, data={"purpose": "fine-tune", **form})


def submit(client: openai.OpenAI, training_file: str, **fields: Any) -> FineTuningJob:
    """A new job on the tests' base model."""
    return client.fine_tuning.jobs.create(
        **{"model": TINY, "training_file": training_file} | fields  # type: ignore[arg-type]
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, which is the envelope, and nothing else."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert {"message", "type", "param", "code"} <= body["error"].keys()
    assert answer.headers["x-request-id"].startswith("req_")
    return dict(body["error"])


def enqueue(store: Store, job_id: str) -> None:
    """Play the worker that finds a job's files in order."""
    claim = take(store, job_id)
    store.transition(job_id, JobStatus.QUEUED, EVENT, token=claim.token)


def start(store: Store, job_id: str) -> Claim:
    """Play the worker that begins to train."""
    enqueue(store, job_id)
    return take(store, job_id)


def tuned_model(storage: Storage, model_id: str, **fields: Any) -> ModelRecord:
    """The record of a model whose one file is in the storage."""
    path = f"models/{model_id}"
    with storage.write(f"{path}/config.json") as file:
        file.write(b"{}")
    given = {"org": "org-local", "created_at": 1, "base": TINY, "job_id": "ftjob-1", "kind": "full"}
    files = [ModelFile(name="config.json", bytes=2)]
    return ModelRecord(**{"id": model_id, "path": path, "files": files} | given | fields)
