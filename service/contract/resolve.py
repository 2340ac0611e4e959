"""Every "auto", resolved by rule; the job echoes the outcome.

n_epochs                     3; 2 from 10,000 examples on, 1 from 50,000 on
batch_size                   a 500th of the examples, between 1 and 16, in whole micro-batches
micro_batch_size             as `batching.py` says; on CPU all of the batch, on CUDA what fits of it
gradient_accumulation_steps  as many as the micro-batches of a batch
learning_rate                2e-5 in full, 2e-4 with LoRA, times learning_rate_multiplier
device                       cuda or cpu, whichever the job runs on
trained                      full, or lora: with a new adapter, or on a model that is one
max_seq_length               the model's context, at most 4096
dtype                        bfloat16 on CUDA, float32 on CPU
gradient_checkpointing       on CUDA
checkpoint_every             a tenth of the steps
loss.implementation          triton on CUDA in bfloat16, blocked elsewhere

Packed sequences count as examples.
"""

from typing import Any

from service.contract.batching import batching
from service.contract.errors import JobFailure
from service.contract.spec import JobSpec, ResolvedOptions, Trained

_MAX_AUTO_CONTEXT = 4096
_NO_LIMIT = 1 << 20
_RATES: dict[Trained, float] = {"full": 2e-5, "lora": 2e-4}


def sequence_length(spec: JobSpec, context: int | None) -> int:
    """Tokens a sequence, within the model's context; None where it has no limit.

    Raises:
        JobFailure: More than the model can take was asked for.
    """
    context = context or _NO_LIMIT
    asked = spec.options.max_seq_length
    if asked == "auto":
        return min(context, _MAX_AUTO_CONTEXT)
    if asked > context:
        message = f"max_seq_length is {asked}; the model's context is {context}."
        raise JobFailure("unsupported_model", message, param="max_seq_length")
    return asked


def resolve(
    spec: JobSpec,
    rows: int,
    max_seq_length: int,
    *,
    cuda: bool,
    on_adapter: bool,
    max_micro_batch_size: int | None = None,
) -> ResolvedOptions:
    """The values that the trainer uses for a dataset of `rows` sequences.

    Args:
        spec: What was asked for.
        rows: Sequences in the training data.
        max_seq_length: What `sequence_length` found.
        cuda: Whether the job runs on CUDA.
        on_adapter: Whether the model is itself an adapter, which the job goes on training.
        max_micro_batch_size: The most sequences at once; the effective batch stays, in more
            micro-batches, of which the last may be smaller.
    """
    options, asked = spec.options, spec.hyperparameters
    cut = batching(spec, rows)
    batch, micro = cut.batch, min(cut.micro, max_micro_batch_size or cut.micro)
    epochs = _or(asked.n_epochs, 1 if rows >= 50_000 else 2 if rows >= 10_000 else 3)
    total = epochs * -(-rows // batch)
    multiplier = _or(asked.learning_rate_multiplier, 1.0)
    trained: Trained = "lora" if on_adapter or options.adapter else "full"
    dtype = _or(options.dtype, "bfloat16" if cuda else "float32")
    implementation = options.loss.implementation
    if implementation == "auto":
        implementation = "triton" if cuda and dtype == "bfloat16" else "blocked"
    return ResolvedOptions(
        device="cuda" if cuda else "cpu",
        trained=trained,
        batch_size=batch,
        micro_batch_size=micro,
        gradient_accumulation_steps=-(-batch // micro),
        n_epochs=epochs,
        learning_rate_multiplier=multiplier,
        learning_rate=_or(options.learning_rate, _RATES[trained] * multiplier),
        max_seq_length=max_seq_length,
        gradient_checkpointing=_or(options.gradient_checkpointing, cuda),
        dtype=dtype,
        loss_implementation=implementation,
        checkpoint_every=_or(options.checkpoint_every, max(1, total // 10)),
        total_steps=total,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value == "auto" else value


def with_micro_batch(resolved: ResolvedOptions, micro: int) -> ResolvedOptions:
    """The same options with another micro-batch: the effective batch and the steps stay."""
    steps = -(-resolved.batch_size // micro)
    return resolved.model_copy(
        update={"micro_batch_size": micro, "gradient_accumulation_steps": steps}
    )
