"""Settings of the HTTP service, beside those it shares with the workers."""

from pathlib import Path

from pydantic import Field

from service.contract.settings import Settings


class ServiceSettings(Settings):
    """What only the service needs to know, from `HEADROOM_*` variables.

    Attributes:
        api_keys_file: Lines of the form `organization:sha256`; see `auth.py`. Without it there are
            no keys, every caller is `org-local`, and the server must be bound to loopback.
        max_file_bytes: The largest upload.
        max_body_bytes: The largest body of any other request.
    """

    api_keys_file: Path | None = None
    max_file_bytes: int = Field(512 * 2**20, ge=1)
    max_body_bytes: int = Field(2**20, ge=1)
