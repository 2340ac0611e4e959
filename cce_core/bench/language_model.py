"""A small language model in plain torch, and its training against the clock.

Pre-norm transformer, learnt positions, head tied to the embedding. The learning rate falls linearly
to zero as time or steps run out, whichever is nearer its end, so that a slow device ends with an
annealed model too. V vocabulary, D width, T context.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

WARMUP_STEPS = 50


@dataclass(frozen=True)
class Size:
    """A model's sizes."""

    v: int
    d: int
    layers: int
    heads: int
    context: int


@dataclass(frozen=True)
class Schedule:
    """How long a model trains: until `seconds` or `steps` are over."""

    batch: int  # sequences
    steps: int
    seconds: float
    learning_rate: float = 1e-3

    def progress(self, step: int, elapsed: float) -> float:
        """From 0 to 1, the share of the training that is over."""
        return max(step / self.steps, elapsed / self.seconds)

    def rate(self, step: int, elapsed: float) -> float:
        """The learning rate of a step."""
        warm = min((step + 1) / WARMUP_STEPS, 1.0)
        return self.learning_rate * warm * max(1.0 - self.progress(step, elapsed), 0.0)


class LanguageModel(nn.Module):
    """Token ids (B, T) to hidden states (B, T, D); logits are their products with `head`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.v, size.d)
        self.positions = nn.Embedding(size.context, size.d)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            size.d,
            size.heads,
            4 * size.d,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        norm = nn.LayerNorm(size.d, bias=False)
        self.trunk = nn.TransformerEncoder(layer, size.layers, norm, enable_nested_tensor=False)

    @property
    def head(self) -> torch.Tensor:
        """The classifier (V, D), tied to the embedding."""
        return self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states of every position, from it and those before it."""
        length = ids.shape[1]
        x = self.tokens(ids) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device)
        hidden: torch.Tensor = self.trunk(x, mask=mask, is_causal=True)
        return hidden


def _batch(
    ids: torch.Tensor, schedule: Schedule, context: int, random: torch.Generator
) -> torch.Tensor:
    """(batch, context + 1) random windows of the text."""
    starts = torch.randint(len(ids) - context, (schedule.batch, 1), generator=random)
    return ids[starts + torch.arange(context + 1)].long()


def train(
    ids: torch.Tensor, size: Size, schedule: Schedule, device: torch.device
) -> tuple[LanguageModel, int]:
    """Train a model on a text; return it and the number of steps it took.

    Args:
        ids: int32 tokens on the CPU, more than a context.
        size: the model's sizes.
        schedule: when to stop, and how fast to learn.
        device: where it trains, in bf16 autocast with fp32 weights.
    """
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = LanguageModel(size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    start, step = time.monotonic(), 0
    while schedule.progress(step, time.monotonic() - start) < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, time.monotonic() - start)
        window = _batch(ids, schedule, size.context, random).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(window[:, :-1]) @ model.head.T
        loss = cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % WARMUP_STEPS == 0:
            loss.item()  # the clock runs ahead of the device otherwise
    return model.eval(), step


@torch.no_grad()
def hidden_states(
    model: LanguageModel, ids: torch.Tensor, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, D) hidden states of a text, window by window, and each one's next token."""
    device = model.head.device
    windows = (len(ids) - 1) // context
    inputs = ids[: windows * context].view(windows, context).long()
    with torch.autocast(device.type, torch.bfloat16):
        states = [model(part.to(device)).flatten(0, 1) for part in torch.split(inputs, 16)]
    return torch.cat(states).bfloat16(), ids[1 : windows * context + 1].long()
