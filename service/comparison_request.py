"""The body that creates a comparison: what to compare, and the training options that bear on it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from service.contract.spec import (
    Auto,
    ComparisonOptions,
    DtypeName,
    JobSpec,
    LoraAdapter,
    LossOptions,
    TrainingOptions,
)
from service.job_request import FileId, ModelName, Seed


class ComparisonCreate(ComparisonOptions):
    """A request for a comparison of losses.

    Options that are a job's too have its names, ranges and defaults. The seed has a default of its
    own, so that a comparison that is made again is the same one.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tiny-llama",
                    "training_file": "file-0193f2d0c1aa",
                    "losses": ["full_logits", "cce"],
                    "batch_sizes": [1, 4, 16],
                    "steps": 20,
                }
            ]
        }
    )

    model: ModelName = Field(description="A base model of `GET /v1/models`, or a fine-tuned one.")
    training_file: FileId = Field(description="Id of a file with purpose `fine-tune`.")
    validation_file: FileId | None = Field(
        None, description="Id of a file with purpose `fine-tune`, to evaluate on at the end."
    )
    seed: Seed = Field(0, description="Of the order of the data and of dropout.")
    learning_rate: Auto | Annotated[float, Field(gt=0, lt=1)] = Field(
        "auto", description="Constant rate. auto: 2e-5 in full, 2e-4 with LoRA."
    )
    max_seq_length: Auto | Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        "auto", description="Tokens a sequence. auto: the model's context, at most 4096."
    )
    packing: bool = Field(
        default=False, description="Several examples share a sequence, kept apart by position ids."
    )
    gradient_checkpointing: Auto | bool = Field(
        "auto", description="Recompute activations in backward. auto: on CUDA, off on CPU."
    )
    dtype: Auto | DtypeName = Field(
        "auto", description="Compute dtype. auto: bfloat16 on CUDA, float32 on CPU."
    )
    adapter: LoraAdapter | None = Field(
        None, description="None for full fine-tuning, or a LoRA adapter."
    )
    loss: LossOptions = Field(LossOptions(), description="How `cce` is computed.")

    def spec(self, seed: int) -> JobSpec:  # noqa: ARG002 -- as `JobCreate` has it; ours has its own
        """The job that is asked for."""
        options = {
            name: getattr(self, name)
            for name in TrainingOptions.model_fields
            if name in ComparisonCreate.model_fields
        }
        asked = {name: getattr(self, name) for name in ComparisonOptions.model_fields}
        return JobSpec(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            seed=self.seed,
            options=TrainingOptions(**options),
            comparison=ComparisonOptions(**asked),
        )
