import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.support import CHANGES, Composition, read_composition

_COMMANDS = (["docker", "compose"], ["docker-compose"])


@pytest.fixture(scope="session")
def compose_commands() -> list[list[str]]:
    """Docker Compose as this machine has it: the plugin, the program of its own, or both."""
    found = [command for command in _COMMANDS if shutil.which(command[0]) and _answers(command)]
    if not found:
        pytest.skip("Docker Compose is not installed")
    return found


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def composition(
    request: pytest.FixtureRequest,
    compose_commands: list[list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Composition:
    """The composition of one profile, with every setting at its default."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    return read_composition(compose_commands[0], folder, request.param)


@pytest.fixture(scope="session")
def changed(
    composition: Composition,
    compose_commands: list[list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Composition:
    """The same profile, with every setting that compose.yaml takes from its user."""
    folder: Path = tmp_path_factory.mktemp("changed")
    return read_composition(compose_commands[0], folder, composition.profile, **CHANGES)


def _answers(command: list[str]) -> bool:
    done = subprocess.run([*command, "version"], capture_output=True, check=False)
    return done.returncode == 0
