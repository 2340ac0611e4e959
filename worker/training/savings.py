"""What the job's loss saves against each baseline: in its layer, in a pass, in the micro-batch."""

from service.contract.memory import Figure, LossMemory, Saving


def savings(losses: list[LossMemory]) -> list[Saving]:
    """Ours against each baseline that has a figure to compare with."""
    ours = next(entry for entry in losses if entry.loss == "cce")
    if ours.loss_layer.provenance == "out_of_memory":
        return []
    return [
        _saving(ours, entry)
        for entry in losses
        if entry is not ours and entry.loss_layer.provenance != "out_of_memory"
    ]


def _saving(ours: LossMemory, baseline: LossMemory) -> Saving:
    layers = baseline.loss_layer.bytes, max(1, ours.loss_layer.bytes)
    whole = _measured(baseline.step), _measured(ours.step)
    steps = (whole[0], max(1, whole[1])) if whole[0] is not None and whole[1] is not None else None
    return Saving(
        baseline=baseline.loss,
        loss_layer_bytes=layers[0] - layers[1],
        loss_layer_ratio=layers[0] / layers[1],
        step_bytes=steps[0] - steps[1] if steps else None,
        step_ratio=steps[0] / steps[1] if steps else None,
        micro_batch_ratio=_batch_ratio(ours, baseline),
    )


def _batch_ratio(ours: LossMemory, baseline: LossMemory) -> float | None:
    mine, theirs = ours.largest_micro_batch, baseline.largest_micro_batch
    if mine is None or theirs is None or theirs.sequences == 0:
        return None
    return mine.sequences / theirs.sequences


def _measured(figure: Figure | None) -> int | None:
    return figure.bytes if figure is not None and figure.provenance == "measured" else None
