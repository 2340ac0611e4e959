"""What transformers keeps of a forward pass for the backward, and what the backward takes beside.

Counted tensor by tensor as autograd saves them (the tests compare with its own hooks). Bytes of one
decoder layer; N = B T tokens, s bytes of an activation, D, I, Q, K as in `model.py`, H heads.

    norm            x in fp32 4 D, its inverse norm 4; if trained also the normalized x: s D for
                    llama's, 4 D for gemma's, which multiplies in fp32
    linear          its input, if its weight is trained or adapted; neighbours share theirs
    adapter         the narrow product s r; with dropout each keeps its own input and a mask,
                    of bytes on CUDA and of s on CPU
    attention       fused: q, k, v and the output, and 4 H for the log-sum-exp
                    fused with a mask: k and v repeated to all heads, and the mask, B T^2 s
                    eager: q, k, v repeated, and B H T^2 scores: softmax in fp32, its cast to the
                    compute dtype where that is another, and tanh where they are capped
    MLP             gate, its activation, up: s I each; the product as the input of `down`

With checkpointing a layer keeps its input, s D, and all of the above exists for one layer at a
time. What a layer's backward takes beside is its largest moment, either of the two:

    MLP             the gradient of the output s D, and at the product gate * up, whose own saved
                    input is gone, three gradients of width I
    eager softmax   the gradient in and out in fp32, 8 B H T^2, on CUDA its product with the softmax
                    too, 4 B H T^2, less the cast scores; by then the MLP and its norms are gone
"""

from service.contract.estimate.model import ModelShape
from service.contract.estimate.workload import Workload

_MASK_BYTES = 1  # torch's bool


def layer_bytes(shape: ModelShape, work: Workload) -> int:
    """Saved by one decoder layer without checkpointing."""
    return _attention_half(shape, work) + _mlp_half(shape, work)


def saved_bytes(shape: ModelShape, work: Workload) -> int:
    """Saved by all layers, the final norm and the rotary tables; the hidden states included."""
    n, s, d = work.tokens, work.item, shape.hidden_size
    rotary, end = n * 2 * s * shape.head_dim, end_bytes(shape, work)
    if not work.checkpointing:
        return rotary + shape.layers * layer_bytes(shape, work) + end
    return rotary + _masks(shape, work) + shape.layers * n * s * d + end


def end_bytes(shape: ModelShape, work: Workload) -> int:
    """Saved above the layers: by the final norm, and the hidden states that the loss sees."""
    return _norm(shape, work, shape.hidden_size) + work.tokens * work.item * shape.hidden_size


def recomputed_bytes(shape: ModelShape, work: Workload) -> int:
    """Saved by a layer that is computed again; in fp32 its first norm's x is the layer's input."""
    if not work.checkpointing:
        return 0
    shared = work.tokens * 4 * shape.hidden_size if work.item == 4 else 0
    return layer_bytes(shape, work) - shared


def attention_bytes(shape: ModelShape, work: Workload) -> int:
    """Saved by the attention of one layer, between its linear layers."""
    fused = kernel(shape, work) == "fused"
    return _fused(shape, work) if fused else _scores(shape, work)


def working_bytes(shape: ModelShape, work: Workload) -> int:
    """What the backward of a layer takes beside what the layer saved, at its largest moment.

    It is counted from what the layer saved in all, with checkpointing too.
    """
    n, s = work.tokens, work.item
    gradient = n * s * shape.hidden_size
    largest = gradient + n * 2 * s * shape.intermediate_size
    if kernel(shape, work) != "fused":
        scores = work.micro_batch * shape.heads * work.seq_length**2
        softmax = scores * ((12 if work.device == "cuda" else 8) - (s if s < 4 else 0))
        largest = max(largest, gradient + softmax - _mlp_half(shape, work))
    return largest


