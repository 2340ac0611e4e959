"""The `headroom` command: what it makes itself, and how it tells of errors."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from service.auth import Keyring, make_key
from service.settings import ServiceSettings
from tests.support.server import serve

HEADROOM = Path(sys.executable).with_name("headroom")


def _headroom(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HEADROOM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_help_of_no_command_is_cut_in_the_list_of_all() -> None:
    _, found, commands = _headroom("--help").stdout.partition("Commands:")
    assert found
    assert [line for line in commands.strip().splitlines() if not line.endswith(".")] == []
    assert "..." not in commands


def test_a_key_comes_with_the_line_that_the_server_knows_it_by(tmp_path: Path) -> None:
    done = _headroom("key", "acme")
    assert done.returncode == 0
    key, line = (text.rpartition(" ")[2] for text in done.stdout.splitlines())
    assert key not in line
    (tmp_path / "keys").write_text(line)
    assert Keyring.load(tmp_path / "keys").organization(key) == "acme"


def test_a_name_that_fits_into_no_model_id_gets_no_key() -> None:
    done = _headroom("key", "a:b")
    assert done.returncode == 2
    assert "expected 1 to 64 letters" in done.stderr
    assert "sk-" not in done.stdout


@pytest.mark.parametrize("content", ["", "acme:sk-no-hash"])
def test_a_file_of_keys_that_is_none_is_told_and_nothing_starts(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "keys").write_text(content)
    done = _headroom("up", "--data", tmp_path / "data", "--api-keys", tmp_path / "keys")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The API keys cannot be read: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.fixture
def locked(service_settings: ServiceSettings, tmp_path: Path) -> Iterator[str]:
    """The URL of a server that wants an API key."""
    _, line = make_key("acme")
    (tmp_path / "keys").write_text(line)
    settings = service_settings.model_copy(update={"api_keys_file": tmp_path / "keys"})
    with serve(settings) as url:
        yield url


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([], "The server wants an API key."),
        (["--api-key", "sk-wrong"], "The server does not know this API key."),
    ],
)
def test_a_key_that_is_missing_or_wrong_is_told_by_its_option(
    locked: str, given: list[str], what: str
) -> None:
    done = _headroom("jobs", "--url", locked, *given)
    assert done.returncode == 1
    hint = "Give one by --api-key, HEADROOM_API_KEY or OPENAI_API_KEY."
    assert done.stderr == f"Error: {what} {hint}\n"


def test_up_on_the_network_names_its_own_option_for_keys(tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = _headroom("up", "--data", data, "--host", "0.0.0.0")  # noqa: S104
    assert done.returncode == 1
    assert "HEADROOM_API_KEYS_FILE or `headroom up --api-keys FILE`" in done.stderr
    assert not data.exists()


def test_up_takes_the_file_of_keys_from_the_variable_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("no key")
    monkeypatch.setenv("HEADROOM_API_KEYS_FILE", str(tmp_path / "keys"))
    done = _headroom("up", "--data", tmp_path / "data")
    assert done.stderr.startswith("Error: The API keys cannot be read: ")


def test_the_version_is_that_of_the_package() -> None:
    assert version("headroom") in _headroom("--version").stdout


def test_every_command_says_what_it_does() -> None:
    _, _, commands = _headroom("-h").stdout.partition("Commands:")
    described = [line.split(maxsplit=1) for line in commands.strip().splitlines()]
    assert {"up", "demo", "submit", "watch"} <= {name for name, *_ in described}
    assert [words for words in described if len(words) < 2] == []


@pytest.mark.parametrize("command", [["up", "--port", "0"], ["demo"]])
def test_a_data_folder_that_cannot_be_made_is_told(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()
    done = _headroom(*command, "--data", tmp_path / "file" / "data")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {tmp_path / 'file'}")
    assert done.stderr.endswith(": Not a directory.\n")


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_told(tmp_path: Path, port: str) -> None:
    done = _headroom("up", "--data", tmp_path / "data", "--port", port)
    assert done.returncode == 2
    assert "0<=x<=65535" in done.stderr
    assert not (tmp_path / "data").exists()
