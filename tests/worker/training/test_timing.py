import time
from collections.abc import Callable

import torch

from tests.worker.training.support import Outcome, chats
from worker.events import Phases
from worker.training.timing import StepClock


def test_the_second_to_fourth_step_are_timed_phase_by_phase() -> None:
    clock, results = StepClock(torch.device("cpu")), []
    for step in range(1, 7):
        clock.start_step()
        for name in ("data", "forward", "loss", "backward", "backward", "optimizer"):
            with clock.phase(name):
                time.sleep(0.2 if step == 1 else 0.002)
        results.append(clock.result())
    (phases,) = [result for result in results if result is not None]
    assert results.index(phases) == 3
    assert phases.steps == 3
    assert 0.002 <= phases.data < 0.2
    assert phases.backward > 1.5 * 0.002  # it came twice a step


def test_a_job_tells_once_where_its_time_goes(run: Callable[..., Outcome]) -> None:
    outcome = run(chats(8), hyperparameters={"batch_size": 1}, gradient_accumulation_steps=1)
    phases = outcome.one(Phases).phases
    seconds = phases.model_dump(exclude={"steps"})
    assert all(0 < value < 10 for value in seconds.values()), seconds
    assert run(chats(3), hyperparameters={"batch_size": 1}).of(Phases) == []  # too short
