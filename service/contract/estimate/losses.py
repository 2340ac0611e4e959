"""What each loss takes at its peak, forward and backward: logits, work space and its gradients.

N rows, V vocabulary, D width, s bytes of a number of the compute dtype; dE = s N D and, where the
head is trained, dC = s V D are the gradients that the loss hands on.

    full_logits           three fp32 copies of the logits, 12 N V: log-probabilities, the gradient
                          that comes in and the one that goes out; with a softcap its tanh is kept
                          too, 16 N V. Later, while dE and dC are made, no more is held than before.
    compiled_full_logits  one copy in the compute dtype, s N V, in whose place its gradient comes
    chunked               full_logits for 1024 rows at a time, and dE and dC beside
    cce, triton           19 KiB a row, the kernels' budget, or what the exact backward needs where
                          that is more: the rows that count, dE's lower byte, the filter's masses
                          and 512 columns of logits, N (3 D + V / 64 + 1024), with a frozen head
                          twice as many; and dE, dC
    cce, blocked          a tile of logits, two more of them with a softcap; of a 16-bit head a
                          slice of dC in fp32; and in the order of time the operand, dE in fp32
                          and its copies; the rows are those that are supervised, but for the
                          last copies

The reference of `cce_core` is full logits. All but ours cut their rows out of the sequences, which
copies them where B > 1, s N D; full logits keep the copy only for the gradient of a trained head.
"""

from service.contract.estimate.model import ModelShape
from service.contract.estimate.workload import Workload
from service.contract.memory import LossName

LOSSES: tuple[LossName, ...] = ("full_logits", "compiled_full_logits", "chunked", "cce")
_CHUNK_ROWS = 1024
_ROW_BYTES = 19 * 2**10
_EXACT_COLUMNS = 512
# A tile of the blocked implementation, and the narrowest it gets.
_TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
_NARROWEST = 256


def gradient_bytes(shape: ModelShape, work: Workload) -> int:
    """DE and, where the head is trained, dC: what a loss hands on."""
    return work.item * (work.tokens * shape.hidden_size + head_numbers(shape, work))


def head_numbers(shape: ModelShape, work: Workload) -> int:
    """Numbers of the head's gradient."""
    return shape.embedding_parameters if work.full else 0


def loss_bytes(shape: ModelShape, work: Workload, loss: LossName) -> int:
    """The peak of a loss, its gradients included."""
    n, s, d, v = work.tokens, work.item, shape.hidden_size, shape.vocab_size
    gradients = gradient_bytes(shape, work)
    copy = n * s * d if work.micro_batch > 1 else 0
    kept = copy if work.full else 0
    full = 16 if shape.softcap is not None else 12
    if loss == "compiled_full_logits":
        return kept + n * s * v + gradients
    if loss == "chunked":
        return copy + min(n, _CHUNK_ROWS) * full * v + gradients
    if loss == "full_logits" or work.implementation == "reference":
        return kept + max(n * full * v, n * (4 + s) * v + gradients)
    if work.implementation == "triton":
        columns = _EXACT_COLUMNS * (1 if work.full else 2)
        return n * max(_ROW_BYTES, 3 * d + v // 64 + 2 * columns) + gradients
    return _blocked(shape, work)


def layer_bytes(shape: ModelShape, work: Workload, loss: LossName) -> int:
    """The peak of a loss above its inputs and its gradients: the ledger's figure."""
    return loss_bytes(shape, work, loss) - gradient_bytes(shape, work)


def _blocked(shape: ModelShape, work: Workload) -> int:
    n = work.tokens if work.supervised is None else max(1, work.supervised)
    s, d, v = work.item, shape.hidden_size, shape.vocab_size
    tile = _TILE_BYTES[work.device]
    columns = min(max(tile // 4 // n, _NARROWEST), v)
    tile = min(tile, 4 * n * columns)
    operand = 4 if work.device == "cpu" else s
    widened = 4 * columns * d if operand > s else 0  # the tile's rows of the head
    head = s * head_numbers(shape, work) + (4 * columns * d if work.full and s < 4 else 0)
    products = n * (operand + 4) * d + max(widened, 2 * tile if shape.softcap is not None else 0)
    end = n * (operand + 4 + (s if s < 4 else 0)) * d + work.tokens * 2 * s * d
    return tile + head + max(products, end)
