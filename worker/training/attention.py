"""Which attention a model is made with: the one that its memory is predicted for.

Left to itself transformers goes by what each release holds its families to be capable of, and by
what the config's author had installed.
"""

from typing import Any

from service.contract.estimate.model import Attention, attention_of


def attention(config: Any) -> Attention | None:
    """The `attn_implementation` of a model with this config of transformers.

    To be passed beside the config, not in its place: a config that is only then read can overrule
    it. None has transformers choose, as if the config named none.
    """
    return attention_of(config.get_text_config().to_dict())
