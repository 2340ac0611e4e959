"""The rules of tests/support/strict.py, in a pytest of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
IN_A_TEST = "import pytest\ndef test_it(): pytest.skip('no luck')"
IN_A_FIXTURE = (
    "import pytest\n@pytest.fixture\ndef it(): pytest.skip('no luck')\ndef test_it(it): ..."
)
BY_MARK = "import pytest\n@pytest.mark.skipif(True, reason='no luck')\ndef test_it(): ..."
OF_A_MODULE = "import pytest\npytest.skip('no luck', allow_module_level=True)\ndef test_it(): ..."
GPU = "import pytest\n@pytest.mark.gpu\ndef test_it(): pytest.skip('no luck')"
XFAIL = "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False"


def run(folder: Path, test: str, *, strict: bool) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs CUDA")
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HEADROOM_TEST_STRICT": str(int(strict)),
        "CUDA_VISIBLE_DEVICES": "",
    }
    plugins = ["-p", "tests.support.strict", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "test_it.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("test", [IN_A_TEST, IN_A_FIXTURE, BY_MARK, OF_A_MODULE])
def test_a_skip_fails_under_the_flag(tmp_path: Path, test: str) -> None:
    result = run(tmp_path, test, strict=True)
    assert result.returncode in {1, 2}
    assert "forbids this skip" in result.stdout
    assert "no luck" in result.stdout


@pytest.mark.parametrize("test", [IN_A_TEST, BY_MARK])
def test_a_skip_is_a_skip_without_the_flag(tmp_path: Path, test: str) -> None:
    result = run(tmp_path, test, strict=False)
    assert result.returncode == 0
    assert "1 skipped" in result.stdout


def test_a_gpu_test_may_skip_and_says_why(tmp_path: Path) -> None:
    result = run(tmp_path, GPU, strict=True)
    assert result.returncode == 0
    assert "1 skipped" in result.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert run(tmp_path, XFAIL, strict=True).returncode == 0


def test_torch_is_not_imported_for_tests_that_need_none(tmp_path: Path) -> None:
    test = "import sys\ndef test_it(): assert 'torch' not in sys.modules"
    assert run(tmp_path, test, strict=True).returncode == 0
