"""What earlier jobs of a model have shown about its data and its speed."""

from collections.abc import Iterable
from statistics import median

from service.contract.device import Device
from service.contract.files import FileRecord
from service.contract.job import JobRecord
from service.contract.spec import ResolvedOptions, TrainingOptions
from service.estimate_schemas import DataEstimate

# English in a vocabulary of today has four bytes a token; code and most other scripts have fewer,
# and the longest row decides about memory.
_BYTES_PER_TOKEN = 4
_LONGEST_BYTES_PER_TOKEN = 3


def data_size(file: FileRecord, past: Iterable[JobRecord], max_length: int) -> DataEstimate:
    """The tokens of a training file: counted, if a past job of its model has; else by its bytes."""
    for job in past:
        if job.spec.training_file == file.id and job.data is not None:
            size = job.data
            return DataEstimate(
                examples=size.examples, tokens=size.tokens, longest=size.longest, basis="tokenized"
            )
    longest = -(-(file.longest_row_bytes or file.bytes) // _LONGEST_BYTES_PER_TOKEN)
    return DataEstimate(
        examples=file.rows or 1,
        tokens=-(-file.bytes // _BYTES_PER_TOKEN),
        longest=min(max_length, longest),
        basis="bytes",
    )


def tokens_per_s(
    past: Iterable[JobRecord], options: TrainingOptions, resolved: ResolvedOptions, device: Device
) -> float | None:
    """The median speed of past jobs that did the same kind of work on such a device."""
    speeds = [
        job.progress.tokens_per_s
        for job in past
        if job.resolved is not None
        and job.progress is not None
        and job.progress.tokens_per_s is not None
        and job.progress.device == device.name
        and job.spec.options.packing == options.packing
        and job.spec.options.adapter == options.adapter
        and job.resolved.dtype == resolved.dtype
        and job.resolved.gradient_checkpointing == resolved.gradient_checkpointing
    ]
    return median(speeds) if speeds else None
