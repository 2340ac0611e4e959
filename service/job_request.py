"""The body that creates a fine-tuning job: OpenAI's fields and Headroom's, beside each other."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from service.contract.spec import Hyperparameters, JobSpec, Options, TrainingOptions

_MAX_PAIRS = 16
_Key = Annotated[str, StringConstraints(max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]
# It becomes a part of the model's id, between colons.
_Suffix = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Supervised(Options):
    """The options of supervised fine-tuning."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Options):
    """How to fine-tune; Headroom does supervised fine-tuning."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Supervised()

    @field_validator("type", mode="before")
    @classmethod
    def _is_supported(cls, value: Any) -> Any:
        if value in ("dpo", "reinforcement"):  # no set: the value may be one that has no hash
            raise ValueError(f"Method {value!r} is not supported; expected 'supervised'")
        return value


class JobCreate(TrainingOptions):
    """A request for a fine-tuning job.

    The fields of the OpenAI wire format come with their names and ranges; all others are
    Headroom's extension fields, sent at the top level (`extra_body` of the openai client).
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tiny-llama",
                    "training_file": "file-0193f2d0c1aa",
                    "suffix": "support-bot",
                    "method": {
                        "type": "supervised",
                        "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 16}},
                    },
                    "learning_rate": 1e-4,
                    "adapter": {"type": "lora", "rank": 16},
                    "metadata": {"team": "support"},
                }
            ]
        }
    )

    model: ModelName = Field(description="A base model of `GET /v1/models`, or a fine-tuned one.")
    training_file: FileId = Field(description="Id of a file with purpose `fine-tune`.")
    validation_file: FileId | None = Field(
        None, description="Id of a file with purpose `fine-tune`, to evaluate on."
    )
    suffix: _Suffix | None = Field(None, description="A part of the fine-tuned model's name.")
    seed: Seed | None = Field(None, description="Random where it is not given.")
    metadata: Annotated[dict[_Key, _Value], Field(max_length=_MAX_PAIRS)] | None = Field(
        None, description="Up to 16 pairs; the list of jobs can be filtered by them."
    )
    method: Method | None = Field(None, description="How to fine-tune, and its hyperparameters.")
    hyperparameters: Hyperparameters | None = Field(
        None, deprecated="Use `method.supervised.hyperparameters`."
    )
    integrations: list[Any] | None = Field(
        None,
        description="Not supported: only null or an empty list is accepted.",
        json_schema_extra={"maxItems": 0},
    )

    @field_validator("integrations")
    @classmethod
    def _no_integrations(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError("Integrations are not supported; leave them out, or send none")
        return value

    @model_validator(mode="after")
    def _hyperparameters_once(self) -> Self:
        if self.method is not None and self.__dict__["hyperparameters"] is not None:
            raise ValueError("`method` and the deprecated `hyperparameters` exclude each other")
        return self

    def spec(self, seed: int) -> JobSpec:
        """The job that is asked for, with `seed` where the request names none."""
        options = {name: getattr(self, name) for name in TrainingOptions.model_fields}
        return JobSpec(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            seed=seed if self.seed is None else self.seed,
            hyperparameters=self._hyperparameters(),
            options=TrainingOptions(**options),
            metadata=self.metadata or {},
        )

    def _hyperparameters(self) -> Hyperparameters:
        if self.method is not None:
            return self.method.supervised.hyperparameters
        # Not by name: that would warn of the field's deprecation, which is the caller's to hear.
        deprecated: Hyperparameters | None = self.__dict__["hyperparameters"]
        return deprecated or Hyperparameters()
