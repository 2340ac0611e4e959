"""The `headroom` command as a user runs it: real processes, real signals."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from service.client import Client
from service.stack import Stack
from tests.support.stack import TINY, processes_of, write_chat
from tests.worker.support import until

HEADROOM = Path(sys.executable).with_name("headroom")


def _headroom(*arguments: object, url: str | None = None) -> subprocess.CompletedProcess[str]:
    server = ["--url", url] if url else []
    command, *rest = map(str, arguments)
    return subprocess.run(
        [HEADROOM, command, *server, *rest], capture_output=True, text=True, check=False
    )


@contextmanager
def _running(log: Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """A command with its output in `log`; it is killed where the test has not ended it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [HEADROOM, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _trainer(data: Path) -> bool:
    return any("worker.training " in line for line in processes_of(data).values())


def test_submit_and_watch_then_list_and_download(stack: Stack, tmp_path: Path) -> None:
    chat = write_chat(tmp_path / "chat.jsonl")
    arguments = ["--model", TINY, "--training-file", chat, "--n-epochs", 2, "--batch-size", 4]
    further = ["--option", "max_seq_length=64", "--suffix", "cli", "--watch"]
    done = _headroom("submit", *arguments, *further, url=stack.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Files validated" in done.stdout
    assert re.search(r"^\s*full logits .* measured", done.stdout, re.MULTILINE)
    assert re.search(r"^\s*CCE .* measured", done.stdout, re.MULTILINE)
    model = re.search(r"Succeeded. Model: (\S+)", done.stdout)[1]
    assert model in _headroom("jobs", url=stack.url).stdout
    predicted = _headroom("estimate", *arguments, *further[:2], url=stack.url)
    assert re.search(
        r"24 examples, the longest of \d+ tokens; 12 steps over [\d,]+ tokens\n", predicted.stdout
    )
    downloaded = _headroom("download", model, tmp_path / "model", url=stack.url)
    assert downloaded.returncode == 0, downloaded.stderr
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size == 384


def test_faults_of_a_file_are_listed_by_line(stack: Stack, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_text('{"messages": []}\nno json\n')
    done = _headroom("submit", "--model", TINY, "--training-file", faulty, url=stack.url)
    assert done.returncode == 1
    assert "Error:" in done.stderr
    assert done.stderr.count("line 1") == done.stderr.count("line 2") == 1
    assert "Traceback" not in done.stderr


def test_no_server_is_one_line(tmp_path: Path) -> None:
    chat = write_chat(tmp_path / "chat.jsonl")
    done = _headroom("submit", "--model", TINY, "--training-file", chat, url="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No answer from http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1


def test_up_stops_in_the_middle_of_a_job_and_keeps_it(models: Path, tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "up.log"
    arguments = ["up", "--data", data, "--port", 0, "--models", models]
    with _running(log, *arguments) as up:
        url = until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), 30)[0]
        until(lambda: "Ctrl-C" in log.read_text(), 30)
        folders = re.search(r"^  Models +(.*)$", log.read_text(), re.MULTILINE)[1]
        assert folders == f"{data / 'models'}, {models}"
        with Client(url) as client:
            file = client.upload(write_chat(tmp_path / "chat.jsonl"))
            hyperparameters = {"n_epochs": 50, "batch_size": 1}
            method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
            job = client.create({"model": TINY, "training_file": file, "method": method})
            until(lambda: client.job(job.id).status == "running" and _trainer(data), 60)
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0, log.read_text()
    assert processes_of(data) == {}
    assert "Traceback" not in log.read_text()
    with _running(log, *arguments) as again:
        until(lambda: "Ctrl-C" in log.read_text(), 30)
        url = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())[0]
        with Client(url) as client:
            assert client.job(job.id).status in {"queued", "running"}
        again.send_signal(signal.SIGTERM)
        assert again.wait(30) == 0
    assert processes_of(data) == {}


def test_up_refuses_the_network_without_keys(tmp_path: Path) -> None:
    done = _headroom("up", "--data", tmp_path, "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "Without API keys" in done.stderr


@pytest.mark.slow
def test_the_demo_leaves_nothing_after_ctrl_c(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "demo.log"
    with _running(log, "demo", "--data", data) as demo:
        until(lambda: _trainer(data), 90, what="a trainer of the demo")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130, log.read_text()
    assert processes_of(data) == {}
    assert "Traceback" not in log.read_text()
