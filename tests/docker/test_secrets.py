"""docker/secrets.sh, run for real in a folder of its own."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from service.auth import Keyring
from service.contract.errors import Unauthenticated
from service.contract.settings import Settings
from tests.docker.support import FOLDER


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return Path(shutil.copy(FOLDER / "secrets.sh", tmp_path))


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False)


def make(script: Path, organization: str) -> str:
    """The key that the script shows."""
    done = run(script, organization)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.removeprefix("API key, shown only now: ").strip()


def test_a_key_opens_the_service_for_its_organization(script: Path) -> None:
    key = make(script, "acme")
    keyring = Keyring.load(script.parent / "secrets" / "api_keys")
    assert keyring.organization(key) == "acme"
    with pytest.raises(Unauthenticated):
        keyring.organization(key[:-1])
    assert key not in (script.parent / "secrets" / "api_keys").read_text()


def test_another_run_adds_a_key_and_keeps_the_rest(script: Path) -> None:
    first = make(script, "acme")
    password = (script.parent / "secrets" / "redis_password").read_text()
    second, third = make(script, "acme"), make(script, "Other_1.x-y")
    keyring = Keyring.load(script.parent / "secrets" / "api_keys")
    owners = [keyring.organization(key) for key in (first, second, third)]
    assert owners == ["acme", "acme", "Other_1.x-y"]
    assert (script.parent / "secrets" / "redis_password").read_text() == password


def test_the_password_is_one_word_that_the_settings_read(script: Path) -> None:
    make(script, "acme")
    settings = Settings(redis_password_file=script.parent / "secrets" / "redis_password")
    password = settings.redis_password().get_secret_value()
    assert len(password) >= 43  # 256 bits
    assert not set(password) & set(" \"'#\\$`\n")


def test_only_the_owner_gets_at_the_files_and_the_containers_can_read_them(script: Path) -> None:
    make(script, "acme")
    folder = script.parent / "secrets"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"secrets": 0o700, "redis_password": 0o444, "api_keys": 0o644}


@pytest.mark.parametrize(
    "organization",
    ["", "a b", "a:b", "../a", "a/b", "ä", "$(id)", "a\nb", "x" * 65],
)
def test_a_name_that_no_model_id_can_hold_makes_nothing(script: Path, organization: str) -> None:
    done = run(script, organization)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")
    assert list(script.parent.iterdir()) == [script]


def test_the_longest_name_is_taken(script: Path) -> None:
    key = make(script, "x" * 64)
    keyring = Keyring.load(script.parent / "secrets" / "api_keys")
    assert keyring.organization(key) == "x" * 64


def test_no_name_says_how_to_give_one(script: Path) -> None:
    done = run(script)
    assert done.returncode == 2
    assert "ORGANIZATION" in done.stderr
