"""What full logits would take, where they are not tried.

The formulas, for N predictions and a vocabulary of V:

    three_logits    3 N V float32: log-probabilities, the gradient that comes in and the one that
                    goes out
    four_logits     4 N V float32: with a softcap, whose tanh is kept too
    one_logits      N V of the compute dtype: compiled, logits in whose place their gradient comes
"""

from cce_core.head import Head
from service.contract.memory import Figure
from worker.training import device as device_of

_CPU_SHARE = 0.5
_FLOAT32 = 4


def modelled(rows: int, head: Head) -> Figure:
    """What the loss layer takes for `rows` predictions."""
    copies, formula = (3, "three_logits") if head.softcap is None else (4, "four_logits")
    size = copies * _FLOAT32 * rows * head.weight.shape[0]
    return Figure(bytes=size, provenance="modelled", formula=formula)


def modelled_compiled(rows: int, head: Head) -> Figure:
    """The same under torch.compile."""
    size = head.weight.itemsize * rows * head.weight.shape[0]
    return Figure(bytes=size, provenance="modelled", formula="one_logits")


def too_large(rows: int, head: Head) -> Figure | None:
    """What `rows` predictions take, if they are not to be tried where the head is; else None.

    A CPU's memory must last for others, too, and who exhausts it is killed; CUDA's allocator
    refuses.
    """
    figure = modelled(rows, head)
    if head.weight.is_cuda or figure.bytes <= _CPU_SHARE * device_of.free_cpu_bytes():
        return None
    return figure
