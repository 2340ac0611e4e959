"""Check a caller's tensors, and lay them out as rows: flattened, shifted, ignored rows marked.

A shift never slices E, which would cost a copy of it: the labels move instead, and the last rows
of each sequence, which have no label, do not count.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch._C import _functorch
from torch._subclasses.fake_tensor import is_fake

from cce_core.objective import Objective
from cce_core.parallel import VocabularyShard
from cce_core.problem import Problem, Wanted


@dataclass(frozen=True)
class Layout:
    """Where a row's numbers go: to the position of its target."""

    shape: torch.Size  # of the targets
    shift: int

    def to_rows(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Bring values at target positions to the rows that predict them, (N,)."""
        if self.shift > 0:
            values = values.reshape(values.shape or (1,))
            end = torch.full_like(values[..., : self.shift], fill)
            values = torch.cat((values[..., self.shift :], end), -1)
        return values.reshape(-1)

    def to_targets(self, rows: torch.Tensor) -> torch.Tensor:
        """Bring (N,) values of rows to target positions; zero where nothing is predicted."""
        if self.shift == 0:
            return rows.reshape(self.shape)
        values = rows.reshape(self.shape or (1,))
        start = torch.zeros_like(values[..., : self.shift])
        values = torch.cat((start, values[..., : values.shape[-1] - self.shift]), -1)
        return values.reshape(self.shape)


@dataclass(frozen=True)
class Inputs:
    """A checked call.

    Attributes:
        problem: As rows.
        layout: The way back.
        weights: (N,) or None.
        poison: (N,) bool, rows whose target is out of range, or None where the host has checked.
    """

    problem: Problem
    layout: Layout
    weights: torch.Tensor | None
    poison: torch.Tensor | None


def check(
    e: torch.Tensor,
    c: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    weights: torch.Tensor | None,
    objective: Objective,
    entropy: bool,
    shard: VocabularyShard | None = None,
) -> Inputs:
    """Check what `linear_cross_entropy` was given, and lay it out.

    Raises:
        TypeError: A dtype is not what is expected.
        ValueError: A shape, device or target is not what is expected.
    """
    _check_tensors(e=e, c=c, targets=targets, bias=bias, weights=weights)
    e, c = _autocast(e, c)
    _check_dtypes(e, c, targets, bias, weights)
    _check_shapes(e, c, targets, bias, weights)
    if shard is not None and shard.first + len(c) > shard.total:
        raise ValueError(
            f"vocab_shard is of {shard.total} rows and c begins at row {shard.first} of them; "
            f"got a c of {len(c)} rows"
        )
    length = targets.shape[-1] if targets.ndim > 0 else 1
    layout = Layout(targets.shape, min(int(objective.shift), length))
    vocabulary = len(c) if shard is None else shard.total
    labels = targets.long()  # first: torch wraps a number that the narrower dtype cannot hold
    ignored = labels == objective.ignore_index
    outside = ~ignored & ((labels < 0) | (labels >= vocabulary))
    poison = _check_targets(targets, outside, vocabulary, objective)
    wanted = Wanted(mean=objective.label_smoothing > 0, entropy=entropy)
    rows = layout.to_rows(labels.masked_fill(ignored | outside, -1), -1)
    problem = Problem(e.reshape(-1, e.shape[-1]), c, bias, rows, objective.head, wanted)
    return Inputs(
        problem,
        layout,
        None if weights is None else layout.to_rows(weights, 0.0),
        None if poison is None else layout.to_rows(poison, fill=False),
    )


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off, on a device that has it."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: torch.device) -> bool:
    """What torch.amp.is_autocast_available says, which torch.compile can't trace up to 2.11."""
    return device.type != "meta"


def _autocast(e: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast as autocast casts the operands of a linear layer."""
    device = e.device.type
    if not (_has_autocast(e.device) and torch.is_autocast_enabled(device)):
        return e, c
    if torch.float64 in (e.dtype, c.dtype):
        return e, c
    dtype = torch.get_autocast_dtype(device)
    return e.to(dtype), c.to(dtype)


def _check_tensors(**given: object) -> None:
    """Raise for what is no tensor, such as a number that another signature has at this place."""
    optional = ("bias", "weights")
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) and not (value is None and name in optional):
            expected = "a tensor or None" if name in optional else "a tensor"
            got = f"{type(value).__name__} {value!r:.40}"
            raise TypeError(f"{name} must be {expected}; got {got}")


def _check_dtypes(
    e: torch.Tensor,
    c: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> None:
    if not e.is_floating_point() or e.dtype.itemsize < 2:
        raise TypeError(f"e must have a floating-point dtype of 16 bits or more; got {e.dtype}")
    if e.dtype != c.dtype:
        casts = torch.float64 not in (e.dtype, c.dtype)
        raise TypeError(
            f"e and c must have one dtype; got {e.dtype} and {c.dtype}: "
            f"convert one of them{', or call under torch.autocast' if casts else ''}"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must have an integer dtype; got {targets.dtype}")
    if bias is not None and not bias.is_floating_point():
        raise TypeError(f"bias must have a floating-point dtype; got {bias.dtype}")
    if weights is not None and weights.is_complex():
        raise TypeError(f"weights must have a real dtype; got {weights.dtype}")


def _check_shapes(
    e: torch.Tensor,
    c: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> None:
    if e.ndim < 1 or c.ndim != 2 or e.shape[-1] != c.shape[1]:
        raise ValueError(
            f"e must be (..., D) and c (V, D), with one D; got {_shape(e)} and {_shape(c)}"
        )
    if len(c) == 0 or c.shape[1] == 0:
        raise ValueError(f"c must have at least one row and column; got {_shape(c)}")
    expected = {"targets": (targets, e.shape[:-1]), "bias": (bias, c.shape[:1])}
    expected["weights"] = (weights, targets.shape)
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)} here; got {_shape(tensor)}")
    for name, tensor in {"c": c, "targets": targets, "bias": bias, "weights": weights}.items():
        if tensor is not None and tensor.device != e.device:
            raise ValueError(f"{name} must be on e's device {e.device}; got {tensor.device}")


def _check_targets(
    targets: torch.Tensor, outside: torch.Tensor, v: int, objective: Objective
) -> torch.Tensor | None:
    """Raise where the host can know without waiting; else return the faulty targets."""
    if torch.compiler.is_compiling() or not _legible(targets):
        return outside
    if bool(outside.any()):
        place = outside.nonzero()[0].tolist()
        raise ValueError(
            f"targets must be in [0, {v}) or ignore_index {objective.ignore_index}; "
            f"got {int(targets[tuple(place)])} at position {place}"
        )
    return None


def _legible(targets: torch.Tensor) -> bool:
    """Whether the host can read the targets at once: none of a device's, a tracer's or a vmap's."""
    if targets.device.type != "cpu" or is_fake(targets):
        return False
    while _functorch.is_functorch_wrapped_tensor(targets):
        if _functorch.is_batchedtensor(targets):
            return False
        targets = _functorch.get_unwrapped(targets)
    return True


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
