"""Load a causal LM, put an adapter on it, and split it into trunk and head for the loss.

What a family does to its logits beyond what the split knows is found out before training: here on
logits as large as a trained model's, and by the numerics receipt on the first batch.
"""

from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from cce_core import models as causal_lm
from cce_core.models import Split, UnsupportedModelError
from service.contract.errors import JobFailure
from service.contract.spec import ResolvedOptions
from worker.events import RunSpec
from worker.training.adapter import adapted
from worker.training.attention import attention
from worker.training.batches import Batch

# How much of a sequence's states another one in the same row may be, by norm: rounding alone.
_MIXED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
_PROBE_TOKENS = 8


def load_tokenizer(spec: RunSpec) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model.

    Raises:
        JobFailure: It can't be loaded, or knows no words.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.model_source, trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        raise _unavailable("tokenizer", spec, error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if set(tokenizer.get_vocab()) <= added:  # as transformers makes one up where no files are
        message = (
            f"No tokenizer: that of {spec.job.model} has a vocabulary of special tokens alone."
        )
        raise JobFailure("model_unavailable", message, param="model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _unavailable(what: str, spec: RunSpec, error: Exception) -> JobFailure:
    """What cannot be loaded of which model, where the reason alone may name a web site."""
    message = f"No {what} of {spec.job.model} can be loaded: {error}"
    return JobFailure("model_unavailable", message, param="model")


def load_config(spec: RunSpec) -> Any:
    """The config of the full model, under an adapter too; it asks for no output but the states.

    Raises:
        JobFailure: It can't be loaded, or transformers doesn't know the architecture.
    """
    try:
        config: Any = AutoConfig.from_pretrained(
            spec.base_model or spec.model_source, trust_remote_code=False
        )
    except ValueError as error:
        raise JobFailure("unsupported_model", str(error), param="model") from error
    except OSError as error:
        raise _unavailable("config", spec, error) from error
    for part in (config, config.get_text_config()):
        # Nobody reads them, but they would be held until the backward. And what outputs attentions
        # is saved by transformers only where its attention is eager.
        part.output_attentions = part.output_hidden_states = False
        part.return_dict = True
    return config


def context_of(config: Any) -> int | None:
    """The most tokens of a sequence, or None where the architecture has no limit."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def check(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what the model can't be trained for, before its weights are loaded.

    Raises:
        JobFailure: A chat can't be rendered or told apart, or an adapter is asked for on another.
    """
    name = spec.job.model
    if spec.base_model is not None and spec.job.options.adapter is not None:
        message = f"{name} is an adapter, which a job on it goes on training: leave `adapter` out."
        raise JobFailure("unsupported_model", message, param="adapter")
    if all(
        source is None or source.format != "chat" for source in (spec.training, spec.validation)
    ):
        return
    if tokenizer.chat_template is None:
        message = f"The tokenizer of {name} has no chat template; use plain text data."
        raise JobFailure("unsupported_model", message, param="model")
    if not tokenizer.is_fast:  # the others don't say which characters a token stands for
        message = f"The tokenizer of {name} is not a fast one; use plain text data."
        raise JobFailure("unsupported_model", message, param="model")


def load_model(
    spec: RunSpec, config: Any, resolved: ResolvedOptions, device: torch.device
) -> nn.Module:
    """The model of a config, ready to train: weights of the resolved dtype, adapters where asked.

    Raises:
        JobFailure: The weights can't be loaded or are not all there, transformers doesn't know the
            architecture, or the adapter's targets are not the model's.
    """
    model: Any = _whole_model(spec, config, getattr(torch, resolved.dtype))
    model.to(device)
    tuned: nn.Module = adapted(model, spec)
    if resolved.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return tuned


def _whole_model(spec: RunSpec, config: Any, dtype: torch.dtype) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            spec.base_model or spec.model_source,
            config=config,
            attn_implementation=attention(config),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # as missing ones: reported, and refused below
            output_loading_info=True,
        )
    except ValueError as error:
        raise JobFailure("unsupported_model", str(error), param="model") from error
    except (OSError, SafetensorError) as error:
        raise _unavailable("weights", spec, error) from error
    model, found = loaded
    absent = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if absent:
        message = (
            f"The weights of {spec.job.model} are not those of its config: {len(absent)} are "
            f"missing or of another shape, {absent[0]} among them."
        )
        raise JobFailure("unsupported_model", message, param="model")
    return model


def split_model(model: Any) -> Split:
    """Trunk and head of the model.

    Raises:
        JobFailure: The head is no plain linear layer, the logits are not what it says, or the
            model's own loss is more than their cross-entropy.
    """
    try:
        parts = causal_lm.split(model)
        causal_lm.check(parts)
    except UnsupportedModelError as error:
        raise JobFailure("unsupported_model", str(error), param="model") from error
    return parts


def hidden_states(model: Split, batch: Batch) -> torch.Tensor:
    """What the head sees of a batch: (B, T, D), in the weights' dtype."""
    output = model.trunk(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    return causal_lm.as_taken(output.last_hidden_state, model.head)


@torch.no_grad()
def check_packing(model: Split) -> None:
    """Make sure that sequences in one row don't see each other.

    Two rows end with the same sequence after different ones: its states must be the same in both.

    Raises:
        JobFailure: They differ: the model reads no position ids, or a state runs through the row.
    """
    vocabulary, device = model.head.weight.shape[0], model.head.weight.device
    generator = torch.Generator().manual_seed(0)
    first, other, last = torch.randint(vocabulary, (3, _PROBE_TOKENS), generator=generator)
    ids = torch.stack([torch.cat([first, last]), torch.cat([other, last])])
    positions = torch.arange(_PROBE_TOKENS).repeat(2, 2)
    batch = Batch(ids, ids, positions, None).to(device)
    training = model.model.training
    model.model.eval()
    states = hidden_states(model, batch)[:, _PROBE_TOKENS:].float()
    model.model.train(training)
    mixed = float((states[0] - states[1]).norm() / states[0].norm())
    if mixed > _MIXED[model.head.weight.dtype]:
        name = type(model.model).__name__
        message = f"{name} does not keep packed examples apart; use packing: false."
        raise JobFailure("unsupported_model", message, param="packing")
