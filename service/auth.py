"""API keys: who is calling, and whether a server may be reached from elsewhere without any.

Only hashes are stored. A key carries 256 random bits, so that a plain SHA-256 is enough: there is
nothing to guess that a slow hash would protect.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from service.contract.errors import Unauthenticated

LOCAL_ORG = "org-local"
# Organizations stand in model ids, between colons, and in Redis keys.
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})", re.ASCII)


class ExposureError(Exception):
    """A server without API keys would be reachable from other machines."""


class KeysRefused(Exception):
    """The file of API keys cannot be read, or is none."""


@dataclass(frozen=True)
class Keyring:
    """The hashes of the API keys, each with its organization; None where keys are not in use."""

    entries: tuple[tuple[str, str], ...] | None

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read the lines `organization:sha256` of a file; blank lines and `#` comments are skipped.

        Raises:
            ValueError: A line is of another form, or there is none.
        """
        if path is None:
            return cls(None)
        lines = [line.strip() for line in path.read_text().splitlines()]
        entries = [_entry(line, path) for line in lines if line and not line.startswith("#")]
        if not entries:
            raise ValueError(f"{path} holds no API key; expected lines `organization:sha256`.")
        return cls(tuple(entries))

    def organization(self, key: str | None) -> str:
        """The organization of an API key.

        Every entry is compared, each in constant time, so that the time tells nothing.

        Raises:
            Unauthenticated: Keys are in use, and this is none of them.
        """
        if self.entries is None:
            return LOCAL_ORG
        digest = digest_of(key or "")
        found = [org for org, known in self.entries if hmac.compare_digest(digest, known)]
        if not found:
            got = "none was sent" if key is None else "this one is not known"
            raise Unauthenticated(f"An API key is needed as `Authorization: Bearer KEY`; {got}.")
        return found[0]


def digest_of(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_key(organization: str) -> tuple[str, str]:
    """A new API key, and the line that stands for it in the file of the keys.

    Raises:
        ValueError: The name does not fit into model ids.
    """
    key = f"sk-{secrets.token_urlsafe(32)}"
    line = f"{organization}:{digest_of(key)}"
    if not _LINE.fullmatch(line):
        raise ValueError(
            f"The organization is {organization!r}; expected 1 to 64 letters, digits, . _ or -."
        )
    return key, line


def check_keys(api_keys_file: Path | None) -> None:
    """Find what is wrong with the file of keys at the start, and say so in a line.

    Raises:
        KeysRefused: It cannot be read, or holds what is no key.
    """
    try:
        Keyring.load(api_keys_file)
    except (OSError, ValueError) as error:
        raise KeysRefused(f"The API keys cannot be read: {error}") from error


def check_exposure(host: str, api_keys_file: Path | None) -> None:
    """Refuse to serve other machines without API keys.

    Raises:
        ExposureError: `host` is not a loopback address, and there is no file of keys.
    """
    if api_keys_file is None and not _is_loopback(host):
        raise ExposureError(
            f"Without API keys the server binds to loopback only, and {host or 'every address'} is "
            "not. Name a file of keys, by HEADROOM_API_KEYS_FILE or `headroom up --api-keys FILE`, "
            "or bind 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _entry(line: str, path: Path) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"A line of {path} is not of the form `organization:sha256`.")
    return match[1], match[2]
