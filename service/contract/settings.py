"""Settings that the service and the workers must agree on, from `HEADROOM_*` variables."""

import json
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.utils import get_protocol
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_PREFIX = "HEADROOM_"
S = TypeVar("S", bound="Settings")


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'expected a JSON list, for example ["a", "b"]: {error}') from error


# Marks a list that a variable gives as JSON. Left to the library, a value that is no JSON would be
# told by the class that read it.
FROM_JSON = (NoDecode, BeforeValidator(_decoded))


class Settings(BaseSettings):
    """Where things are, and the timings of the job contract.

    Attributes:
        redis_url: Of the form `redis://host:port/database`, or `rediss://` for TLS.
        redis_password_file: A file with the password; with it, the URL needs none.
        storage_url: An fsspec URL or a folder: uploads, checkpoints, models.
        model_folders: Folders whose subfolders with a `config.json` may be fine-tuned, by name.
        hub_models: Patterns of hub ids that may be fine-tuned, for example `Qwen/*`.
        lease_s: A claim that is not renewed for this long is lost.
        heartbeat_s: How often a worker renews its lease: several times within `lease_s`.
        reaper_interval_s: How often a worker looks for jobs to repair.
        max_attempts: Training attempts before a job whose worker keeps dying fails.
        dedupe_window_s: How long a repeated create is answered with the job it made; 0 for never.
        event_cap: Metrics events kept a job; beyond it, they are thinned out.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a URL may have a password in it
    )

    redis_url: str = Field("redis://127.0.0.1:6379/0", pattern="^rediss?://")
    redis_password_file: Path | None = None
    storage_url: str = "headroom-data/storage"
    model_folders: Annotated[list[Path], *FROM_JSON] = []
    hub_models: Annotated[list[str], *FROM_JSON] = []
    lease_s: float = Field(15.0, gt=0)
    heartbeat_s: float = Field(1.0, gt=0)
    reaper_interval_s: float = Field(2.0, gt=0)
    max_attempts: int = Field(4, ge=1)
    dedupe_window_s: int = Field(120, ge=0)
    event_cap: int = Field(4000, ge=100)

    @field_validator("redis_url")
    @classmethod
    def _names_a_server(cls, value: str) -> str:
        url = urlsplit(value)
        try:
            _ = url.port
            int(url.path.strip("/") or 0)
        except ValueError:  # it would quote what may be a part of the password
            raise ValueError("expected redis://host:port/database, with numbers for both") from None
        return value

    @field_validator("storage_url")
    @classmethod
    def _names_a_storage(cls, value: str) -> str:
        try:
            fsspec.get_filesystem_class(get_protocol(value))
        except ImportError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _beats_within_lease(self) -> Self:
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError(
                f"{_PREFIX}HEARTBEAT_S is {self.heartbeat_s}; expected at most half of "
                f"{_PREFIX}LEASE_S, {self.lease_s / 2}: one late heartbeat must not lose a job."
            )
        return self

    @property
    def redis_address(self) -> str:
        """The Redis URL without what may be secret in it: for people to read."""
        url = urlsplit(self.redis_url)
        return url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()

    def redis_password(self) -> SecretStr | None:
        """The password in `redis_password_file`, or None where the URL carries all there is."""
        if self.redis_password_file is None:
            return None
        return SecretStr(self.redis_password_file.read_text().strip())


class SettingsRefused(Exception):
    """A variable has a value that cannot work."""


def from_environment(kind: type[S]) -> S:
    """The settings of a program that starts.

    Raises:
        SettingsRefused: With a line for each variable that has a value that cannot work.
    """
    try:
        return kind()
    except ValidationError as error:
        raise SettingsRefused("\n".join(map(_told, error.errors()))) from error


def _told(error: ErrorDetails) -> str:
    what = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return what  # it is of several variables, and names them
    field, *within = map(str, error["loc"])
    place = "".join(f"[{index}]" for index in within)
    return f"{_PREFIX}{field.upper()}{place}: {what}"
