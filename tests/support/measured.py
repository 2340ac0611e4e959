"""What a job measures and resolves, as a trainer tells it: the same values for every test."""

from service.contract.estimate.record import ComponentBytes, JobEstimate, MicroBatch
from service.contract.memory import Figure, LossMemory, MemoryLedger, Saving, StepPhases
from service.contract.receipt import FilteredMass, NumericsReceipt
from service.contract.spec import ResolvedOptions

TOTAL_STEPS = 240
MIB = 1 << 20

LEDGER = MemoryLedger(
    device="cpu",
    method="allocator bytes",
    micro_batch_size=4,
    seq_length=256,
    tokens=812,
    vocab_size=32_768,
    hidden_size=256,
    dtype="float32",
    losses=[
        LossMemory(
            loss="full_logits",
            loss_layer=Figure(bytes=305 * MIB, provenance="measured"),
            step=Figure(bytes=612 * MIB, provenance="measured"),
        ),
        LossMemory(
            loss="compiled_full_logits",
            loss_layer=Figure(bytes=203 * MIB, provenance="modelled", formula="two_logits"),
        ),
        LossMemory(
            loss="chunked",
            loss_layer=Figure(bytes=77 * MIB, provenance="measured"),
            step=Figure(bytes=381 * MIB, provenance="measured"),
        ),
        LossMemory(
            loss="cce",
            loss_layer=Figure(bytes=6 * MIB, provenance="measured"),
            step=Figure(bytes=309 * MIB, provenance="measured"),
        ),
    ],
    savings=[
        Saving(
            baseline="full_logits",
            loss_layer_bytes=299 * MIB,
            loss_layer_ratio=50.8,
            step_bytes=303 * MIB,
            step_ratio=1.98,
            micro_batch_ratio=9.0,
        ),
        Saving(
            baseline="chunked",
            loss_layer_bytes=71 * MIB,
            loss_layer_ratio=12.8,
            step_bytes=72 * MIB,
            step_ratio=1.23,
        ),
    ],
)

PHASES = StepPhases(steps=3, data=0.01, forward=0.06, loss=0.02, backward=0.1, optimizer=0.01)

ESTIMATE = JobEstimate(
    micro_batch_size=4,
    seq_length=256,
    components=ComponentBytes(
        weights=120 * MIB,
        optimizer=240 * MIB,
        gradients=120 * MIB,
        activations=310 * MIB,
        attention=40 * MIB,
        working=12 * MIB,
        optimizer_step=0,
    ),
    predicted_bytes=824 * MIB,
    predicted_at="last layer",
)
SCORED = ESTIMATE.model_copy(
    update={"measured_bytes": 800 * MIB, "error": 0.03, "method": "CPU allocator events"}
)

MICRO_BATCH = MicroBatch(
    size=4, chosen_by="probe", full_logits=1, provenance="measured", multiple=4.0
)

RECEIPT = NumericsReceipt(
    implementation="blocked",
    preset="default",
    rows=256,
    loss=10.4127,
    loss_reference=10.4128,
    loss_error=9.6e-6,
    hidden_grad_error=3.1e-6,
    head_grad_error=2.7e-6,
    tolerance=1e-3,
    filtered=[
        FilteredMass(
            step=0, p50=1.1e-3, p99=4.2e-2, error_p50=2.9e-3, error_max=2.9e-3, fallbacks=0
        )
    ],
    seed=1,
    training_file_sha256="0" * 64,
    resumed_from_step=None,
    versions={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.17.0"},
)

RESOLVED = ResolvedOptions(
    device="cpu",
    trained="full",
    batch_size=8,
    micro_batch_size=4,
    gradient_accumulation_steps=2,
    n_epochs=3,
    learning_rate_multiplier=1,
    learning_rate=2e-4,
    max_seq_length=256,
    gradient_checkpointing=False,
    dtype="float32",
    loss_implementation="blocked",
    checkpoint_every=24,
    total_steps=TOTAL_STEPS,
)
