"""Rows as tensors; above all, that examples in one row are as they are alone."""

import random

import pytest
import torch

from cce_core import IGNORE_INDEX, LossConfig
from cce_core.models import split
from tests.worker.training.support import FAMILIES, make_model
from worker.training.batches import Batch, collate, order, pack
from worker.training.examples import Example
from worker.training.model import hidden_states

PAD = 96
SHORT = Example([5, 6, 7], [IGNORE_INDEX, 6, 7])
LONG = Example([1, 2, 3, 4, 8], [1, IGNORE_INDEX, 3, 4, 8])


def examples(*lengths: int) -> list[Example]:
    """Random tokens, of which a few in the middle are not learned."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        ids = torch.randint(96, (length,), generator=generator).tolist()
        labels = [
            IGNORE_INDEX if length // 3 <= at < length // 2 else t for at, t in enumerate(ids)
        ]
        found.append(Example(ids, labels))
    return found


def loss_and_gradients(
    model: torch.nn.Module, batches: list[Batch]
) -> tuple[float, dict[str, torch.Tensor]]:
    parts, config, total = split(model), LossConfig(implementation="blocked"), 0.0
    model.zero_grad()
    for batch in batches:
        hidden = hidden_states(parts, batch)
        loss = parts.head.loss(hidden, batch.labels, config, shift=1, reduction="sum").loss
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_rows_are_padded_to_the_longest() -> None:
    batch = collate([[SHORT], [LONG]], PAD, packed=False)
    assert batch.input_ids.tolist() == [[5, 6, 7, PAD, PAD], [1, 2, 3, 4, 8]]
    ignored = IGNORE_INDEX
    assert batch.labels.tolist() == [[ignored, 6, 7, ignored, ignored], [ignored, ignored, 3, 4, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.position_ids[1].tolist() == [0, 1, 2, 3, 4]
    assert {batch.input_ids.dtype, batch.labels.dtype, batch.position_ids.dtype} == {torch.int64}


def test_a_packed_row_begins_anew_with_each_example() -> None:
    batch = collate([[SHORT, LONG], [LONG]], PAD, packed=True)
    assert batch.input_ids[0].tolist() == SHORT.input_ids + LONG.input_ids
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.position_ids[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]  # the padding is apart too
    assert batch.attention_mask is None


def test_nothing_predicts_across_a_border() -> None:
    batch = collate([[SHORT, LONG]], PAD, packed=True)
    assert LONG.labels[0] != IGNORE_INDEX
    assert int(batch.labels[0, len(SHORT.input_ids)]) == IGNORE_INDEX
    assert batch.supervised == SHORT.supervised + LONG.supervised


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2"])
def test_packing_changes_neither_the_loss_nor_a_gradient(family: str) -> None:
    model = make_model(family)
    rows = examples(9, 5, 7, 3, 11)
    alone = [collate([[example]], PAD, packed=False) for example in rows]
    expected, gradients = loss_and_gradients(model, alone)
    packed = collate(pack(rows, 24), PAD, packed=True)
    assert packed.input_ids.shape[0] == 2
    found, same = loss_and_gradients(model, [packed])
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_padding_changes_neither_the_loss_nor_a_gradient(family: str) -> None:
    model = make_model(family)
    rows = examples(9, 5, 7)
    alone = [collate([[example]], PAD, packed=False) for example in rows]
    expected, gradients = loss_and_gradients(model, alone)
    padded = collate([[example] for example in rows], PAD, packed=False)
    found, same = loss_and_gradients(model, [padded])
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_packing_keeps_every_example_whole_and_no_row_too_long() -> None:
    lengths = torch.randint(2, 60, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = pack(found := examples(*lengths), 64)
    assert sorted(map(id, found)) == sorted(id(example) for row in rows for example in row)
    sizes = [sum(len(example.input_ids) for example in row) for row in rows]
    assert max(sizes) <= 64
    assert sum(sizes) > 0.9 * 64 * len(rows)  # little is left to padding
    assert pack(found, 64) == rows


def test_packing_stays_quick_when_no_row_fills() -> None:
    """Rows are closed unfilled rather than looked through again for each example."""
    rows = pack(examples(*[40] * 5000), 64)
    assert len(rows) == 5000


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = order(100, seed=7, epoch=2)
    torch.manual_seed(2)
    random.seed(2)
    assert order(100, seed=7, epoch=2) == expected
    state = torch.get_rng_state()
    order(100, seed=7, epoch=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_epoch_sees_every_example_in_another_order() -> None:
    orders = [order(50, seed, epoch) for seed in (0, 1, 2**31 - 1) for epoch in range(4)]
    assert all(sorted(each) == list(range(50)) for each in orders)
    assert len({tuple(each) for each in orders}) == len(orders)


def test_a_batch_moves_whole() -> None:
    for packed in (False, True):
        moved = collate([[SHORT, LONG]], PAD, packed=packed).to(torch.device("meta"))
        tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert len(tensors) == (4 if packed else 5)
