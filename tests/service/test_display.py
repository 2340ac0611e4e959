from io import StringIO

from rich.console import Console

from service.contract.memory import StepPhases
from service.display import ledger_table
from tests.service.support import LEDGER


def printed(*arguments: object) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(ledger_table(*arguments))
    return console.file.getvalue()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_a_figure_of_the_ledger_never_stands_alone() -> None:
    text = printed(LEDGER, None)
    assert "out of memory at 9.0 GiB" in row(text, "full logits")
    assert "7 modelled" in row(text, "full logits")
    assert "60.0 MiB measured" in row(text, "CCE")
    assert "99 modelled" in row(text, "CCE")


def test_where_no_micro_batch_is_modelled_there_is_no_column_for_it() -> None:
    losses = [e.model_copy(update={"largest_micro_batch": None}) for e in LEDGER.losses]
    assert "largest" not in printed(LEDGER.model_copy(update={"losses": losses}), None)


def test_the_phases_of_a_step_are_shares_of_its_time() -> None:
    phases = StepPhases(steps=3, data=0.1, forward=0.4, loss=0.1, backward=1.2, optimizer=0.2)
    expected = "A step takes 2 s: data 5%, forward 20%, loss 5%, backward 60%, optimizer 10%."
    assert expected in printed(LEDGER, phases)
