"""Loss and token accuracy on the validation file."""

from dataclasses import dataclass

import torch

from worker.training.session import Session


@dataclass(frozen=True)
class Evaluation:
    """Means over the predictions of the validation file."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(session: Session) -> Evaluation:
    """Run the model over the validation file, in micro-batches, without dropout."""
    model, rows = session.run.model, session.data.validation
    loss, correct, supervised = 0.0, 0, 0
    model.eval()
    for batch in session.data.batches(rows, session.resolved.micro_batch_size):
        held = batch.to(session.device)
        output = session.loss_of(session.hidden(held), held)
        loss += float(output.loss)
        correct += int(output.correct.sum())
        supervised += batch.supervised
    model.train()
    return Evaluation(loss / supervised, correct / supervised)
