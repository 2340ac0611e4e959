"""Settings: frozen, checked, and read from the environment alone."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.contract.connection import connect
from service.contract.settings import Settings, SettingsRefused, from_environment


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADROOM_LEASE_S", "7")
    monkeypatch.setenv("HEADROOM_MODEL_FOLDERS", '["/a", "/b"]')
    monkeypatch.setenv("HEADROOM_OF_ANOTHER_PART", "x")
    settings = Settings()
    assert settings.lease_s == 7
    assert settings.model_folders == [Path("/a"), Path("/b")]


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().lease_s = 3


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"lease_s": 1, "heartbeat_s": 0.6}, "HEADROOM_HEARTBEAT_S is 0.6; expected at most half"),
        ({"lease_s": 0}, "lease_s"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"redis_url": "localhost:6379"}, "redis_url"),
        ({"redis_url": "redis://host:port/0"}, "redis_url"),
        ({"redis_url": "redis://host:1/zero"}, "redis_url"),
        ({"storage_url": "nothing://bucket"}, "storage_url"),
        ({"lease_s": float("inf")}, "lease_s"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**values)


def test_the_password_comes_from_its_file_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret/@:\n")
    settings = Settings(redis_password_file=file)
    assert settings.redis_password().get_secret_value() == "s3cret/@:"
    assert "s3cret" not in repr(settings) + repr(settings.redis_password())
    with connect(settings) as redis:
        assert redis.connection_pool.connection_kwargs["password"] == "s3cret/@:"


def test_without_a_file_the_url_carries_all() -> None:
    assert Settings().redis_password() is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HEADROOM_LEASE_S", "long", "HEADROOM_LEASE_S: "),
        ("HEADROOM_HEARTBEAT_S", "14", "HEADROOM_HEARTBEAT_S is 14.0; expected at most half of"),
        ("HEADROOM_HUB_MODELS", "Qwen/*", "HEADROOM_HUB_MODELS: expected a JSON list"),
        ("HEADROOM_HUB_MODELS", "[1]", "HEADROOM_HUB_MODELS[0]: "),
        ("HEADROOM_MODEL_FOLDERS", "", "HEADROOM_MODEL_FOLDERS: expected a JSON list"),
        ("HEADROOM_STORAGE_URL", "nothing://bucket", "HEADROOM_STORAGE_URL: "),
    ],
)
def test_a_variable_that_cannot_work_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsRefused) as error:
        from_environment(Settings)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["http://:s3cret@host", "redis://:s3cret@host:s3cret/0"])
def test_a_url_that_is_refused_does_not_show_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HEADROOM_REDIS_URL", url)
    with pytest.raises(SettingsRefused) as error:
        from_environment(Settings)
    assert "HEADROOM_REDIS_URL" in str(error.value)
    assert "s3cret" not in str(error.value) + str(error.value.__cause__)
