"""The vocabulary spread over two real processes, against one process that has it all, in fp64.

On CPU over gloo, and on two GPUs, where there are as many, over NCCL.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cce_core import LossConfig, linear_cross_entropy
from tests.cce_core.problems import error
from tests.cce_core.vocabulary_ranks import IMPLEMENTATIONS, SPLIT, answer, questions

ROOT = Path(__file__).parents[2]
RANKS = range(len(SPLIT))
ROUNDING = 8e-3  # of bf16 gradients
STATISTICS = ("loss", "lse", "label_logit", "row_max", "entropy")
cases = pytest.mark.parametrize("kind", IMPLEMENTATIONS)
each_question = pytest.mark.parametrize("name", questions("cpu"))


TWO_GPUS = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(torch.cuda.device_count() < len(SPLIT), reason="needs two GPUs"),
    ],
)


@pytest.fixture(scope="module", params=["cpu", TWO_GPUS])
def results(request, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("vocabulary_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), folder / "store", folder, request.param],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in RANKS
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in RANKS]


def truth(name: str) -> dict[str, torch.Tensor]:
    question = questions("cpu")[name]
    question.case = question.case.leaves(torch.float64)
    config = LossConfig(implementation="reference")
    return answer(question, question.case.c, question.case.bias, config)


@cases
@each_question
def test_every_rank_has_the_loss_and_the_statistics_of_the_whole_vocabulary(
    results, name, kind
) -> None:
    expected = truth(name)
    for rank in RANKS:
        got = results[rank]["sharded"][f"{name}, {kind}"]
        for key in STATISTICS:
            torch.testing.assert_close(
                got[key].double(), expected[key], rtol=1e-4, atol=1e-4, msg=f"{rank} {key}"
            )
        assert torch.equal(got["correct"], expected["correct"])
        assert torch.equal(got["count"], expected["count"])
        assert torch.equal(got["loss"], results[0]["sharded"][f"{name}, {kind}"]["loss"])


@cases
@each_question
def test_each_rank_has_the_gradient_of_its_rows_and_that_of_the_hidden_states(
    results, name, kind
) -> None:
    expected = truth(name)
    found = [results[rank]["sharded"][f"{name}, {kind}"] for rank in RANKS]
    for got in found:
        assert torch.equal(got["de"], found[0]["de"])
        assert error(got["de"], expected["de"]) < ROUNDING
    for key in found[0].keys() & {"dc", "dbias"}:
        assert [len(got[key]) for got in found] == list(SPLIT)
        assert error(torch.cat([got[key] for got in found]), expected[key]) < ROUNDING


@pytest.mark.parametrize("transform", ["compile", "func"])
def test_torch_compile_and_function_transforms_see_the_sums_over_the_ranks(
    results, transform
) -> None:
    case = questions("cpu")["plain"].case.leaves(torch.float64)
    expected = linear_cross_entropy(case.e, case.c, case.targets, softcap=4.0)
    expected.backward()
    found = [results[rank]["transformed"][transform] for rank in RANKS]
    for got in found:
        assert error(got["loss"], expected.detach()) < 1e-4
        assert error(got["de"], case.e.grad) < ROUNDING
    assert error(torch.cat([got["dc"] for got in found]), case.c.grad) < ROUNDING


def test_a_sharded_dtensor_is_a_shard_of_the_vocabulary(results) -> None:
    expected = truth("everything")
    found = [results[rank]["placed"]["shard"] for rank in RANKS]
    assert error(torch.cat([got["dc"] for got in found]), expected["dc"]) < ROUNDING
    assert error(torch.cat([got["dbias"] for got in found]), expected["dbias"]) < ROUNDING
    for got in found:
        assert error(got["loss"], expected["loss"]) < 1e-4
        assert error(got["de"], expected["de"]) < ROUNDING


def test_a_replicated_dtensor_is_a_head_like_any_other(results) -> None:
    expected = truth("everything")
    for rank in RANKS:
        got = results[rank]["placed"]["replicate"]
        assert error(got["loss"], expected["loss"]) < 1e-4
        for key in ("de", "dc", "dbias"):
            assert error(got[key], expected[key]) < ROUNDING


@pytest.mark.parametrize("results", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("columns", "c must be replicated, or sharded by its rows, Shard(0), over one dimension"),
        ("columns", "got placements (Shard(dim=1),)"),
        ("twice", "vocab_shard is for an ordinary c; got it with a DTensor"),
        ("bias", "bias must be placed as c is; got placements (Replicate(),) and (Shard(dim=0),)"),
        ("weights", "weights must be replicated over its mesh; got placements (Shard(dim=0),)"),
        ("too long", "begins at row 1 of them; got a c of 45 rows"),
        ("label", "targets must be in [0, 45) or ignore_index -100; got 45 at position [2, 6]"),
        ("fewer rows than ranks", "at least one row of the head; got [1, 0]"),
        ("a rank without rows", "at least one row of the head; got [0, 1]"),
        ("no such row", "first must be in [0, 5), the head's rows; got 5"),
    ],
)
def test_every_rank_hears_what_was_got_and_what_is_expected(results, name, said) -> None:
    for rank in RANKS:
        assert said in results[rank]["errors"][name]


@pytest.mark.parametrize("results", ["cpu"], indirect=True)
def test_shards_as_torch_chunks_them(results) -> None:
    assert [results[rank]["chunked"] for rank in RANKS] == [(0, 5), (3, 5)]