def kernel(shape: ModelShape, work: Workload) -> str:
    """How attention runs: `fused`, `eager`, or `math`, torch's own unfused kernel.

    On CUDA only bf16 has a fused kernel for fewer key heads than query heads; a mask makes
    transformers repeat the key heads, and then fp32 has one too.
    """
    if shape.family.attention == "eager":
        return "eager"
    grouped = shape.kv_heads < shape.heads
    if work.device == "cuda" and work.item == 4 and grouped and not _masked(shape, work):
        return "math"
    return "fused"


def _attention_half(shape: ModelShape, work: Workload) -> int:
    """A layer's attention with the norms around it and the inputs of its linear layers."""
    n, s, d = work.tokens, work.item, shape.hidden_size
    norms = shape.family.norms // 2 * _norm(shape, work, d)
    if shape.family.head_norms:
        norms += _norm(shape, work, shape.q, groups=shape.heads)
        norms += _norm(shape, work, shape.kv, groups=shape.kv_heads)
    inputs = _inputs(shape, work, "q_proj", "k_proj", "v_proj")
    output = _inputs(shape, work, "o_proj")
    if output and not work.dropout and kernel(shape, work) == "fused":
        output -= n * s * shape.q  # the kernel keeps its output, which is that input
    return norms + inputs + output + attention_bytes(shape, work)


def _mlp_half(shape: ModelShape, work: Workload) -> int:
    n, s = work.tokens, work.item
    norms = shape.family.norms // 2 * _norm(shape, work, shape.hidden_size)
    inputs = _inputs(shape, work, "gate_proj", "up_proj")
    inputs += _inputs(shape, work, "down_proj")
    return norms + inputs + n * 3 * s * shape.intermediate_size


def _norm(shape: ModelShape, work: Workload, width: int, groups: int = 1) -> int:
    """A norm of `width` numbers a token, each of its `groups` by itself."""
    trained = work.item if shape.family.norm == "llama" else 4
    return work.tokens * (4 * width + 4 * groups + (trained * width if work.full else 0))


def _fused(shape: ModelShape, work: Workload) -> int:
    n, s = work.tokens, work.item
    heads = n * 4 * shape.heads
    if not _masked(shape, work):
        return n * s * (2 * shape.q + 2 * shape.kv) + heads
    mask = work.micro_batch * work.seq_length**2 * s
    return n * s * (2 * shape.q + 2 * _repeated(shape, copied=False)) + heads + mask


def _scores(shape: ModelShape, work: Workload) -> int:
    n, s = work.tokens, work.item
    scores = work.micro_batch * shape.heads * work.seq_length**2
    capped = s if shape.attention_softcap is not None else 0
    cast = s if s < 4 else 0
    keys = _repeated(shape, copied=work.micro_batch > 1)
    return n * s * (shape.q + 2 * keys) + scores * (4 + cast + capped)


def _repeated(shape: ModelShape, *, copied: bool) -> int:
    """Width of the keys of all heads; a single key head is repeated by a view, unless `copied`."""
    return shape.kv if shape.kv_heads == 1 and not copied else shape.q


def _masks(shape: ModelShape, work: Workload) -> int:
    """The masks that checkpointed layers are given again."""
    square = work.micro_batch * work.seq_length**2
    if shape.family.attention == "eager":
        return square * work.item * (2 if shape.window else 1)
    return square * _MASK_BYTES if _masked(shape, work) else 0


def _masked(shape: ModelShape, work: Workload) -> bool:
    return work.masked or (shape.window is not None and work.seq_length >= shape.window)


def _inputs(shape: ModelShape, work: Workload, *names: str) -> int:
    """Inputs that the linear layers of these names keep; neighbours have one between them."""
    n, s = work.tokens, work.item
    linears = shape.linears() if work.adapter is None else shape.adapted(work.adapter)
    chosen = [linear for linear in linears if linear.name.endswith(names)]
    if not chosen:
        return 0
    narrow = 0 if work.adapter is None else n * s * work.adapter.rank * len(chosen)
    if not work.dropout:
        return narrow + n * s * chosen[0].inputs
    mask = 1 if work.device == "cuda" else s
    return narrow + sum(n * (s + mask) * linear.inputs for linear in chosen)
