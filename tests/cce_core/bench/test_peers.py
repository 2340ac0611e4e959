"""Peers compute the benchmark's loss, and those that cannot say why."""

import pytest
import torch

from cce_core.bench import data, peers
from cce_core.bench.measure import reference, relative_error


def case(softcap: float | None = None) -> data.Case:
    shape = data.Shape("tiny", 96, 16, softcap)
    return data.make(shape, "flat", 32, torch.device("cpu"), ignored=0.2)


@pytest.mark.parametrize("name", ["eager", peers.TORCH])
def test_a_peer_agrees_with_fp32(name) -> None:
    posed = case()
    (peer,), reasons = peers.implementations(posed, [name])
    assert not reasons
    truth = reference(posed)
    loss, de, dc = peer.both()
    assert loss.item() == pytest.approx(truth.loss, rel=1e-2)
    assert relative_error(de, truth.e) < 2e-2
    assert relative_error(dc, truth.c) < 2e-2
    assert peer.forward().item() == pytest.approx(loss.item(), rel=1e-2)


def test_a_peer_that_cannot_serve_says_why(monkeypatch) -> None:
    monkeypatch.setitem(peers.MODULES, "liger-kernel", "no_such_module")
    found, reasons = peers.implementations(case(softcap=30.0), ["liger-kernel", peers.TORCH])
    assert not found
    assert reasons == ["liger-kernel is not installed", f"{peers.TORCH} has no softcap"]


def test_an_installed_quack_refuses_a_softcap(monkeypatch) -> None:
    monkeypatch.setitem(peers.MODULES, peers.QUACK, "torch")
    assert peers.refuses(case(softcap=30.0), peers.QUACK) == f"{peers.QUACK} has no softcap"
    assert peers.refuses(case(), peers.QUACK) is None


def test_a_torch_without_its_own_is_named(monkeypatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy")
    reason = peers.refuses(case(), peers.TORCH)
    assert reason == f"torch {torch.__version__} has no linear_cross_entropy"
