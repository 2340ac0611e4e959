"""The peak of a training step: the largest of its moments, each a sum of what is held then.

    loss             weights, optimizer, activations, and the loss with its gradients
    last layer       weights, optimizer, the head's gradient, the layers' activations, and the work
                     of a layer's backward, which begins at the last layer
    first layer      weights, optimizer, all gradients but the embedding's, the first layer's
                     activations and work
    embedding        weights, optimizer, all gradients, and the embedding's once more where it is
                     added to another: the head's, if they are tied, or an earlier micro-batch's
    optimizer step   weights, optimizer, gradients, and a chunk of both in fp32

Between the moments of the backward, activations are freed as gradients come, both linear in the
layers done, so that no moment in between is larger than the first and the last. With gradients of
earlier micro-batches held, all of them are there from the beginning. P parameters, of which p are
trained, s bytes each:

    weights        s P
    gradients      s p
    optimizer      AdamW's two moments in fp32, 8 p; for bf16 the masters' lower halves, 2 p
    its step       gradients s p; for bf16 master and gradient in fp32, 8 c for a chunk of at most
                   c numbers, whose own gradients are gone if no tensor is larger than it
    batch          ids, labels, positions and mask, int64: 32 N
"""

from dataclasses import asdict, dataclass

from service.contract.estimate import activations, losses
from service.contract.estimate.model import ModelShape
from service.contract.estimate.record import ComponentBytes
from service.contract.estimate.workload import Workload
from service.contract.memory import LossName

_BATCH_BYTES = 32
# Of what the optimizer steps at once; 256 MiB in fp32.
CHUNK_NUMBERS = 2**26


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
        optimizer_step: Gradients, and a chunk in fp32, while the optimizer steps.
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
    return Components(
        weights=work.item * (shape.parameters + added),
        optimizer=trained * (8 if work.item == 4 else 10),
        gradients=work.item * trained,
        activations=activations.saved_bytes(shape, work) + _BATCH_BYTES * work.tokens,
        attention=activations.attention_bytes(shape, work)
        * (1 if work.checkpointing else shape.layers),
        working=activations.working_bytes(shape, work) + again,
        optimizer_step=_optimizer_step(shape, work, trained),
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


def _optimizer_step(shape: ModelShape, work: Workload, trained: int) -> int:
    """What AdamW takes beside what it holds; an fp32 weight is stepped where it is."""
    if work.item == 4:
        return 4 * trained
    chunk = min(trained, CHUNK_NUMBERS)
    freed = chunk if _largest_tensor(shape, work) <= chunk else 0
    return work.item * (trained - freed) + 8 * chunk


def _largest_tensor(shape: ModelShape, work: Workload) -> int:
    """Numbers of the largest tensor that is trained."""
    if work.adapter is not None:
        return work.adapter.rank * max(
            max(linear.inputs, linear.outputs) for linear in shape.adapted(work.adapter)
        )
    return max(shape.embedding_parameters, *(each.parameters for each in shape.linears()))
