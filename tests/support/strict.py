"""Skipping, made honest: `gpu` tests need CUDA, and where all is installed nothing else may skip.

With HEADROOM_TEST_STRICT=1 a skip of any test that is not marked `gpu` is a failure, be it in the
test, in a fixture or at the import of its module.
"""

import os
from collections.abc import Generator

import pytest

STRICT = os.environ.get("HEADROOM_TEST_STRICT") == "1"
_FORBIDDEN = "HEADROOM_TEST_STRICT=1 forbids this skip: "


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen: torch is slow to import
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the `gpu` tests where there is no CUDA device."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _has_cuda():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips."""
    report = yield
    if not item.get_closest_marker("gpu") and not hasattr(report, "wasxfail"):
        _forbid(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that skips as a whole."""
    report = yield
    _forbid(report)
    return report


def _forbid(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT and report.skipped:
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = _FORBIDDEN + str(reason)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
