"""The largest micro-batch that fits, modelled from the steps that were measured.

With S(n) the peak of a step at n sequences above all that does not depend on n, and `room` the
bytes that the device has beside that:

    linear_step          (room - fixed) / slope    the line through S at two micro-batches
    proportional_step    room n / S(n)             through one point: fixed is 0, which errs on the
                                                   side of fewer
"""

from service.contract.memory import LargestBatch
from worker.training.allocator import OutOfMemory, Peak


def largest_batch(steps: dict[int, Peak | OutOfMemory], room: int) -> LargestBatch | None:
    """The largest micro-batch within `room` bytes; None where no step did fit.

    What was measured stands: it is no smaller than one that fit, and smaller than one that did not.

    Args:
        steps: What a step took, by its number of sequences.
        room: Bytes for a step.
    """
    fit = {rows: step.bytes for rows, step in steps.items() if isinstance(step, Peak)}
    if not fit:
        return None
    most, least = max(fit), min(fit)
    slope, fixed = fit[most] / most, 0.0
    if most > least:
        slope = (fit[most] - fit[least]) / (most - least)
        fixed = max(0.0, fit[most] - slope * most)
    found = max(most, int((room - fixed) / max(1.0, slope)))
    failed = [rows for rows, step in steps.items() if isinstance(step, OutOfMemory)]
    return LargestBatch(
        sequences=min([found, *(rows - 1 for rows in failed)]),
        formula="linear_step" if most > least else "proportional_step",
        bytes_per_sequence=round(slope),
        fixed_bytes=round(fixed),
    )
