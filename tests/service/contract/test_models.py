"""Model records, and the allow-list of base models."""

from pathlib import Path

import pytest
from redis import Redis

from service.contract import index
from service.contract.errors import NotFound
from service.contract.models import BaseModels, ModelFile, Models, tuned_model_id
from service.contract.settings import Settings
from tests.service.contract.support import ORG, model_record


@pytest.fixture
def models(redis: Redis) -> Models:
    return Models(redis)


def test_a_model_comes_back_as_it_went_in(models: Models) -> None:
    model = model_record("ft:base:org::1", step=4, files=[ModelFile(name="a/b.json", bytes=2)])
    models.add(model)
    assert models.get(ORG, model.id) == model


def test_an_organization_sees_its_own(models: Models) -> None:
    models.add(model_record("ft:x", org="org-2"))
    assert models.all(ORG) == []
    for missing in ("ft:x", "ft:y"):
        with pytest.raises(NotFound) as caught:
            models.get(ORG, missing)
        assert caught.value.code == "model_not_found"


def test_all_models_are_listed_newest_first(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_CHUNK", 2)
    for second in (3, 1, 5, 4, 2):
        models.add(model_record(f"ft:{second}", created_at=second))
    assert [model.created_at for model in models.all(ORG)] == [5, 4, 3, 2, 1]


def test_a_removed_model_leaves_nothing(models: Models, redis: Redis) -> None:
    model = model_record("ft:x")
    models.add(model)
    models.remove(model)
    assert redis.keys() == []


def test_a_model_is_named_for_its_first_base() -> None:
    first = tuned_model_id("Qwen/Qwen2", "org", "mine", "ftjob-1")
    assert first == "ft:Qwen/Qwen2:org:mine:1"
    assert tuned_model_id(first, "org", None, "ftjob-2", 7) == "ft:Qwen/Qwen2:org::2:ckpt-step-7"


# The allow-list


@pytest.fixture
def base_models(tmp_path: Path) -> BaseModels:
    for name in ("models/b", "models/a", "secret/c"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "models" / "no-model").mkdir()
    return BaseModels(
        Settings(model_folders=[tmp_path / "models", tmp_path / "absent"], hub_models=["Qwen/*"])
    )


def test_the_folders_that_hold_a_model_are_allowed(base_models: BaseModels, tmp_path: Path) -> None:
    assert base_models.names() == ["a", "b"]
    assert base_models.source("a") == str(tmp_path / "models" / "a")
    assert base_models.source("Qwen/Qwen2-0.5B") == "Qwen/Qwen2-0.5B"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "no-model", "../secret/c", "a/../../secret/c", "/etc", "meta/Llama",
             "Qwen/../../secret/c", "Qwen/", "Qwen/a/b", "Qwen/..", "Qwen/.hidden", "Qwen/a\n"],
)  # fmt: skip
def test_nothing_else_is(base_models: BaseModels, name: str) -> None:
    assert base_models.source(name) is None


def test_no_pattern_leads_into_the_file_system(tmp_path: Path) -> None:
    anything = BaseModels(Settings(hub_models=["*"]))
    assert anything.source("org/name") == "org/name"
    for name in (str(tmp_path), "../x", "./x", "~/x", "a/../b"):
        assert anything.source(name) is None
