"""The house keeps its rooms: what imports what, and habits that no linter knows."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cce_core", "service", "worker")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST = 500
# Who hands its environment on to a child, with more in it; what is read is read by the settings.
ENVIRONMENT = {"service/part.py", "worker/child.py"}
# Each has its reason beside it: a job must not hang, and a stack that fails to start is taken down.
BROAD = {"service/stack.py", "worker/runner.py"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name(path))


def uses(module: ast.Module, attribute: str) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == attribute for node in ast.walk(module)
    )


def broad_handlers(module: ast.Module) -> Iterator[ast.ExceptHandler]:
    for node in ast.walk(module):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if caught in {"Exception", "BaseException"}:
                yield node


def causal_lms(module: ast.Module) -> Iterator[ast.Call]:
    """The calls that make a model as transformers sees fit, where they do not say otherwise."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("AutoModelForCausalLM"):
            yield node


def test_the_import_contracts_are_kept() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module", ["service.app", "service.cli", "worker.app", "service.contract.store"]
)
def test_torch_stays_out_of_the_service_and_the_supervisor(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "triton", "transformers", "peft", "cce_core"} & set(done.stdout.split())


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_its_job_and_is_short(path: Path) -> None:
    assert ast.get_docstring(tree(path))
    assert len(path.read_text().splitlines()) <= LONGEST


def test_package_files_outside_the_loss_hold_a_docstring_only() -> None:
    files = [
        path for path in MODULES if path.name == "__init__.py" and "cce_core" not in name(path)
    ]
    assert files
    assert [name(path) for path in files if len(tree(path).body) != 1] == []


def test_the_environment_is_read_by_the_settings_alone() -> None:
    readers = {
        name(path) for path in MODULES if uses(tree(path), "environ") or uses(tree(path), "getenv")
    }
    assert readers == ENVIRONMENT


def test_everything_is_caught_where_that_is_the_job_and_nowhere_else() -> None:
    catching = {name(path) for path in MODULES if any(broad_handlers(tree(path)))}
    assert catching == BROAD


def test_no_model_is_made_with_the_attention_that_transformers_would_choose() -> None:
    made = [(name(path), call) for path in MODULES for call in causal_lms(tree(path))]
    assert len({path for path, _ in made}) > 1
    for path, call in made:
        told = {each.arg: ast.unparse(each.value) for each in call.keywords}
        assert told.get("attn_implementation") == "attention(config)", path
