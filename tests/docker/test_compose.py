"""docker/compose.yaml: what Docker Compose makes of it, and what the containers rely on."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError

from service.contract.connection import connect
from service.contract.settings import Settings
from service.redis_server import executable
from service.settings import ServiceSettings
from tests.docker.support import CHANGES, FOLDER, SECRETS, Composition, read_composition
from worker.settings import WorkerSettings

_START_S = 20.0


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_every_compose_at_hand_takes_the_file_without_a_warning(
    compose_commands: list[list[str]], profile: str, tmp_path: Path
) -> None:
    for command in compose_commands:
        composition = read_composition(command, tmp_path, profile)
        names = {"redis", "api", f"worker-{profile}", f"validator-{profile}"}
        assert composition.services.keys() == names


# What a break-in would find


def test_every_container_is_shut_in(composition: Composition) -> None:
    for service in composition.services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


def test_nobody_is_root(composition: Composition) -> None:
    assert composition.services["redis"]["user"] == "redis"
    users = {composition.dockerfile(name).last("USER") for name in composition.ours}
    assert len(users) == 1, "the API and the workers write to one volume"
    assert int(users.pop().split(":")[0]) > 0


def test_redis_is_reached_by_the_other_parts_alone(composition: Composition) -> None:
    private = [
        name
        for name, network in composition.content["networks"].items()
        if (network or {}).get("internal")
    ]
    assert list(composition.services["redis"]["networks"]) == private
    assert composition.published("redis") == []
    for service in composition.ours.values():
        assert set(private) < set(service["networks"])


def test_the_api_alone_is_published_and_on_the_loopback_unless_told_otherwise(
    composition: Composition, changed: Composition
) -> None:
    published = {name: composition.published(name) for name in composition.services}
    assert published.pop("api") == ["127.0.0.1:8000"]
    assert set(map(tuple, published.values())) == {()}
    assert changed.published("api") == ["0.0.0.0:9000"]


def test_secrets_are_files_that_git_does_not_see(composition: Composition) -> None:
    files = {name: Path(each["file"]) for name, each in composition.content["secrets"].items()}
    assert files.keys() == {"redis_password", "api_keys"}
    for file in files.values():
        own = FOLDER / file.parent.name / file.name
        ignored = ["git", "check-ignore", "--quiet", own]
        assert subprocess.run(ignored, cwd=FOLDER, check=False).returncode == 0
    for service in composition.ours.values():
        given = {f"{SECRETS}/{secret['source']}" for secret in service["secrets"]}
        named = {v for k, v in service["environment"].items() if k.endswith("_FILE")}
        assert named == given


# What Redis keeps, and from whom


@pytest.fixture
def composed_redis(composition: Composition, tmp_path: Path) -> Iterator[int]:
    """The port of a real server, started by the command that the composition gives its own."""
    (tmp_path / "redis_password").write_text("s3cret")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        # The escape of Compose, and the places that only a container has.
        part.replace("$$", "$")
        .replace(SECRETS, str(tmp_path))
        .replace("dir /data", f"dir {tmp_path}\nport {port}")
        for part in composition.services["redis"]["command"]
    ]
    programs = {"PATH": f"{Path(executable()).parent}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(command, env=os.environ | programs, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + _START_S
            while not _listens(port):
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def test_redis_is_durable_never_forgets_and_asks_for_the_password(
    composed_redis: int, tmp_path: Path
) -> None:
    url = f"redis://127.0.0.1:{composed_redis}/0"
    with connect(Settings(redis_url=url)) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    with connect(Settings(redis_url=url, redis_password_file=tmp_path / "redis_password")) as redis:
        settings = redis.config_get("append*") | redis.config_get("maxmemory-policy")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"


# What the parts are given


def test_what_is_written_lies_on_a_volume(composition: Composition) -> None:
    declared = set(composition.content["volumes"])
    for name, service in composition.services.items():
        mounts = composition.mounts(name)
        writable = [mount.target for mount in mounts if not mount.read_only]
        assert {mount.source for mount in mounts if not mount.read_only} <= declared
        if name == "redis":
            assert writable == ["/data"]
            continue
        dockerfile = composition.dockerfile(name)
        environment = dockerfile.environment.items()
        paths = [value for key, value in environment if value.startswith("/") and key != "PATH"]
        assert len(paths) >= 2
        assert all(path.startswith(tuple(writable)) for path in paths), service["image"]
        # A volume takes its owner from the folder in the image that it is first mounted on.
        owned = next(value for _, value in dockerfile.instructions if "install -d -o" in value)
        assert set(writable) <= set(owned.split())


def test_the_api_and_the_workers_share_the_storage_and_see_the_same_models(
    changed: Composition,
) -> None:
    for name in changed.ours:
        mounts = {mount.target: mount for mount in changed.mounts(name)}
        assert mounts["/data"].source == "data"
        assert (mounts["/models"].source, mounts["/models"].read_only) == ("/srv/models", True)


def test_every_variable_is_a_setting_and_parses(
    composition: Composition, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, service in composition.ours.items():
        kind = ServiceSettings if name == "api" else WorkerSettings
        environment = composition.dockerfile(name).environment | service["environment"]
        with monkeypatch.context() as patch:
            ours = {k: v for k, v in environment.items() if k.startswith("HEADROOM_")}
            assert {k.removeprefix("HEADROOM_").lower() for k in ours} <= kind.model_fields.keys()
            for variable, value in ours.items():
                patch.setenv(variable, value)
            settings = kind()
        assert settings.redis_url == "redis://redis:6379/0"
        assert settings.storage_url == "/data/storage"
        assert settings.model_folders == [Path("/models")]
        assert settings.hub_models == []
        if isinstance(settings, WorkerSettings):
            # A reserved GPU that gets lost must not leave a job on the CPU for days.
            assert settings.device == ("cuda" if name == "worker-gpu" else "auto")


def test_hub_models_are_handed_on(changed: Composition) -> None:
    for service in changed.ours.values():
        patterns = json.loads(service["environment"]["HEADROOM_HUB_MODELS"])
        assert patterns == ["Qwen/*", "org/model"]


def test_the_readme_tells_every_variable_that_a_user_may_set() -> None:
    used = set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text()))
    readme = (FOLDER.parent / "README.md").read_text()
    section = readme.split("\n## Deploy with Docker Compose\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == used
    assert CHANGES.keys() == used


def test_an_image_is_built_once(composition: Composition) -> None:
    built = [each["image"] for each in composition.services.values() if "build" in each]
    assert sorted(set(built)) == sorted(built)
    assert set(built) == {each["image"] for each in composition.ours.values()}


# Starting, running, stopping


def test_nothing_starts_before_redis_is_well(composition: Composition) -> None:
    for service in composition.ours.values():
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_every_container_says_how_it_is(composition: Composition) -> None:
    assert "healthcheck" in composition.services["redis"]
    for name, service in composition.ours.items():
        dockerfile = composition.dockerfile(name)
        own = service.get("healthcheck", {}).get("test")
        check = own[1:] if own else dockerfile.command("HEALTHCHECK")
        if name == "api":
            assert "/readyz" in check[-1]
        else:
            queues = service.get("command") or dockerfile.command("CMD")
            assert check == ["python", "-m", "worker", "--ping", *queues]


def test_a_worker_has_the_time_to_give_its_job_back(composition: Composition) -> None:
    trainer_s = WorkerSettings.model_fields["stop_grace_s"].default
    for name in composition.workers:
        assert composition.grace_s(name) >= 2 * trainer_s + 30


def test_what_ends_is_started_again_and_leaves_no_zombies(composition: Composition) -> None:
    for service in composition.services.values():
        assert service["restart"] == "unless-stopped"
        assert service["init"]


def test_no_log_fills_the_disk(composition: Composition) -> None:
    for service in composition.services.values():
        assert service["logging"]["driver"] == "local"


def test_one_container_holds_the_gpu_and_none_of_the_cpu_profile(
    composition: Composition, changed: Composition
) -> None:
    gpu = composition.profile == "gpu"
    assert _gpus(composition) == ({"worker-gpu": ["0"]} if gpu else {})
    assert _gpus(changed) == ({"worker-gpu": ["GPU-3b9a"]} if gpu else {})


def _gpus(composition: Composition) -> dict[str, list[str]]:
    """The devices that each service reserves."""
    found = {}
    for name, service in composition.services.items():
        if "deploy" in service:
            [device] = service["deploy"]["resources"]["reservations"]["devices"]
            assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
            found[name] = device["device_ids"]
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
