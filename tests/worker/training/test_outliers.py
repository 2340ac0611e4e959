"""Which rows have the highest loss, by what transformers itself makes of each row alone."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tests.worker.training.support import Outcome, chats
from worker.events import CheckpointWritten, Message
from worker.training import outliers
from worker.training.examples import chat_example

RunJob = Callable[..., Outcome]
# No weight moves by it: a row's loss is the same whenever it is trained on.
STILL = 1e-12
TWO_EPOCHS = {"n_epochs": 2, "batch_size": 2}


def listed(outcome: Outcome) -> list[dict[str, float]]:
    with outcome.result.outliers_csv.open() as table:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(table)]


@pytest.mark.parametrize("packing", [False, True])
def test_each_epoch_names_the_rows_with_the_highest_loss(
    run: RunJob,
    tiny: Path,
    tokenizer: PreTrainedTokenizerBase,
    packing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outliers, "MOST", 3)
    rows = chats(8)
    examples = [chat_example(row, tokenizer) for row in rows]
    own, losses = AutoModelForCausalLM.from_pretrained(tiny), []
    for example in examples:
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        with torch.no_grad():
            losses.append(float(own(input_ids=ids, labels=labels).loss))
    highest = sorted(range(len(rows)), key=lambda at: -losses[at])[:3]

    options = {"learning_rate": STILL, "packing": packing, "max_seq_length": 128}
    outcome = run(rows, hyperparameters=TWO_EPOCHS, **options)
    for epoch in (1, 2):
        found = [row for row in listed(outcome) if row["epoch"] == epoch]
        assert [row["line"] for row in found] == [at + 1 for at in highest]
        assert [row["loss"] for row in found] == pytest.approx([losses[at] for at in highest])
        assert [row["tokens"] for row in found] == [examples[at].supervised for at in highest]
    told = [message for message in outcome.of(Message) if "highest loss" in message.message]
    assert [message.data["epoch"] for message in told] == [1, 2]
    assert [row["line"] for row in told[0].data["rows"]] == [at + 1 for at in highest]
    assert told[0].message.startswith("Epoch 1: ")
    assert f"line {highest[0] + 1} ({losses[highest[0]]:.3f})" in told[0].message


def test_a_resumed_job_knows_the_rows_before_its_checkpoint(run: RunJob) -> None:
    options = {"checkpoint_every": 2, "hyperparameters": TWO_EPOCHS}  # four steps an epoch
    whole = run(chats(8), **options)
    middle = whole.of(CheckpointWritten)[0]
    assert middle.step == 2
    resumed = run(chats(8), **options, resume_from=middle.path)
    assert listed(resumed) == listed(whole)
    assert len(listed(whole)) == 2 * 8
