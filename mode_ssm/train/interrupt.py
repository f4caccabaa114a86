"""Ctrl-C and SIGTERM: finish the step, save, say how to continue."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

# A launcher passes the terminal's Ctrl-C on to processes that already got it; that echo is not a second wish.
ECHO_SECONDS = 1.0


class Interrupted(RuntimeError):  # noqa: N818  (a wish, not an error)
    """A signal stopped the run after a whole step; everything is saved. `exit_code` is 128 + signal (130, 143)."""

    def __init__(self, signal_number: int, step: int, checkpoint: Path) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        self.checkpoint = checkpoint
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}, saved {checkpoint}; "
            "continue with resume=true"
        )


class StopSignals:
    """While entered, remembers SIGINT and SIGTERM instead of dying; a second Ctrl-C exits at once."""

    def __init__(self, announce: bool) -> None:
        self.received = 0  # signal number, 0 while none came
        self._announce = announce
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if number == signal.SIGINT and now - self._first_at > ECHO_SECONDS:
                os._exit(128 + number)
            return
        self.received, self._first_at = number, now
        if self._announce:
            # os.write, because a handler may interrupt a buffered write of the same stream
            os.write(sys.__stderr__.fileno(), b"\nstopping after this step; Ctrl-C again exits without saving\n")  # type: ignore[union-attr]
