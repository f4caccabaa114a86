"""Plans in steps, batch positions, and one-line errors for phases that cannot be run."""

import re
from dataclasses import replace
from typing import Any

import pytest
from toy_task import MODULES, phase

from mode_ssm.config import CurriculumConfig, LossWeights, LrMultipliers, PhaseConfig
from mode_ssm.train.curriculum import batch_position, batch_stream, check_curriculum, resolve_curriculum


def curriculum(**phases: PhaseConfig) -> CurriculumConfig:
    return CurriculumConfig(phases=phases)


def test_epochs_and_steps_become_places_in_the_run() -> None:
    plan = resolve_curriculum(
        curriculum(
            a=phase("encoder", ctc=1.0, epochs=1.5, evaluate_every_epochs=0.5),
            b=phase("encoder", ctc=1.0, steps=7),
            c=phase("encoder", ctc=1.0, epochs=0.001),
        ),
        steps_per_epoch=[10, 10, 8],
        accumulation=4,
    )
    assert [(p.name, p.steps, p.start_step, p.start_epoch) for p in plan] == [
        ("a", 4, 0, 0),  # 15 batches at 4 a step are 3.75 steps
        ("b", 7, 4, 2),  # a used epochs 0 and 1
        ("c", 1, 11, 5),  # b used 28 batches: epochs 2, 3 and 4
    ]
    assert [p.epochs for p in plan] == [1.6, 2.8, 0.5]
    assert [p.evaluate_every for p in plan] == [1, None, None]


class CountingLoader:
    steps_per_epoch = 3

    def epoch(self, epoch: int, start_batch: int = 0) -> Any:
        return iter([(epoch, batch) for batch in range(start_batch, 3)])


def test_the_stream_of_a_phase_crosses_epochs_and_can_start_anywhere() -> None:
    plan = resolve_curriculum(curriculum(a=phase("encoder", ctc=1.0, steps=9)), [3], accumulation=1)[0]
    plan = replace(plan, start_epoch=5)
    stream = batch_stream(CountingLoader(), plan, 0)
    expected = [(5, 0), (5, 1), (5, 2), (6, 0), (6, 1), (6, 2), (7, 0)]
    assert [next(stream) for _ in range(7)] == expected
    for start in range(7):
        assert next(batch_stream(CountingLoader(), plan, start)) == expected[start] == batch_position(plan, start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "curriculum.phases.x.epochs: set epochs or steps"),
        ({"epochs": 2.0}, "curriculum.phases.x.epochs=2.0 and steps=3: set one of them, the other to null"),
        ({"steps": 0}, "curriculum.phases.x.steps=0 must be above 0"),
        ({"steps": None, "epochs": -1.0}, "curriculum.phases.x.epochs=-1.0 must be above 0"),
        ({"train": []}, "curriculum.phases.x.train is empty: name at least one of "),
        ({"train": ["encodr"]}, "curriculum.phases.x.train names encodr, which the model lacks; did you mean encoder?"),
        ({"train": ["encoder", "encoder"]}, "curriculum.phases.x.train names a module twice: encoder, encoder"),
        ({"loss": LossWeights()}, "curriculum.phases.x.loss has no term above 0; terms: ctc, rnnt, "),
        ({"loss": LossWeights(ctc=-1.0)}, "curriculum.phases.x.loss.ctc=-1.0 must be a number of 0 or more"),
        ({"lr_multipliers": LrMultipliers(encoder=0.0)}, "lr_multipliers.encoder=0.0 must be above 0; to freeze it"),
        ({"patience": 2}, "curriculum.phases.x.patience=2 needs evaluate_every_epochs, which is null"),
        ({"evaluate_every_epochs": 0.0}, "evaluate_every_epochs=0.0 must be above 0"),
    ],
)
def test_a_faulty_phase_is_named_with_key_and_alternatives(changes: dict[str, Any], message: str) -> None:
    good = phase("encoder", ctc=1.0, steps=3)
    check_curriculum(curriculum(x=good), MODULES)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        check_curriculum(curriculum(x=replace(good, **changes)), MODULES)
    assert "\n" not in str(error.value)


def test_all_faults_come_in_one_error() -> None:
    bad = phase("encodr", steps=3)
    with pytest.raises(ValueError, match=r"phases.one.train.*phases.one.loss.*phases.two.train.*phases.two.loss"):
        check_curriculum(curriculum(one=bad, two=bad), MODULES)


def test_an_empty_curriculum_and_too_few_trials_are_refused() -> None:
    with pytest.raises(ValueError, match=r"curriculum\.phases is empty"):
        check_curriculum(curriculum(), MODULES)
    with pytest.raises(ValueError, match=r"phases\.a: the training data does not fill one batch"):
        resolve_curriculum(curriculum(a=phase("encoder", ctc=1.0, steps=1)), [0], 1)
    with pytest.raises(ValueError, match=r"optim\.accumulation=0 must be 1 or more"):
        resolve_curriculum(curriculum(a=phase("encoder", ctc=1.0, steps=1)), [3], 0)
