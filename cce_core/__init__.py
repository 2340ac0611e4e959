"""Cut cross-entropy: the loss of a language model's head without its logits in memory."""

from cce_core.config import LossConfig

__all__ = ["LossConfig"]
