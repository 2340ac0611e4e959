"""A run's forecast of its own memory: told before the first step, scored after the last."""

from service.contract.estimate.record import JobEstimate
from worker.events import Estimated
from worker.training.meter import PeakMeter
from worker.training.prediction import Prediction, predict, scored
from worker.training.session import Session


class Forecast:
    """What a session is predicted to take from a step on, and the meter that will tell.

    Attributes:
        meter: To be shown every step.
    """

    def __init__(self, session: Session, first_step: int) -> None:
        self._reporter = session.reporter
        self._prediction: Prediction | None = predict(session, first_step)
        watched = None if self._prediction is None else self._prediction.step
        self.meter = PeakMeter(session.run, session.device, watched)
        if self._prediction is not None:
            self._reporter.send(Estimated(estimate=self._prediction.estimate()))

    def score(self) -> JobEstimate | None:
        """Compare with what the steps took, and tell; None where nothing was predicted."""
        if self._prediction is None:
            return None
        estimate = self._prediction.estimate()
        if (measured := self.meter.result()) is not None:
            estimate = scored(estimate, *measured)
            self._reporter.send(Estimated(estimate=estimate))
        return estimate
