"""The Dockerfiles, by the rules of hadolint."""

import subprocess

import pytest

from tests.docker.support import FOLDER, program


@pytest.mark.parametrize("name", ["service.Dockerfile", "worker.Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run(
        [program("hadolint"), "--no-color", FOLDER / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)
