"""The shape of a causal LM, read from its `config.json` alone, and what it weighs.

    embedding    V D
    layer        norms, attention (q, k, v, o), gated MLP (gate, up, down)
    final norm   D
    head         V D, unless tied to the embedding

V vocabulary, D width, I inner width of the MLP, Q = heads x head size, K = key/value heads x head
size. The families differ in their norms, in biases and in how attention runs: the table below,
which prediction and trainer both go by.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.contract.errors import InvalidRequest
from service.contract.spec import LoraAdapter

# `sdpa` is torch's, fused where it can be; `eager` has all attention scores in memory.
Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True)
class Family:
    """What a `model_type` of transformers means beyond the numbers of its config.

    Attributes:
        norms: RMS norms of width D a layer.
        norm: Where the norm's weight is applied: `llama` after the cast back to the compute dtype,
            `gemma` before it, in fp32, which is then what a trained weight's gradient needs.
        attention: What the trainer has transformers run, whatever its release would choose.
        tied: Whether head and embedding are one where the config does not say.
        qkv_bias: Whether q, k and v have a bias, whatever the config says.
        head_norms: Whether each head of q and k is normalized.
    """

    norms: int = 2
    norm: Literal["llama", "gemma"] = "llama"
    attention: Attention = "sdpa"
    tied: bool = False
    qkv_bias: bool = False
    head_norms: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True),
    "gemma": Family(norm="gemma", tied=True),
    # Sdpa does not cap the scores, of which some releases say nothing; others refuse it to the
    # family, capped or not.
    "gemma2": Family(norms=4, norm="gemma", attention="eager", tied=True),
}
# How peft writes down what it has adapted, for example `model.layers.3.mlp.up_proj`.
_IN_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
_DEFAULT_CAP = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}


@dataclass(frozen=True)
class Linear:
    """A linear layer of every decoder layer, by its name there."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        """Numbers of weight and bias."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only model with a gated MLP.

    Attributes:
        model_type: The family's name.
        context: The most tokens of a sequence, or None where the config does not say.
        window: Tokens that a layer with sliding attention sees, or None.
        softcap: Of the final logits.
        attention_softcap: Of the attention scores.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context: int | None
    window: int | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    softcap: float | None
    attention_softcap: float | None

    @property
    def family(self) -> Family:
        """What the family's name stands for."""
        return FAMILIES[self.model_type]

    @property
    def q(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    def linears(self) -> list[Linear]:
        """The linear layers of one decoder layer."""
        d, inner, q, kv = self.hidden_size, self.intermediate_size, self.q, self.kv
        bias = self.attention_bias or self.family.qkv_bias
        return [
            Linear("self_attn.q_proj", d, q, bias),
            Linear("self_attn.k_proj", d, kv, bias),
            Linear("self_attn.v_proj", d, kv, bias),
            Linear("self_attn.o_proj", q, d, self.attention_bias),
            Linear("mlp.gate_proj", d, inner, self.mlp_bias),
            Linear("mlp.up_proj", d, inner, self.mlp_bias),
            Linear("mlp.down_proj", inner, d, self.mlp_bias),
        ]

    @property
    def embedding_parameters(self) -> int:
        """Numbers of the embedding, and of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Numbers of all weights of the base model."""
        d = self.hidden_size
        norms = self.family.norms * d + (2 * self.head_dim if self.family.head_norms else 0)
        layer = norms + sum(linear.parameters for linear in self.linears())
        tables = self.embedding_parameters * (1 if self.tied else 2)
        return tables + self.layers * layer + d

    def adapted(self, adapter: LoraAdapter) -> list[Linear]:
        """The linear layers of one decoder layer that an adapter is put on, as on every other.

        Raises:
            InvalidRequest: A target names no linear layer of a decoder layer, or not in each.
        """
        linears = self.linears()
        if adapter.targets == "all-linear":
            return linears
        chosen = set()
        for name, layers in _by_layer(adapter.targets).items():
            found = {each.name for each in linears if f".{each.name}".endswith(f".{name}")}
            if not found or len(layers) not in {0, self.layers}:
                raise self._unpredictable(name)
            chosen |= found
        return [linear for linear in linears if linear.name in chosen]

    def _unpredictable(self, target: str) -> InvalidRequest:
        names = ", ".join(linear.name for linear in self.linears())
        return InvalidRequest(
            f"adapter.targets names {target!r}, for which nothing can be predicted; expected some "
            f"of {names}, in all {self.layers} layers.",
            code="invalid_value",
            param="adapter.targets",
        )


def _by_layer(targets: list[str]) -> dict[str, set[str]]:
    """Names within a decoder layer, each with the layers that it is named in, if it names any."""
    found: dict[str, set[str]] = {}
    for target in targets:
        named = _IN_LAYER.fullmatch(target)
        name, layers = (target, set()) if named is None else (named[2], {named[1]})
        found.setdefault(name, set()).update(layers)
    return found


def attention_of(config: Mapping[str, Any]) -> Attention | None:
    """What the trainer has transformers run for a model with this config.

    Never sdpa where scores are capped. None for an uncapped model of a family that nothing is
    predicted for: sdpa where transformers has it for the family, eager elsewhere.
    """
    family = _family_of(config)
    if family is not None:
        return family.attention
    return None if config.get("attn_logit_softcapping") is None else "eager"


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a `config.json` describes.

    Raises:
        InvalidRequest: Its family is none that memory can be predicted for, or a size is missing.
    """
    model_type, family = config.get("model_type"), _family_of(config)
    if family is None:
        raise InvalidRequest(
            f"The model is a {model_type!r}, whose memory cannot be predicted; "
            f"expected one of {', '.join(FAMILIES)}.",
            code="unsupported_model",
            param="model",
        )
    assert isinstance(model_type, str)
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    is_gemma2 = model_type == "gemma2"
    caps = {
        name: config.get(name, value if is_gemma2 else None) for name, value in _DEFAULT_CAP.items()
    }
    return ModelShape(
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        vocab_size=_size(config, "vocab_size"),
        context=config.get("max_position_embeddings"),
        window=_window(config),
        tied=config.get("tie_word_embeddings", family.tied),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        softcap=caps["final_logit_softcapping"],
        attention_softcap=caps["attn_logit_softcapping"],
    )


def _family_of(config: Mapping[str, Any]) -> Family | None:
    model_type = config.get("model_type")
    return FAMILIES.get(model_type) if isinstance(model_type, str) else None


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise InvalidRequest(
            f"The model's config has {name} = {value!r}; expected a size, at least 1.",
            code="unsupported_model",
            param="model",
        )
    return value


def _window(config: Mapping[str, Any]) -> int | None:
    if config.get("use_sliding_window") is False:
        return None
    window: int | None = config.get("sliding_window")
    return window
