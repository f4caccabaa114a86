"""Signals become a wish to stop; handlers are given back."""

import os
import signal
from pathlib import Path

import pytest

from mode_ssm.train import interrupt
from mode_ssm.train.interrupt import Interrupted, StopSignals


def test_a_signal_is_remembered_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals(announce=False) as signals:
        assert signals.received == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_exits_at_once_but_its_echo_and_sigterm_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    now = 10.0
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr("time.monotonic", lambda: now)
    with StopSignals(announce=False):
        os.kill(os.getpid(), signal.SIGINT)
        now += interrupt.ECHO_SECONDS / 2  # a launcher passing on the terminal's signal
        os.kill(os.getpid(), signal.SIGINT)
        now += 5
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits == []
        os.kill(os.getpid(), signal.SIGINT)
        assert exits == [130]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_message_says_what_was_saved_and_how_to_continue(number: int, code: int) -> None:
    stop = Interrupted(number, 7, Path("runs/x/checkpoints/step_00000007"))
    assert stop.exit_code == code
    assert str(stop).endswith("after step 7, saved runs/x/checkpoints/step_00000007; continue with resume=true")
