"""How commands end."""

from __future__ import annotations

import sys

import pytest

from spo_core.errors import SPOError
from spo_core.system.command_line import run


@pytest.mark.parametrize("fails", [True, False])
def test_an_interrupt_is_told_in_a_line_whatever_it_makes_fail(monkeypatch, capsys, fails):
    def command() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if fails:
                raise ValueError("Task run is not set") from None  # as Prefect does where a task starts
            raise

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run(command, "interrupted; go on")
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted; go on\n"


def test_what_an_interrupt_could_not_save_is_told(monkeypatch, capsys):
    def command() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SPOError("the disk is full") from None

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run(command, "interrupted; go on")
    assert ended.value.code == 2 and capsys.readouterr().err == "error: the disk is full\n"


def test_an_error_of_its_own_stays_one(monkeypatch):
    def command() -> None:
        raise ValueError("no")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ValueError, match="no"):
        run(command)
