"""The job commands, each against a real server; the worker's part is played on the store."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from redis import Redis

from service import job_commands
from service.client import ApiError, Client
from service.contract.files import Files
from service.contract.job import Event, JobError, JobStatus
from service.contract.models import Models
from service.contract.spec import ComparisonOptions
from service.contract.storage import Storage
from service.contract.store import Store
from tests.service.contract.support import EVENT, create
from tests.service.support import CHAT, start, tuned_model
from tests.support.measured import LEDGER
from tests.support.stack import TINY

Run = Callable[..., Result]
TUNED = f"ft:{TINY}:org-local::1"


@pytest.fixture
def run(url: str) -> Run:
    """Run a command on the server; what it raises, the group above it would tell."""

    def run(command: click.Command, *arguments: object) -> Result:
        given = ["--url", url, *map(str, arguments)]
        return CliRunner().invoke(command, given, catch_exceptions=False)

    return run


def test_every_option_arrives(
    run: Run, store: Store, api: Client, chat: Path, tmp_path: Path
) -> None:
    fields = ["--suffix", "mine", "--seed", 3, "--n-epochs", 2, "--batch-size", 4]
    further = ["packing=true", "learning_rate=1e-4", "dtype=float32", 'metadata={"a": "b=c"}']
    options = [part for option in further for part in ("--option", option)]
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_bytes(CHAT * 2)
    files = ["--training-file", chat, "--validation-file", held_out]
    done = run(job_commands.submit, "--model", TINY, *files, *fields, *options)
    assert done.exit_code == 0, done.output
    [job] = api.jobs(limit=5)
    assert done.output == f"Job {job.id}\n"
    spec = store.get(job.id).spec
    assert (spec.model, spec.suffix, spec.seed, spec.metadata) == (TINY, "mine", 3, {"a": "b=c"})
    assert spec.training_file != spec.validation_file is not None
    assert (spec.hyperparameters.n_epochs, spec.hyperparameters.batch_size) == (2, 4)
    assert spec.hyperparameters.learning_rate_multiplier == "auto"
    assert (spec.options.packing, spec.options.learning_rate) == (True, 1e-4)
    assert spec.options.dtype == "float32"


def test_an_option_without_a_value_is_told_before_anything_is_sent(
    run: Run, api: Client, chat: Path
) -> None:
    done = run(job_commands.submit, "--model", TINY, "--training-file", chat, "--option", "packing")
    assert done.exit_code == 2
    assert "'packing' is not of the form NAME=JSON" in done.output
    assert api.jobs(limit=1) == []


def test_the_same_command_makes_another_job_of_the_same_file(
    run: Run, api: Client, store: Store, chat: Path
) -> None:
    for _ in range(2):
        assert run(job_commands.submit, "--model", TINY, "--training-file", chat).exit_code == 0
    files = [store.get(job.id).spec.training_file for job in api.jobs(limit=5)]
    assert len(files) == 2
    assert len(set(files)) == 1


def test_a_file_may_be_given_by_its_id(run: Run, api: Client, store: Store, chat: Path) -> None:
    file = api.upload(chat)
    options = ["--training-file", file, "--validation-file", file]
    assert run(job_commands.submit, "--model", TINY, *options).exit_code == 0
    spec = store.get(api.jobs(limit=1)[0].id).spec
    assert (spec.training_file, spec.validation_file) == (file, file)


@pytest.mark.parametrize(
    "wrong", [["--model", "gpt-4"], ["--n-epochs", "0"], ["--option", "no_such=1"]]
)
@pytest.mark.parametrize("command", [job_commands.submit, job_commands.estimate])
def test_a_refused_job_leaves_no_upload(
    run: Run, redis: Redis, chat: Path, command: click.Command, wrong: list[str]
) -> None:
    with pytest.raises(ApiError):
        run(command, "--model", TINY, "--training-file", chat, *wrong)
    assert Files(redis).page("org-local", after=None, limit=1, ascending=True).items == []


def test_a_file_that_is_not_there_is_told_before_anything_is_sent(run: Run, tmp_path: Path) -> None:
    done = run(job_commands.submit, "--model", TINY, "--training-file", tmp_path / "nothing")
    assert done.exit_code == 2
    assert "nothing" in done.output


def test_a_job_that_ends_well_is_watched_to_its_ledger_and_its_model(
    run: Run, store: Store
) -> None:
    claim = start(store, create(store, org="org-local"))
    store.update(claim, memory=LEDGER)
    result, end = {"fine_tuned_model": TUNED}, Event(message=f"The job succeeded: {TUNED}")
    store.transition(claim.job_id, JobStatus.SUCCEEDED, end, token=claim.token, **result)
    done = run(job_commands.watch, claim.job_id)
    assert done.exit_code == 0
    assert EVENT.message in done.output
    assert done.output.count(TUNED) == 1
    assert "305.0 MiB measured" in done.output
    assert done.output.endswith(f"Succeeded. Model: {TUNED}\n")


def test_a_job_that_fails_fails_the_watch_and_the_list_says_why(run: Run, store: Store) -> None:
    claim = start(store, create(store, org="org-local"))
    error = JobError(code="out_of_memory", message="It asked for 9 GB.")
    store.transition(claim.job_id, JobStatus.FAILED, EVENT, token=claim.token, error=error)
    done = run(job_commands.watch, claim.job_id)
    assert done.exit_code == 1
    assert "Failed (out_of_memory): It asked for 9 GB." in done.output
    *_, line = run(job_commands.jobs).output.splitlines()
    assert line.split() == [claim.job_id, "failed", "job", "base", "out_of_memory"]


def test_the_list_is_newest_first_and_limited(run: Run, store: Store) -> None:
    made = sorted((create(store, org="org-local") for _ in range(3)), reverse=True)
    head, _, *lines = run(job_commands.jobs, "--limit", 2).output.splitlines()
    assert head.split() == ["id", "status", "kind", "model", "result"]
    assert [line.split()[0] for line in lines] == made[:2]


def test_a_name_stands_as_it_is_whatever_a_terminal_makes_of_it(run: Run, store: Store) -> None:
    claim = start(store, create(store, org="org-local", model="[red]base"))
    tuned = {"fine_tuned_model": "ft:base:org-local:x:01a2"}
    store.transition(claim.job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token, **tuned)
    *_, line = run(job_commands.jobs).output.splitlines()
    assert line.split()[-2:] == ["[red]base", tuned["fine_tuned_model"]]


def test_the_id_of_a_new_job_is_in_one_piece_however_narrow_the_place(
    run: Run, api: Client, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    done = run(job_commands.submit, "--model", TINY, "--training-file", chat)
    assert done.output == f"Job {api.jobs(limit=1)[0].id}\n"


def test_the_list_is_whole_however_long_a_name_is(run: Run, store: Store) -> None:
    name = "[bold]" + "long-" * 30
    comparison = ComparisonOptions()
    made = create(store, org="org-local", model=name, comparison=comparison)
    *_, line = run(job_commands.jobs).output.splitlines()
    assert line.split() == [made, "validating_files", "comparison", name]


def test_a_job_is_cancelled(run: Run, store: Store) -> None:
    waiting = create(store, org="org-local")
    assert run(job_commands.cancel, waiting).output == f"{waiting}: cancelled\n"
    with pytest.raises(ApiError, match="has ended already; its status is cancelled"):
        run(job_commands.cancel, waiting)


def test_a_running_job_is_said_to_be_asked(run: Run, store: Store) -> None:
    claim = start(store, create(store, org="org-local"))
    for _ in range(2):
        said = run(job_commands.cancel, claim.job_id).output
        assert said == f"{claim.job_id}: cancellation is requested; the job ends within seconds\n"


def test_models_are_listed_and_downloaded(
    run: Run, models: Models, storage: Storage, tmp_path: Path
) -> None:
    models.add(tuned_model(storage, TUNED))
    assert run(job_commands.models).output.splitlines() == [TINY, TUNED]
    folder = tmp_path / "tuned"
    done = run(job_commands.download, TUNED, folder)
    assert done.output == f"{folder}/config.json  2 B\n"
    assert json.loads((folder / "config.json").read_text()) == {}


def test_the_server_may_come_from_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADROOM_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    with pytest.raises(ApiError, match="No answer"):
        CliRunner().invoke(job_commands.cancel, ["ftjob-1"], catch_exceptions=False)
    monkeypatch.delenv("HEADROOM_URL")
    assert CliRunner().invoke(job_commands.models, []).output == f"{TINY}\n"
