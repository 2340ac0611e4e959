"""Cut cross-entropy: the loss of a language model's head without its logits in memory."""

from cce_core import reference
from cce_core.api import LinearCrossEntropy, linear_cross_entropy
from cce_core.config import LossConfig
from cce_core.objective import IGNORE_INDEX
from cce_core.parallel import VocabularyShard

__all__ = [
    "IGNORE_INDEX",
    "LinearCrossEntropy",
    "LossConfig",
    "VocabularyShard",
    "linear_cross_entropy",
    "reference",
]
