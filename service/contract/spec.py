"""What a caller asks of a job: hyperparameters, training options, and their resolved values.

Names and ranges of `Hyperparameters` are the OpenAI wire format's; `TrainingOptions` are
Headroom's documented extension fields, sent beside them at the top level of the body.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from service.contract.device import DeviceKind
from service.contract.memory import LossName

Auto = Literal["auto"]
LrScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
DtypeName = Literal["float32", "bfloat16"]
LossImplementation = Literal["auto", "reference", "blocked", "triton"]
LossPreset = Literal["default", "exact"]
Trained = Literal["full", "lora"]
Purpose = Literal["fine-tune", "fine-tune-results"]
DataFormat = Literal["chat", "text"]
_ModuleName = Annotated[str, Field(min_length=1, max_length=256)]


class Options(BaseModel):
    """Base of the option objects: immutable, and strict about types, names and finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Hyperparameters(Options):
    """The OpenAI hyperparameters of supervised fine-tuning."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto", description="Sequences per optimizer step. auto: see `max_auto_batch_size`."
    )
    # The wire format has no bounds; within these, the rate stays in the range of `learning_rate`.
    learning_rate_multiplier: Auto | Annotated[float, Field(ge=1e-3, le=1e3)] = Field(
        "auto", description="Factor on the automatic learning rate. auto: 1."
    )
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field(
        "auto", description="Passes over the training file. auto: 3, fewer for large files."
    )


class LoraAdapter(Options):
    """Low-rank adapters on the linear layers; the base weights stay frozen."""

    type: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[list[_ModuleName], Field(min_length=1)] = Field(
        "all-linear", description="Module names to adapt, or every linear layer but the head."
    )


class LossOptions(Options):
    """Which implementation of the loss runs, and how exact its backward is."""

    implementation: LossImplementation = Field(
        "auto",
        description="auto: the Triton kernels on CUDA in bfloat16, else blocked tiles of logits.",
    )
    preset: LossPreset = Field(
        "default", description="default: filtered backward with a known error; exact: no filter."
    )


class TrainingOptions(Options):
    """Headroom's extension fields of a job, each with its documented default."""

    learning_rate: Auto | Annotated[float, Field(gt=0, lt=1)] = Field(
        "auto",
        description="Peak learning rate. auto: 2e-5 in full, 2e-4 with LoRA, times the multiplier.",
    )
    max_seq_length: Auto | Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        "auto", description="Tokens a sequence. auto: the model's context, at most 4096."
    )
    packing: bool = Field(
        default=False, description="Several examples share a sequence, kept apart by position ids."
    )
    gradient_accumulation_steps: Auto | PositiveInt = Field(
        "auto",
        description="Micro-batches an optimizer step; it divides batch_size. auto: as many as "
        "micro_batch_size makes of it.",
    )
    micro_batch_size: Auto | PositiveInt = Field(
        "auto",
        description="Sequences at once, at most batch_size, which stays what it is. auto: on CUDA "
        "the largest that fits, found by estimate and a few tries; on CPU batch_size.",
    )
    gradient_checkpointing: Auto | bool = Field(
        "auto", description="Recompute activations in backward. auto: on CUDA, off on CPU."
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    lr_scheduler: LrScheduler = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dtype: Auto | DtypeName = Field(
        "auto", description="Compute dtype. auto: bfloat16 on CUDA, float32 on CPU."
    )
    adapter: LoraAdapter | None = Field(
        None, description="None for full fine-tuning, or a LoRA adapter."
    )
    loss: LossOptions = LossOptions()
    checkpoint_every: Auto | PositiveInt = Field(
        "auto", description="Optimizer steps between checkpoints. auto: a tenth of the job."
    )
    memory_ledger: bool = Field(
        default=True, description="Measure the loss layer against the baselines at job start."
    )


Item = TypeVar("Item", int, str)


def _each_once(items: list[Item]) -> list[Item]:
    if len({*items}) < len(items):
        raise ValueError("Each may be named once")
    return items


_UNIQUE = AfterValidator(_each_once), Field(min_length=1, json_schema_extra={"uniqueItems": True})


class ComparisonOptions(Options):
    """What a comparison runs: each loss at each batch size, for the same steps from one start."""

    losses: Auto | Annotated[list[LossName], *_UNIQUE] = Field(
        "auto", description="auto: all; compiled_full_logits on CUDA alone."
    )
    batch_sizes: Annotated[
        list[Annotated[int, Field(ge=1, le=256)]], *_UNIQUE, Field(max_length=8)
    ] = Field([1, 2, 4, 8], description="Sequences per optimizer step, worked on at once.")
    steps: Annotated[int, Field(ge=4, le=10_000)] = Field(
        20, description="Optimizer steps of each loss at each batch size."
    )


class JobSpec(Options):
    """A fine-tuning job, or a comparison, as asked for; immutable once created."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    hyperparameters: Hyperparameters = Hyperparameters()
    options: TrainingOptions = TrainingOptions()
    metadata: dict[str, str] = {}
    comparison: ComparisonOptions | None = None

    @property
    def files(self) -> list[str]:
        """Ids of the files that the job needs."""
        return [each for each in (self.training_file, self.validation_file) if each is not None]

    @property
    def needs(self) -> list[str]:
        """Ids of the model and the files."""
        return [self.model, *self.files]


class ResolvedOptions(Options):
    """The values that the trainer uses, every "auto" resolved; echoed on the job.

    Attributes:
        device: What the job runs on.
        trained: All weights, or an adapter: a new one, or the one that the job's model is.
    """

    device: DeviceKind
    trained: Trained
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    n_epochs: PositiveInt
    learning_rate_multiplier: float
    learning_rate: float
    max_seq_length: PositiveInt
    gradient_checkpointing: bool
    dtype: DtypeName
    loss_implementation: Literal["reference", "blocked", "triton"]
    checkpoint_every: PositiveInt
    total_steps: PositiveInt
