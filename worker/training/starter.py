"""`python -m worker.training.starter DATA MODEL`: a small base model to start from, made here.

A Llama with random weights and a byte-level BPE tokenizer learned from the chat dataset DATA,
saved into the folder MODEL the way every model of the allow-list is. Its vocabulary is large for
its width, as in the models that people fine-tune: the loss layer is the biggest thing in memory.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The generation tags mark what a job trains on: the assistant's words and the token that ends them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A merge seen once names a word, and teaches nothing about the next one.
_MIN_FREQUENCY = 2


def make_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with exactly `vocab_size` tokens.

    Where the text is too small for that many merges, reserved tokens that no text contains make up
    the number, as they do in published models.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> LlamaForCausalLM:
    """A Llama of the given shape with random weights and tied embeddings."""
    set_seed(options.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def main(arguments: list[str]) -> None:
    """Make the model, save it, and print what it is as one line of JSON."""
    options = _parser().parse_args(arguments)
    tokenizer = make_tokenizer(_texts(options.data), options.vocab_size)
    model = make_model(tokenizer, options)
    tokenizer.save_pretrained(options.model)
    model.save_pretrained(options.model)
    facts = {
        "parameters": model.num_parameters(),
        "vocab_size": len(tokenizer),
        "reserved_tokens": sum(token.startswith("<|reserved_") for token in tokenizer.get_vocab()),
        "hidden_size": options.width,
        "layers": options.layers,
    }
    sys.stdout.write(json.dumps(facts) + "\n")


def _texts(data: Path) -> Iterator[str]:
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            for message in json.loads(line)["messages"]:
                yield message["content"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.training.starter", description=__doc__)
    parser.add_argument("data", type=Path, help="a chat dataset, one conversation a line")
    parser.add_argument("model", type=Path, help="the folder to make")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
