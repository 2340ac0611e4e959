import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.contract.connection import SOCKET_TIMEOUT_S
from service.contract.settings import Settings
from worker.settings import WorkerSettings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "REDIS_URL": "redis://elsewhere:1/2",
        "WORKER_NAME": "gpu-7",
        "WORK_DIR": "/scratch",
        "TRAINER_COMMAND": '["trainer", "--fast"]',
        "KEEP_CHECKPOINTS": "5",
        "STOP_GRACE_S": "0.5",
        "LOG_LEVEL": "DEBUG",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"HEADROOM_{name}", value)
    settings = WorkerSettings()
    assert settings.redis_url == "redis://elsewhere:1/2"
    assert (settings.worker_name, settings.work_dir) == ("gpu-7", Path("/scratch"))
    assert settings.trainer_command == ["trainer", "--fast"]
    assert (settings.keep_checkpoints, settings.stop_grace_s) == (5, 0.5)
    assert settings.log_level == "DEBUG"


def test_the_default_trainer_is_ours_and_the_name_is_the_machines() -> None:
    settings = WorkerSettings()
    assert settings.trainer_command == [sys.executable, "-m", "worker.training"]
    assert settings.worker_name == socket.gethostname()


@pytest.mark.parametrize(
    "values",
    [
        {"keep_checkpoints": 0},
        {"trainer_command": []},
        {"stop_grace_s": -1},
        {"progress_interval_s": -1},
        {"resend_grace_s": -1},
        {"log_level": "LOUD"},
    ],
)
def test_a_value_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        WorkerSettings(**values)


@pytest.mark.parametrize("lease_s", [1.0, 15.0, 600.0])
def test_redis_may_hang_several_times_within_a_lease(lease_s: float) -> None:
    settings = WorkerSettings(lease_s=lease_s, heartbeat_s=0.2)
    assert settings.redis_timeout_s <= lease_s / 5
    assert settings.redis_timeout_s <= SOCKET_TIMEOUT_S


def test_every_setting_is_documented() -> None:
    own = WorkerSettings.model_fields.keys() - Settings.model_fields.keys()
    assert [name for name in sorted(own) if f"    {name}: " not in WorkerSettings.__doc__] == []
