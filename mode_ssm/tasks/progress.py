"""A progress bar for long work over many things."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(name: str, total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)`. Nothing is shown where it is not `enabled`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not enabled) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
