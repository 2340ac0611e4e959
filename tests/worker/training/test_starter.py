import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.support.stack import write_chat
from tests.worker.training.conftest import SHAPE
from worker.training import starter


def make(folder: Path, **changes: int) -> Path:
    data = write_chat(folder / "data.jsonl")
    options = [f"--{name}={value}" for name, value in {**SHAPE, **changes}.items()]
    starter.main([str(data), str(folder / "model"), *options])
    return folder / "model"


def test_the_model_has_the_shape_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(make(tmp_path))
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (384, 32, 2)
    assert (config.num_attention_heads, config.max_position_embeddings) == (2, 128)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["parameters"] == model.num_parameters()
    assert (facts["vocab_size"], facts["hidden_size"], facts["layers"]) == (384, 32, 2)


def test_the_vocabulary_is_exactly_as_large_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However little text there is; what is missing is reserved, and no text contains it."""
    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path, **{"vocab-size": 2000}))
    assert len(tokenizer) == 2000
    reserved = [token for token in tokenizer.get_vocab() if token.startswith("<|reserved_")]
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["reserved_tokens"] == len(reserved) > 1000


def test_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    first, again, other = (
        AutoModelForCausalLM.from_pretrained(make(folder, seed=seed)).lm_head.weight
        for folder, seed in zip(folders, (1, 1, 2), strict=True)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_any_text_is_encoded_and_decoded_again(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "What is 3?\n\n  Grüße, 世界 🌍!\t"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_prompt_ends_where_the_assistant_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answer = {"role": "assistant", "content": "Hi."}
    whole = tokenizer.apply_chat_template([*messages, answer], tokenize=False)
    assert whole == prompt + "Hi.<|im_end|>\n"
