"""Settings that the service and the workers must agree on, from `HEADROOM_*` variables."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where things are, and the timings of the job contract.

    Attributes:
        storage_url: An fsspec URL or a folder: uploads, checkpoints, models.
        model_folders: Folders whose subfolders with a `config.json` may be fine-tuned, by name.
        hub_models: Patterns of hub ids that may be fine-tuned, for example `Qwen/*`.
        lease_s: A claim that is not renewed for this long is lost.
        max_attempts: Training attempts before a job whose worker keeps dying fails.
        event_cap: Events kept a job; beyond it, older metrics are thinned out.
    """

    model_config = SettingsConfigDict(env_prefix="HEADROOM_", frozen=True, extra="ignore")

    redis_url: str = "redis://127.0.0.1:6379/0"
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

    def redis_password(self) -> SecretStr | None:
        """The password in `redis_password_file`, or None where the URL carries all there is."""
        if self.redis_password_file is None:
            return None
        return SecretStr(self.redis_password_file.read_text().strip())
