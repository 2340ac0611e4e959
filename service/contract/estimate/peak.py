"""The peak of a training step: the largest of its moments, each a sum of what is held then.

    loss             weights, optimizer, activations, and the loss with its gradients
    last layer       weights, optimizer, the head's gradient, the layers' activations, and the work
                     of a layer's backward, which begins at the last layer
    first layer      weights, optimizer, all gradients but the embedding's, the first layer's
                     activations and work
    embedding        weights, optimizer, all gradients, and the embedding's once more where it is
                     added to another: the head's, if they are tied, or an earlier micro-batch's
    optimizer step   weights, optimizer, fp32 gradients, and the work space of AdamW

Between the moments of the backward, activations are freed as gradients come, both linear in the
layers done, so that no moment in between is larger than the first and the last. With gradients of
earlier micro-batches held, all of them are there from the beginning. P parameters, of which p are
trained, s bytes each:

    weights        s P
    gradients      s p
    optimizer      AdamW's two moments in fp32, 8 p, and for bf16 the fp32 masters, 4 p
    its step       fp32 gradients 4 p; on CUDA the square roots of all second moments at once, 4 p;
                   on CPU two numbers for each of the largest tensor
    batch          ids, labels, positions and mask, int64: 32 N
"""

from dataclasses import asdict, dataclass

from service.contract.estimate import activations, losses
from service.contract.estimate.model import ModelShape
from service.contract.estimate.record import ComponentBytes
from service.contract.estimate.workload import Workload
from service.contract.memory import LossName

_BATCH_BYTES = 32


@dataclass(frozen=True)
class Components:
    """What takes memory, in bytes; not all of it at once.

    Attributes:
        weights: Of the base model and the adapter.
        optimizer: What the optimizer holds between steps.
        gradients: Of all that is trained, once the backward is done.
        activations: Saved by the forward for the backward, the batch included.
        attention: The part of them that attention saved; with checkpointing, of `working`.
        working: What the backward of a layer takes beside; with checkpointing, the layer that is
            computed again.
        optimizer_step: Gradients in fp32 and work space, while the optimizer steps.
        loss: What each loss takes, its gradients included.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    attention: int
    working: int
    optimizer_step: int
    loss: dict[LossName, int]

    @property
    def static(self) -> int:
        """Held at every moment."""
        return self.weights + self.optimizer


def trained_parameters(shape: ModelShape, work: Workload) -> int:
    """Numbers that the optimizer moves."""
    if work.adapter is None:
        return shape.parameters
    rank = work.adapter.rank
    adapted = shape.adapted(work.adapter)
    return shape.layers * sum(rank * (linear.inputs + linear.outputs) for linear in adapted)


def components(shape: ModelShape, work: Workload) -> Components:
    """Each component of a step."""
    trained = trained_parameters(shape, work)
    added = 0 if work.full else trained
    again = activations.recomputed_bytes(shape, work)
    space = 4 * trained if work.device == "cuda" else 8 * _largest_tensor(shape, work)
    return Components(
        weights=work.item * (shape.parameters + added),
        optimizer=trained * (8 if work.item == 4 else 12),
        gradients=work.item * trained,
        activations=activations.saved_bytes(shape, work) + _BATCH_BYTES * work.tokens,
        attention=activations.attention_bytes(shape, work)
        * (1 if work.checkpointing else shape.layers),
        working=activations.working_bytes(shape, work) + again,
        optimizer_step=4 * trained + space,
        loss={loss: losses.loss_bytes(shape, work, loss) for loss in losses.LOSSES},
    )


def component_bytes(shape: ModelShape, work: Workload) -> ComponentBytes:
    """The components for the record: all but the losses."""
    parts = asdict(components(shape, work))
    del parts["loss"]
    return ComponentBytes(**parts)


def moments(shape: ModelShape, work: Workload, loss: LossName) -> dict[str, int]:
    """Bytes in use at each moment of a step, by its name."""
    parts = components(shape, work)
    held = parts.gradients if work.accumulating else 0
    head = work.item * losses.head_numbers(shape, work)
    stream = work.item * work.tokens * shape.hidden_size
    batch = _BATCH_BYTES * work.tokens
    layer = activations.layer_bytes(shape, work)
    first = (stream if work.checkpointing else layer) + parts.working
    end = activations.end_bytes(shape, work)
    added = head if shape.tied or work.accumulating else 0
    return {
        "loss": parts.static + held + parts.activations + parts.loss[loss],
        "last layer": parts.static + held + head + parts.activations - end + parts.working,
        "first layer": parts.static + max(held, parts.gradients - head + added) + batch + first,
        "embedding": parts.static + parts.gradients + added + batch + stream,
        "optimizer step": parts.static + parts.optimizer_step + batch,
    }


def step_bytes(shape: ModelShape, work: Workload, loss: LossName) -> int:
    """The peak of a training step."""
    return max(moments(shape, work, loss).values())


def _largest_tensor(shape: ModelShape, work: Workload) -> int:
    """Numbers of the largest tensor that is trained."""
    if work.adapter is not None:
        return work.adapter.rank * max(
            max(linear.inputs, linear.outputs) for linear in shape.adapted(work.adapter)
        )
    return max(shape.embedding_parameters, *(each.parameters for each in shape.linears()))
