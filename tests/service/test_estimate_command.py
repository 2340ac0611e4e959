"""`headroom estimate` against a real server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from service.cli import main
from service.client import Client
from service.contract.device import Device
from service.contract.fleet import Fleet, LiveWorker
from service.contract.job import DataSize
from service.contract.store import Store
from service.settings import ServiceSettings
from tests.service.support import start
from tests.support.stack import write_chat

CONFIG = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
}


@pytest.fixture
def chat(service_settings: ServiceSettings, tmp_path: Path) -> Iterator[Path]:
    """Training data, while there is a model for it."""
    folder = service_settings.model_folders[0] / "gemma-2-2b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    yield write_chat(tmp_path / "chat.jsonl")
    shutil.rmtree(folder)


def run(url: str, chat: Path, *arguments: str, columns: int = 200) -> Result:
    job = ["--url", url, "--model", "gemma-2-2b", "--training-file", str(chat)]
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["estimate", *job, *arguments])


def test_what_a_job_would_need_is_told_for_each_device(url: str, redis: Redis, chat: Path) -> None:
    device = Device(kind="cuda", name="NVIDIA H200", total_bytes=150_000_000_000)
    Fleet(redis).announce(LiveWorker(name="one", device=device), ttl_s=60)
    done = run(url, chat, "--batch-size", "16", "--option", "max_seq_length=512")
    assert done.exit_code == 0, done.output
    assert "gemma-2-2b: 2,614,341,888 parameters" in done.output
    assert "24 examples" in done.output
    assert "NVIDIA H200 (one): 16 of 16 sequences at once, bfloat16" in done.output
    assert "fits in 134.5 GiB" in done.output
    for loss in ("full logits", "compiled logits", "chunked", "CCE"):
        assert f"\n{loss}" in done.output
    assert "weights 4.9 GiB" in done.output
    assert "Time: unknown." in done.output
    assert "times that of full logits" in done.output


def test_what_is_held_is_told_within_the_width_of_the_terminal(url: str, chat: Path) -> None:
    shown = run(url, chat, columns=60).output
    prose = shown[shown.index("Predicted: weights ") :].splitlines()
    assert max(map(len, prose)) <= 60 < sum(map(len, prose))
    assert "bytes" not in shown


def test_without_a_worker_it_says_what_is_assumed(url: str, chat: Path) -> None:
    done = run(url, chat)
    assert done.exit_code == 0, done.output
    assert "A GPU, since no worker is alive" in done.output


def test_it_is_exact_once_a_job_has_tokenized_the_file(url: str, store: Store, chat: Path) -> None:
    assert "about" in run(url, chat).output
    job = ["--url", url, "--model", "gemma-2-2b", "--training-file", str(chat)]
    assert CliRunner().invoke(main, ["submit", *job]).exit_code == 0
    with Client(url) as client:
        (made,) = client.jobs(limit=5)
    size = DataSize(examples=24, tokens=1234, supervised_tokens=600, longest=57)
    store.update(start(store, made.id), data=size)
    told = run(url, chat).output
    assert "24 examples, the longest of 57 tokens; 72 steps over 3,702 tokens" in told
    assert "about" not in told


def test_an_error_of_the_api_is_one_line(url: str, chat: Path) -> None:
    done = run(url, chat, "--option", "max_seq_length=9000")
    assert done.exit_code == 1
    assert "Error: max_seq_length is 9000; the model's context is 8192." in done.output
