"""A model and a dataset small enough to be trained again and again while things break."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer
from tests.support.tiny_llama import dataset, essays, make_tiny_llama
from tests.worker.support import Deployment
from worker.settings import WorkerSettings

STEPS, EVERY = 120, 20
Curve = dict[int, float]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return essays(80)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def faulty(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Deployment, RedisServer]]:
    """A deployment with the real trainer, on a Redis that the test may kill."""
    with deploy(tmp_path, tiny_model) as parts:
        yield parts


@contextmanager
def deploy(
    folder: Path, model: Path, trainer: list[str] | None = None
) -> Iterator[tuple[Deployment, RedisServer]]:
    """Redis, and a deployment whose workers start the real trainer, or `trainer`."""
    (folder / "redis").mkdir()
    server = RedisServer(folder / "redis")
    real_trainer = WorkerSettings.model_fields["trainer_command"].get_default(
        call_default_factory=True
    )
    deployment = Deployment(server.url, folder, trainer_command=trainer or real_trainer)
    (folder / "models" / "tiny").symlink_to(model)
    try:
        yield deployment, server
    finally:
        deployment.close()
        server.kill()


def submit(deployment: Deployment, texts: list[str], **options: object) -> str:
    """A job of `STEPS` steps with a checkpoint every `EVERY`."""
    return deployment.submit(
        model="tiny",
        training_file=deployment.upload(dataset(texts)),
        seed=7,
        hyperparameters={"n_epochs": STEPS // 20, "batch_size": len(texts) // 20},
        options={
            "checkpoint_every": EVERY,
            "learning_rate": 1e-3,
            "max_seq_length": 256,
            "memory_ledger": False,
            **options,
        },
    )


def points(deployment: Deployment, job_id: str) -> list[tuple[int, float]]:
    """Every training point in order of time, those of lost attempts too."""
    metrics = deployment.events.metrics(job_id, resolution=100_000)
    return [(e.data["step"], e.data["train_loss"]) for e in metrics if "train_loss" in e.data]


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, texts: list[str]
) -> Curve:
    """The loss curve of a run that nothing happens to."""
    with deploy(tmp_path_factory.mktemp("undisturbed"), tiny_model) as (deployment, _):
        deployment.worker("validate", "train")
        job_id = submit(deployment, texts)
        record = deployment.reaches(job_id, "succeeded", "failed", timeout_s=90.0)
        assert record.status == "succeeded", record.error
        curve = points(deployment, job_id)
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    assert curve[-1][1] < 0.9 * curve[0][1]
    return dict(curve)
