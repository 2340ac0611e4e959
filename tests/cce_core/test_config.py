"""The options of the loss, and the words of cut_cross_entropy's callers."""

import dataclasses
import enum

import numpy as np
import pytest

from cce_core import LinearCrossEntropy, LossConfig
from cce_core.config import REPLACEMENTS


def test_presets_resolve_the_filter() -> None:
    assert LossConfig().eps == 2.0**-12
    assert LossConfig(filter_eps=0.5).eps == 0.5
    assert LossConfig(filter_eps=None).eps is None
    assert LossConfig(preset="exact").eps is None


def test_options_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossConfig().preset = "exact"


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_names_of_cut_cross_entropy_are_answered_with_ours(name) -> None:
    with pytest.raises(ValueError, match="cut_cross_entropy's name: pass config=") as caught:
        LossConfig(implementation=name)
    suggestion = str(caught.value).rpartition("config=")[2].removesuffix(" instead)")
    assert isinstance(eval(suggestion, {"LossConfig": LossConfig}), LossConfig)  # noqa: S307  ours


def test_a_member_of_cut_cross_entropys_enum_is_answered_too() -> None:
    theirs = enum.IntEnum("LinearCrossEntropyImpl", "CCE TORCH_COMPILE")
    with pytest.raises(ValueError, match=r"pass config=LossConfig\(implementation='blocked'\)"):
        LinearCrossEntropy(impl=theirs.TORCH_COMPILE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "cuda"}, "must be one of 'auto', 'reference', .*; got 'cuda'$"),
        ({"preset": "fast"}, "preset must be one of 'default', 'exact'; got 'fast'"),
        (
            {"filter_eps": "high"},
            r"filter_eps must be 'auto', None or in .*; got 'high' \(.* pass 'auto' instead\)",
        ),
        ({"filter_eps": -0.1}, "got -0.1"),
        ({"preset": "exact", "filter_eps": 0.1}, "preset='exact' filters nothing"),
        ({"scratch_bytes": 0}, "scratch_bytes must be positive or None; got 0"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scratch_bytes": 64e6}, "scratch_bytes must be an int or None; got 64000000.0"),
        ({"scratch_bytes": "1"}, "scratch_bytes must be an int or None; got '1'"),
        ({"deterministic": "no"}, "deterministic must be True or False; got 'no'"),
    ],
)
def test_a_wrong_kind_is_told_by_its_name(options, message) -> None:
    """They reached torch, which answered with the schema of an operator."""
    with pytest.raises(TypeError, match=message):
        LossConfig(**options)


def test_a_threshold_may_be_any_real_number() -> None:
    assert LossConfig(filter_eps=np.float32(0.25)).eps == 0.25
