"""The files of docker/, read the way that their programs read them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "docker"
SECRETS = "/run/secrets"
# Every variable that compose.yaml takes from its user, with what is not its default.
CHANGES = {
    "HEADROOM_BIND": "0.0.0.0",  # noqa: S104 -- what a user may ask for
    "HEADROOM_PORT": "9000",
    "HEADROOM_MODELS": "/srv/models",
    "HEADROOM_HUB_MODELS": '["Qwen/*", "org/model"]',
    "HEADROOM_GPU": "GPU-3b9a",
}
_SHARED = {"redis", "api"}


def program(name: str) -> str:
    """The program of this environment or of the machine; the test skips where there is none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@dataclass(frozen=True)
class Mount:
    """Where a container finds a volume, or a folder of the host."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Dockerfile:
    """The stage that becomes the image, as pairs of an instruction and its arguments."""

    instructions: list[tuple[str, str]]

    @classmethod
    def of(cls, service: dict[str, Any]) -> "Dockerfile":
        """The one that a service's image is built from."""
        text = (FOLDER / Path(service["build"]["dockerfile"]).name).read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        whole = "\n".join(lines).replace("\\\n", " ")
        pairs = [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]
        last = max(index for index, pair in enumerate(pairs) if pair[0] == "FROM")
        return cls([(pair[0], pair[1]) for pair in pairs[last:]])

    def last(self, instruction: str) -> str:
        """The arguments of the instruction that counts."""
        return [value for name, value in self.instructions if name == instruction][-1]

    def command(self, instruction: str) -> list[str]:
        """The command that the instruction ends with, in its exec form."""
        value = self.last(instruction)
        command: list[str] = json.loads(value[value.index("[") :])
        return command

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the stage sets."""
        values = [value for name, value in self.instructions if name == "ENV"]
        return dict(pair.split("=", 1) for value in values for pair in value.split())


@dataclass(frozen=True)
class Composition:
    """What `config` of Docker Compose prints for a profile.

    Releases 1 and 2 print the same content in two forms; the methods here know both.
    """

    content: dict[str, Any]
    profile: str

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """The services that the profile starts; release 1 prints the others too."""
        return {
            name: service
            for name, service in self.content["services"].items()
            if self.profile in service.get("profiles", [self.profile])
        }

    @property
    def ours(self) -> dict[str, dict[str, Any]]:
        """Those whose image is built here."""
        return {name: service for name, service in self.services.items() if name != "redis"}

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """Those that run jobs, or validate them."""
        return {name: service for name, service in self.services.items() if name not in _SHARED}

    def dockerfile(self, name: str) -> Dockerfile:
        """What the image of a service is built from, be it by another service."""
        image = self.services[name]["image"]
        builders = [each for each in self.services.values() if each["image"] == image]
        return Dockerfile.of(next(each for each in builders if "build" in each))

    def mounts(self, name: str) -> list[Mount]:
        """What a service mounts, temporary file systems apart."""
        return [_mount(volume) for volume in self.services[name].get("volumes", [])]

    def grace_s(self, name: str) -> float:
        """How long a service may take to stop."""
        text = self.services[name]["stop_grace_period"]
        found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
        assert found is not None, text
        return 60 * int(found[1] or 0) + int(found[2] or 0)

    def published(self, name: str) -> list[str]:
        """The ports of a service that the host has, as `address:port`."""
        return [
            port.rsplit(":", 1)[0]
            if isinstance(port, str)
            else f"{port['host_ip']}:{port['published']}"
            for port in self.services[name].get("ports", [])
        ]


def _mount(volume: str | dict[str, Any]) -> Mount:
    if isinstance(volume, str):
        source, target, mode = volume.split(":")
        return Mount(source, target, mode == "ro")
    return Mount(volume["source"], volume["target"], volume.get("read_only", False))


def read_composition(command: list[str], folder: Path, profile: str, **set_: str) -> Composition:
    """The composition as `command` reads a copy of it in `folder`, where no .env changes it."""
    shutil.copy(FOLDER / "compose.yaml", folder)
    mine = {name: value for name, value in os.environ.items() if _is_mine(name)}
    done = subprocess.run(
        [*command, "--profile", profile, "config"],
        cwd=folder,
        env=mine | set_,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # warnings
    return Composition(yaml.safe_load(done.stdout), profile)


def _is_mine(name: str) -> bool:
    """Whether a variable is no setting of Compose, or of a deployment on this machine."""
    return not name.startswith(("COMPOSE_", "HEADROOM_"))
