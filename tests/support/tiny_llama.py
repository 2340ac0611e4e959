"""A Llama small enough to be trained again and again, and text to train it on."""

import json
import pydoc_data.topics
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 512


def essays(count: int, length: int = 400) -> list[str]:
    """Texts of `length` characters, each different."""
    whole = "".join(pydoc_data.topics.topics.values())
    return [whole[start : start + length] for start in range(0, count * length, length)]


def make_tiny_llama(folder: Path, **config: int) -> Path:
    """A model of 60,000 weights, unless `config` says otherwise, with its tokenizer."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(essays(80), vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    tokenizer.save_pretrained(folder)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    }
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, **{**shape, **config}, **special)
    ).save_pretrained(folder)
    return folder


def dataset(texts: list[str]) -> bytes:
    """A plain text dataset of a row each."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
