"""Settings that the service and the workers must agree on, from `HEADROOM_*` variables."""

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


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

    model_config = SettingsConfigDict(env_prefix="HEADROOM_", frozen=True, extra="ignore")

    redis_url: str = Field("redis://127.0.0.1:6379/0", pattern="^rediss?://")
    redis_password_file: Path | None = None
    storage_url: str = "headroom-data/storage"
    model_folders: list[Path] = []
    hub_models: list[str] = []
    lease_s: float = Field(15.0, gt=0)
    heartbeat_s: float = Field(1.0, gt=0)
    reaper_interval_s: float = Field(2.0, gt=0)
    max_attempts: int = Field(4, ge=1)
    dedupe_window_s: int = Field(120, ge=0)
    event_cap: int = Field(4000, ge=100)

    @model_validator(mode="after")
    def _beats_within_lease(self) -> Self:
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError(
                f"heartbeat_s is {self.heartbeat_s}; expected at most half of lease_s, "
                f"{self.lease_s / 2}: one late heartbeat must not lose a job."
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
