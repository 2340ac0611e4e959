from collections.abc import Iterator
from pathlib import Path

import pytest

from service.stack import Stack, StackOptions
from tests.support.stack import TINY, make_tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the allow-list with one tiny model."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / TINY)
    return folder


@pytest.fixture(scope="session")
def stack(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack, with the real workers and trainer."""
    data = tmp_path_factory.mktemp("data")
    with Stack(StackOptions(data, model_folders=(models,))) as stack:
        yield stack
