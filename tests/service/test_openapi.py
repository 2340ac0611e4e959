"""The document against the server: every operation is fuzzed by its own schema."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from service.contract.files import Files
from service.contract.job import Progress
from service.contract.models import Models
from service.contract.storage import Storage
from service.contract.store import Store
from service.settings import ServiceSettings
from tests.service.contract.support import EVENT, checkpoint, create, file_record
from tests.service.support import CHAT, start, tuned_model
from tests.support.measured import LEDGER, RECEIPT, RESOLVED
from tests.support.server import serve

# What the example of the document names; here, both are there.
MODEL, FILE = "tiny-llama", "file-0193f2d0c1aa"
SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
TUNED = f"ft:{MODEL}:org-local::1"
CONFIG = """
[generation]
deterministic = true
max-examples = 5
database = "none"

[warnings]
fail-on = true

[checks]
# No schema tells that a file holds training data, or which options go together.
positive_data_acceptance.enabled = false

# What is made up at random is no training data, and names no model and no file.
[[operations]]
include-operation-id = ["upload_file", "create_job", "create_comparison"]
warnings = false

# `test_problems.py` tries every method on every route.
[phases.coverage]
unexpected-methods = []

[parameters]
"path.job_id" = "{job}"
"path.comparison_id" = "{comparison}"
"path.file_id" = "{file}"
"path.model_id" = "{model}"
"path.name" = "config.json"
"""


@pytest.fixture
def documented(
    service_settings: ServiceSettings, storage: Storage, redis: Redis, tmp_path: Path
) -> Iterator[str]:
    """The URL of a server on which the example of the document can be created."""
    with storage.write(f"files/{FILE}") as file:
        file.write(CHAT)
    Files(redis).add(file_record(id=FILE, org="org-local", bytes=len(CHAT), format="chat", rows=1))
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    (tmp_path / "models" / MODEL / "config.json").write_text(json.dumps(SHAPE))
    folders = {"model_folders": [tmp_path / "models"]}
    with serve(service_settings.model_copy(update=folders)) as url:
        yield url


@pytest.fixture
def job_id(store: Store, storage: Storage, models: Models) -> str:
    """A running job that has all there is to tell, on a file and a model that stay for its sake."""
    models.add(tuned_model(storage, TUNED))
    claim = start(store, create(store, org="org-local", model=TUNED, training_file=FILE))
    progress = Progress(phase="training", step=1, total_steps=9, eta_s=5.0, train_loss=3.5)
    told = {"resolved": RESOLVED, "memory": LEDGER, "receipt": RECEIPT, "progress": progress}
    store.update(claim, EVENT, **told)
    made, model = checkpoint(claim, step=1)
    store.add_checkpoint(claim, made, model.model_copy(update={"org": "org-local"}), keep=1)
    return claim.job_id


@pytest.fixture
def comparison_id(store: Store) -> str:
    """A running comparison on the same file."""
    asked = {"losses": ["cce"], "batch_sizes": [1], "steps": 4}
    fields = {"model": MODEL, "training_file": FILE, "comparison": asked}
    return start(store, create(store, org="org-local", **fields)).job_id


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_describes(
    documented: str, job_id: str, comparison_id: str, tmp_path: Path
) -> None:
    config = CONFIG.format(job=job_id, comparison=comparison_id, file=FILE, model=TUNED)
    (tmp_path / "schemathesis.toml").write_text(config)
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [program, "run", f"{documented}/openapi.json", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
