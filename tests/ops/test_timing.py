"""Functions are timed in turns."""

from collections.abc import Iterator
from contextlib import contextmanager

from mode_ssm.ops import timing
from mode_ssm.ops.timing import milliseconds


def test_medians_of_runs_in_turns(monkeypatch) -> None:
    order: list[str] = []
    durations = {"a": iter([9.0, 3.0, 1.0, 2.0]), "b": iter([0.0, 5.0, 5.0, 6.0])}

    def clock(function) -> float:
        function()
        return next(durations[order[-1]])

    monkeypatch.setattr(timing, "_cpu_time", clock)
    found = milliseconds({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3, warm_up=1)
    assert found == {"a": 2.0, "b": 5.0}
    assert "".join(order) == "abababab"


def test_what_is_around_a_function_is_entered_for_its_name() -> None:
    inside: list[str] = []
    seen: list[tuple[str, ...]] = []

    @contextmanager
    def around(name: str) -> Iterator[None]:
        inside.append(name)
        yield
        inside.pop()

    milliseconds({"x": lambda: seen.append(tuple(inside))}, repeats=1, warm_up=0, around=around)
    assert seen == [("x",)]
