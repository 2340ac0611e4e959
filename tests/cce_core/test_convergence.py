"""A small language model learns the same with either loss, over a few hundred steps."""

import pytest
import torch
import transformers

from cce_core import LossConfig
from cce_core.models import attach

STEPS, VOCABULARY = 200, 61


def learn(*, attached: bool) -> list[float]:
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    if attached:
        attach(model, LossConfig(implementation="blocked", scratch_bytes=2**12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        start = torch.randint(VOCABULARY, (8, 1), generator=generator)
        # What comes next follows from what came before, but for some noise.
        ids = (start + 7 * torch.arange(24)) % VOCABULARY
        noise = torch.rand(ids.shape, generator=generator) < 0.05
        ids = torch.where(noise, torch.randint(VOCABULARY, ids.shape, generator=generator), ids)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_loss_curves_lie_on_each_other() -> None:
    ours, full = learn(attached=True), learn(attached=False)
    assert full[-1] < full[0] / 3
    assert max(abs(a - b) for a, b in zip(ours, full, strict=True)) < 0.01
    assert ours[-1] == pytest.approx(full[-1], rel=5e-3)
