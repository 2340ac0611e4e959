"""How an estimate looks in a terminal: what is trained on, then a table for each kind of device."""

from rich.console import Group
from rich.text import Text

from service.contract.units import size
from service.display import LOSSES, duration
from service.estimate_schemas import DeviceEstimate, Estimate, LossEstimate
from service.figure_table import FigureTable


def estimate_view(estimate: Estimate) -> Group:
    """All that is predicted."""
    return Group(_job_line(estimate), *map(_device_view, estimate.devices))


def _job_line(estimate: Estimate) -> Text:
    data, about = estimate.data, "" if estimate.data.basis == "tokenized" else "about "
    return Text(
        f"{estimate.model}: {estimate.parameters:,} parameters, of which"
        f" {estimate.trained_parameters:,} are trained\n"
        f"{data.examples:,} examples, the longest of {about}{data.longest:,} tokens;"
        f" {estimate.total_steps:,} steps over {about}{estimate.trained_tokens:,} tokens"
    )


def _device_view(device: DeviceEstimate) -> Group:
    heads = ("loss layer", "peak of a step", "at its", "largest micro-batch")
    table = FigureTable("loss", figures=heads)
    for loss in device.losses:
        table.add_line(*_row(loss))
    return Group(Text(f"\n{_title(device)}", "bold"), table, _footnote(device))


def _title(device: DeviceEstimate) -> str:
    resolved = device.resolved
    step = (
        f"{resolved.micro_batch_size} of {resolved.batch_size} sequences at once, {resolved.dtype}"
        + (", gradient checkpointing" if resolved.gradient_checkpointing else "")
    )
    if device.device is None:
        return f"A GPU, since no worker is alive: {step}"
    fits = "fits" if device.fits else "does not fit"
    room = size(device.usable_bytes or 0)
    return f"{device.device.name} ({', '.join(device.workers)}): {step}; {fits} in {room}"


def _row(loss: LossEstimate) -> tuple[str, ...]:
    largest = "-" if loss.largest_micro_batch is None else f"{loss.largest_micro_batch:,}"
    layer, peak = size(loss.loss_layer_bytes), size(loss.peak_bytes)
    return LOSSES[loss.loss], layer, peak, loss.peak_at, largest


def _footnote(device: DeviceEstimate) -> Text:
    """What the peak consists of, and the time; prose, which wraps where tables must not."""
    parts = device.components.model_dump()
    held = ", ".join(f"{name.replace('_', ' ')} {size(count)}" for name, count in parts.items())
    time = "unknown" if device.seconds == "unknown" else duration(device.seconds)
    told = f"Predicted: {held}.\nTime: {time}."
    if device.multiple is not None:
        told += f" The micro-batch can be {device.multiple:.1f} times that of full logits."
    return Text(told, "dim", overflow="fold", no_wrap=False)
