"""The public function: linear layer and cross-entropy in one, without the logits in memory."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from cce_core import parallel, reference
from cce_core.autograd import row_statistics
from cce_core.config import FilterEps, LossConfig, replacement
from cce_core.inputs import check, without_autocast
from cce_core.objective import (
    IGNORE_INDEX,
    Objective,
    Reduction,
    batch_loss,
    check_num_items,
    row_losses,
)
from cce_core.parallel import VocabularyShard
from cce_core.problem import Problem, RowStats


@dataclass(frozen=True, eq=False)
class LossOutput:
    """The loss, and what the same sweep over the logits knows about each row.

    The statistics have the shape of the targets and stand at the targets' positions; they are zero
    (False) where nothing is predicted. fp32, or fp64 for fp64 inputs.
    """

    loss: torch.Tensor  # (), or the shape of the targets; carries gradients
    lse: torch.Tensor  # log-sum-exp of the logits; carries gradients
    label_logit: torch.Tensor  # the target's logit; carries gradients
    row_max: torch.Tensor  # the largest logit
    correct: torch.Tensor  # bool: no logit is larger than the target's
    count: torch.Tensor  # () int64, the targets that count
    entropy: torch.Tensor | None  # of the softmax, where asked


def linear_cross_entropy(
    e: torch.Tensor,
    c: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    shift: int = 0,
    return_lse: bool = False,
    filter_eps: FilterEps = "auto",
    *,
    logit_scale: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    weights: torch.Tensor | None = None,
    num_items: int | torch.Tensor | None = None,
    return_stats: bool = False,
    entropy: bool = False,
    vocab_shard: VocabularyShard | None = None,
    config: LossConfig | None = None,
    impl: None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | LossOutput:
    """Cross-entropy of softmax(cap(logit_scale * (e c^T + bias))) against `targets`.

    No N x V matrix is held, whatever the implementation (but the reference). N is the number of
    targets, V the vocabulary, D the width.

    Args:
        e: (..., D) hidden states, of 16 to 64 bits; with `shift` the last dimension before D is
            the sequence.
        c: (V, D) head weight, of e's dtype (or any under autocast, which then casts both).
        targets: e.shape[:-1] integers in [0, V), or `ignore_index`.
        bias: (V,) or None.
        ignore_index: A target with this value does not count, its row takes no part.
        softcap: Logits become softcap * tanh(z / softcap); None for none.
        reduction: "mean" (over what counts; see `num_items`), "sum", or "none": the shape of the
            targets, zero where nothing counts.
        shift: Position t predicts the target at t + shift; neither is to be sliced before.
        return_lse: Also return each row's log-sum-exp, differentiable, in the targets' shape.
        filter_eps: Overrides `config.filter_eps`, unless "auto".
        logit_scale: Factor on the logits, before the softcap; None for 1.
        label_smoothing: Share of the label's probability spread over the vocabulary.
        z_loss: Weight of the squared log-sum-exp in each row's loss.
        weights: Weight of each target, in the targets' shape. "mean" divides by their sum.
        num_items: What "mean" divides by instead, for example the targets of a whole batch that
            is accumulated in parts; an int, or a tensor () for which the host does not wait.
        return_stats: Return a `LossOutput` instead.
        entropy: Also compute each row's entropy (for `return_stats`).
        vocab_shard: Which rows of a head that is spread over the ranks of a process group `c` and
            `bias` are; targets stay rows of the whole head. Every rank calls, with the same e,
            targets and weights, and gets the same loss; the gradient of e is summed over the
            ranks. A DTensor `c` says it itself: replicated, or Shard(0) over one dimension of its
            mesh. A head that FSDP has sharded over ranks with batches of their own is to be
            gathered first.
        config: Which implementation, and how exact.
        impl: For callers of cut_cross_entropy: its names raise an error with ours.

    Returns:
        The loss, fp32 (fp64 for fp64 inputs); (loss, lse) with `return_lse`; or a `LossOutput`.
        Zero, with zero gradients, where nothing counts.

    Raises:
        TypeError: A dtype is not what is expected.
        ValueError: A shape, device, option or target is not what is expected. Where the host would
            have to wait for the targets or cannot read them (on a CUDA device, under torch.compile
            or another tracer, under vmap) one that is out of range makes the loss NaN instead.
        ImplementationUnavailable: `config` names an implementation that cannot serve this call.
    """
    _refuse(impl)
    objective = Objective(
        ignore_index=ignore_index,
        softcap=softcap,
        logit_scale=1.0 if logit_scale is None else logit_scale,
        reduction=reduction,
        shift=shift,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    output = evaluate(
        e,
        c,
        targets,
        bias,
        objective=objective,
        config=_resolved(config, filter_eps),
        weights=weights,
        num_items=num_items,
        entropy=entropy,
        vocab_shard=vocab_shard,
    )
    if return_stats:
        return output
    return (output.loss, output.lse) if return_lse else output.loss


def evaluate(
    e: torch.Tensor,
    c: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    objective: Objective,
    config: LossConfig,
    weights: torch.Tensor | None = None,
    num_items: int | torch.Tensor | None = None,
    entropy: bool = False,
    vocab_shard: VocabularyShard | None = None,
) -> LossOutput:
    """The same with the options as one object; see `linear_cross_entropy`."""
    check_num_items(num_items, objective.reduction)
    shard = parallel.shard_of(c, vocab_shard)
    c, bias, e, targets, weights = parallel.local_parts(
        c, bias, e=e, targets=targets, weights=weights
    )
    inputs = check(
        e, c, targets, bias, weights=weights, shard=shard, objective=objective, entropy=entropy
    )
    stats = _statistics(inputs.problem, shard, config)
    rows = row_losses(stats, objective)
    if inputs.poison is not None:
        rows = rows.masked_fill(inputs.poison, float("nan"))
    counted = inputs.problem.targets >= 0
    loss = batch_loss(rows, counted, inputs.weights, num_items, objective.reduction)
    place = inputs.layout.to_targets
    return LossOutput(
        loss=place(loss) if objective.reduction == "none" else loss,
        lse=place(stats.lse),
        label_logit=place(stats.label_logit),
        row_max=place(stats.row_max),
        correct=place(counted & (stats.label_logit.detach() == stats.row_max)),
        count=counted.sum(),
        entropy=None if stats.entropy is None else place(stats.entropy),
    )


def _statistics(problem: Problem, shard: VocabularyShard | None, config: LossConfig) -> RowStats:
    if shard is not None:
        return parallel.row_statistics(problem, shard, lambda own: _statistics(own, None, config))
    if config.implementation == "reference":
        with without_autocast(problem.e.device):
            return reference.row_statistics(problem)
    return row_statistics(problem, config)


class LinearCrossEntropy(nn.Module):
    """`linear_cross_entropy` with its options fixed; the head weight stays the caller's."""

    def __init__(
        self,
        ignore_index: int = IGNORE_INDEX,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        shift: int = 0,
        return_lse: bool = False,
        filter_eps: FilterEps = "auto",
        *,
        logit_scale: float | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        config: LossConfig | None = None,
        impl: None = None,
    ) -> None:
        super().__init__()
        _refuse(impl)
        self.objective = Objective(
            ignore_index=ignore_index,
            softcap=softcap,
            logit_scale=1.0 if logit_scale is None else logit_scale,
            reduction=reduction,
            shift=shift,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        self.config = _resolved(config, filter_eps)
        self.return_lse = return_lse

    def forward(
        self,
        e: torch.Tensor,
        c: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        weights: torch.Tensor | None = None,
        num_items: int | torch.Tensor | None = None,
        vocab_shard: VocabularyShard | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, or (loss, lse); see `linear_cross_entropy`."""
        output = evaluate(
            e,
            c,
            targets,
            bias,
            objective=self.objective,
            config=self.config,
            weights=weights,
            num_items=num_items,
            vocab_shard=vocab_shard,
        )
        return (output.loss, output.lse) if self.return_lse else output.loss

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f"{self.objective}, {self.config}"


def _refuse(impl: object) -> None:
    if impl is not None:
        raise ValueError(
            f"impl is not an argument here, config is; got {impl!r}{replacement(impl)}"
        )


def _resolved(config: LossConfig | None, filter_eps: FilterEps) -> LossConfig:
    config = config if config is not None else LossConfig()
    if not isinstance(config, LossConfig):
        raise TypeError(f"config must be a LossConfig or None; got {config!r}")
    return config if filter_eps == "auto" else replace(config, filter_eps=filter_eps)
