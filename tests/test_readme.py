"""The README is true: its tables are the code's, its examples are taken, its links lead there."""

import ast
import json
import re
import subprocess
from pathlib import Path

import click
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.app import create_app
from service.cli import main
from service.comparison_request import ComparisonCreate
from service.contract.settings import Settings
from service.contract.spec import TrainingOptions
from service.deps import open_services
from service.job_request import JobCreate
from service.metrics import ServiceCollector
from service.regression import MARGINS, Margin
from service.schemas import Job
from service.settings import ServiceSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGES = ("cce_core", "service", "worker")
PAGES = [ROOT / "README.md", ROOT / "cce_core" / "README.md"]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_cells(title: str) -> list[str]:
    """What stands in backticks in the first column of a section's first table."""
    rows = re.findall(r"^\|(.*?)\|", section(title), re.MULTILINE)
    return [cell for row in rows for cell in re.findall(r"`([^`]+)`", row)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The shell lines that call a program, as arguments."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    called = [line.split() for line in lines if line.split()[:1] == [program]]
    assert called, f"the README never calls {program}"
    return [arguments[1:] for arguments in called]


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(ServiceSettings())


def test_the_endpoints_are_all_there_is(app: FastAPI) -> None:
    served = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert set(first_cells("Endpoints")) == served


def test_the_options_are_all_there_is_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section("Job options"), re.MULTILINE)
    assert [name for name, _ in rows] == list(TrainingOptions.model_fields)
    defaults = TrainingOptions().model_dump(mode="json")
    for name, cell in rows:
        shown = re.search(r"`([^`]+)`", cell)
        assert shown, name
        assert json.loads(shown[1]) == defaults[name], name


def test_the_reported_fields_exist() -> None:
    fields = section("What a job reports").split("| field |", 1)[1].split("\n\n", 1)[0]
    shown = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|(.*?)\|", fields, re.MULTILINE))))
    assert shown
    assert shown <= set(Job.model_fields)


def test_the_metrics_are_all_there_are(settings: Settings) -> None:
    with open_services(ServiceSettings(**settings.model_dump())) as services:
        told = {family.name for family in ServiceCollector(services).collect()}
    assert set(first_cells("Metrics")) == told


def test_every_created_job_is_accepted() -> None:
    curl = next(block for block in blocks("sh") if "fine_tuning/jobs -H" in block)
    JobCreate.model_validate_json(re.search(r"-d '(\{.*?\})'", curl, re.DOTALL)[1])
    (python,) = [block for block in blocks("python") if "fine_tuning.jobs.create" in block]
    call = next(
        node
        for node in ast.walk(ast.parse(python))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("jobs.create")
    )
    values = {word.arg: word.value for word in call.keywords}
    extra = ast.literal_eval(values.pop("extra_body"))
    values.pop("training_file")
    fixed = {name: ast.literal_eval(value) for name, value in values.items()}
    JobCreate.model_validate({**fixed, "training_file": "file-1", **extra})


def test_the_comparison_is_accepted() -> None:
    curl = next(block for block in blocks("sh") if "fine_tuning/comparisons -H" in block)
    ComparisonCreate.model_validate_json(re.search(r"-d '(\{.*?\})'", curl, re.DOTALL)[1])


def test_the_margins_are_those_of_the_gate() -> None:
    rows = re.findall(
        r"^\| (`.*?) \| (higher|lower) \| (.*?) \|$", section("Compare"), re.MULTILINE
    )
    stated = {}
    for names, worse, text in rows:
        share, fixed = re.fullmatch(r"(?:(\d+) %)?(?: \+ )?(.+)?", text).groups()
        absolute = 2**20 if fixed == "1 MiB" else float(fixed or 0)
        margin = Margin(worse, relative=int(share or 0) / 100, absolute=absolute)
        stated |= dict.fromkeys(re.findall(r"`(\w+)`", names), margin)
    assert stated == MARGINS


def test_the_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in commands(".venv/bin/headroom"):
        name, *rest = arguments
        command = main.commands[name]
        with click.Context(main, info_name="headroom") as parent:
            # Files of the examples need not be here.
            for parameter in command.params:
                if isinstance(parameter.type, click.Path):
                    monkeypatch.setattr(parameter.type, "exists", False)
            assert command.make_context(name, rest, parent=parent).params


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {arguments[0] for arguments in commands("make")}
    assert targets >= {"demo", "test"}
    assert targets <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


def test_the_help_of_make_is_a_line_a_target() -> None:
    """What is said of a target may have colons."""
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for line in (ROOT / "Makefile").read_text().splitlines():
        if target := re.match(r"([a-z]+):.*## +(.*)", line):
            assert f"{target[1]:<7}{target[2]}" in told.stdout.splitlines()


def test_the_file_map_is_the_tree() -> None:
    """Every package, and the folders that hold no code of the product."""
    code = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    folders = {f"{folder.relative_to(ROOT)}/" for folder in code}
    shown = {cell for cell in first_cells("File map") if cell.endswith("/")}
    assert shown == folders | {"constraints/", "docker/", "tests/"}
    assert all((ROOT / folder).is_dir() for folder in shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_route_is_documented(app: FastAPI) -> None:
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert [
        route.path for route in routes if route.include_in_schema and not route.description
    ] == []
