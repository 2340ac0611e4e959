"""The `headroom` command: what it makes itself, and how it tells of errors."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from service.auth import Keyring

HEADROOM = Path(sys.executable).with_name("headroom")


def _headroom(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HEADROOM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


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


def test_the_version_is_that_of_the_package() -> None:
    assert version("headroom") in _headroom("--version").stdout


def test_every_command_says_what_it_does() -> None:
    _, _, commands = _headroom("-h").stdout.partition("Commands:")
    described = [line.split(maxsplit=1) for line in commands.strip().splitlines()]
    assert {"up", "demo", "submit", "watch"} <= {name for name, *_ in described}
    assert [words for words in described if len(words) < 2] == []
