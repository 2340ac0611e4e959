from pathlib import Path

import pytest

from service.auth import LOCAL_ORG, ExposureError, Keyring, check_exposure, digest_of, make_key
from service.contract.errors import Unauthenticated


def _keyring(path: Path, *lines: str) -> Keyring:
    path.write_text("\n".join(lines))
    return Keyring.load(path)


def test_a_key_names_its_organization(tmp_path: Path) -> None:
    (first, one), (second, two) = make_key("acme"), make_key("other")
    keyring = _keyring(tmp_path / "keys", "# Comment", one, "", two)
    assert keyring.organization(first) == "acme"
    assert keyring.organization(second) == "other"


def test_only_the_hash_is_stored() -> None:
    key, line = make_key("acme")
    assert line == f"acme:{digest_of(key)}"
    assert key not in line


@pytest.mark.parametrize("key", [None, "", "sk-guessed", "ключ"])
def test_an_unknown_key_is_refused(tmp_path: Path, key: str | None) -> None:
    keyring = _keyring(tmp_path / "keys", make_key("acme")[1])
    with pytest.raises(Unauthenticated, match="Authorization: Bearer KEY"):
        keyring.organization(key)


def test_without_keys_everybody_is_local() -> None:
    assert Keyring.load(None).organization(None) == LOCAL_ORG
    assert Keyring.load(None).organization("whatever") == LOCAL_ORG


@pytest.mark.parametrize(
    "line", ["", "# None.", "acme", "acme:123", "a:b:" + "0" * 64, "acme:sk-a"]
)
def test_a_file_without_keys_does_not_open_the_server(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="organization:sha256"):
        _keyring(tmp_path / "keys", line)


@pytest.mark.parametrize("organization", ["", "a:b", "a b", "a/b", "x" * 65, "ä"])
def test_an_organization_fits_into_model_ids(organization: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64"):
        make_key(organization)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "example.org"])  # noqa: S104
def test_elsewhere_keys_are_needed(host: str, tmp_path: Path) -> None:
    with pytest.raises(ExposureError, match="HEADROOM_API_KEYS_FILE"):
        check_exposure(host, None)
    check_exposure(host, tmp_path / "keys")
