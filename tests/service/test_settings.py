"""What only the service reads from its environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ServiceSettings


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADROOM_API_KEYS_FILE", "/etc/keys")
    monkeypatch.setenv("HEADROOM_MAX_FILE_BYTES", "7")
    monkeypatch.setenv("HEADROOM_MAX_BODY_BYTES", "9")
    monkeypatch.setenv("HEADROOM_REDIS_URL", "redis://elsewhere:1/2")
    settings = ServiceSettings()
    assert settings.api_keys_file == Path("/etc/keys")
    assert (settings.max_file_bytes, settings.max_body_bytes) == (7, 9)
    assert settings.redis_url == "redis://elsewhere:1/2"


def test_by_default_there_are_no_keys_and_the_wire_formats_limit() -> None:
    settings = ServiceSettings()
    assert settings.api_keys_file is None
    assert settings.max_file_bytes == 512 * 2**20


@pytest.mark.parametrize("name", ["max_file_bytes", "max_body_bytes"])
def test_a_limit_that_lets_nothing_through_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ServiceSettings(**{name: 0})
