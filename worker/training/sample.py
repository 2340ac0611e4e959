"""`python -m worker.training.sample MODEL QUESTION`: what a chat model of a folder answers."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from worker.training.attention import attention

# Small models fall into loops when they always say the likeliest word.
_REPETITION_PENALTY = 1.3


def answer(folder: Path, question: str, max_tokens: int) -> str:
    """The greedy answer to one user message, with repetition discouraged."""
    # Any: what transformers declares of these contradicts how they are called.
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    config: Any = AutoConfig.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, config=config, attn_implementation=attention(config)
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        tokens = model.generate(
            **prompt,
            max_new_tokens=max_tokens,
            do_sample=False,
            repetition_penalty=_REPETITION_PENALTY,
        )
    said = tokens[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()


def main(arguments: list[str]) -> None:
    """Print the answer."""
    parser = argparse.ArgumentParser(prog="python -m worker.training.sample", description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("question")
    parser.add_argument("--max-tokens", type=int, default=32)
    chosen = parser.parse_args(arguments)
    sys.stdout.write(answer(chosen.model, chosen.question, chosen.max_tokens) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
