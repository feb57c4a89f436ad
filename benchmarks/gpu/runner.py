"""Runs steps: a process with a limit each, in order, within a budget; what they find is written as it comes.

A kernel that hangs costs its step and not the window: the process and all that it started are killed at its limit. A
step that no longer fits into the budget is named and left out.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .read import READERS

__all__ = ["ROW", "Done", "Step", "run"]

ROW = "@row "
"""What a line of a step's output starts with that holds a result: JSON follows."""
AT = "@at "
"""The same of a line that says what is about to be done: where a step hangs, or dies, this is the last thing known."""
GRACE = 3.0  # seconds between asking a process to end and killing it, and again before it is given up


@dataclass(frozen=True)
class Step:
    """One process of a command."""

    name: str
    arguments: tuple[str, ...]
    """Of ``python3``; of ``tool`` where there is one. The word "python3" among them is this Python."""
    seconds: float
    """How long it is expected to take: it is left out where the budget has less."""
    limit: float
    """After so many seconds it is killed."""
    alone: bool = False
    """Nothing runs beside it: it measures time."""
    reader: str = "rows"
    """Which of :data:`.read.READERS` reads its output."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: str | None = None
    """A program that runs it in place of python3; where that is missing the step is left out, and says so."""
    settles: str = ""
    """What is known when it has run, for people."""


@dataclass(frozen=True)
class Done:
    """What became of a step."""

    step: str
    verdict: str
    """"ok"; "wrong": a result is; "failed": the process; "killed" at its limit; "no result": it ended well and said
    nothing; "left out"."""
    seconds: float
    figure: str

    @property
    def good(self) -> bool:
        return self.verdict in ("ok", "left out")


class _Running:
    """A step's process, and how much of its output has been read."""

    def __init__(self, step: Step, log: Path, root: Path, environment: Mapping[str, str]) -> None:
        self.step, self.log, self.start = step, log, time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.at = ""
        shown = [step.tool or "python3", *step.arguments]
        command = [sys.executable if word == "python3" else word for word in shown]
        self._out: BinaryIO = log.open("wb")
        self._out.write(f"$ {' '.join(shown)}\n".encode())
        self._out.flush()
        self._in = log.open("rb")
        self._rest = b""
        self.process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._out,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, **step.environment}, start_new_session=True,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def new_rows(self) -> list[dict[str, Any]]:
        """Results that the process has printed since the last call."""
        *lines, self._rest = (self._rest + self._in.read()).split(b"\n")
        found = []
        for raw in lines:
            line = raw.decode(errors="replace")
            if line.startswith(AT):
                self.at = line.removeprefix(AT)
            if line.startswith(ROW):
                try:
                    row = json.loads(line.removeprefix(ROW))
                except ValueError:  # half a line of a process that died, or not ours at all: the log has it
                    continue
                if isinstance(row, dict):
                    found.append(row)
        self.rows += found
        return found

    def kill(self) -> bool:
        """End the process and all that it started; whether it is gone."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        try:  # what outlives its parent
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        return self.process.poll() is not None

    def close(self) -> None:
        self._out.close()
        self._in.close()

    def done(self, killed: str = "") -> tuple[Done, list[dict[str, Any]]]:
        """The verdict, and the rows that stand in no line of their own: those of tools that are not ours."""
        more: list[dict[str, Any]] = []
        reader = READERS[self.step.reader]
        try:
            text = self.log.read_text(errors="replace")
            figure, more = reader(text, self.rows)
        except Exception as error:  # a tool's output that is not what it was: the log is kept
            figure = f"its output cannot be read: {type(error).__name__}: {error}"
            return Done(self.step.name, "no result", self.seconds, figure), []
        rows = self.rows + more
        wrong = [row for row in rows if row.get("ok") is False]
        if killed:
            where = f" at {self.at}" if self.at else ""
            return Done(self.step.name, "killed", self.seconds, f"{killed}{where}; {figure}".rstrip("; ")), more
        if self.process.returncode and not (wrong and self.process.returncode == 1):
            last = [line for line in text.strip().splitlines()[1:] if not line.startswith((ROW, AT))][-1:]
            where = f"exit status {self.process.returncode}" + (f" at {self.at}" if self.at else "")
            return Done(self.step.name, "failed", self.seconds, "; ".join([where, *last, figure]).rstrip("; ")), more
        if wrong:
            return Done(self.step.name, "wrong", self.seconds, figure), more
        if not rows:
            return Done(self.step.name, "no result", self.seconds, figure or "it printed no result"), more
        return Done(self.step.name, "ok", self.seconds, figure), more


def run(
    steps: Sequence[Step],
    *,
    budget: float,
    jobs: int,
    root: Path,
    logs: Path,
    environment: Mapping[str, str],
    on_row: Callable[[str, dict[str, Any]], None],
    on_done: Callable[[Done], None],
    on_start: Callable[[str], None] = lambda _: None,
) -> list[Done]:
    """Run the steps in their order, as many beside each other as ``jobs``, those that are ``alone`` by themselves.

    Args:
        steps: what to run.
        budget: seconds for all. A step is left out if what is left is less than it is expected to take, and ended when
            nothing is left.
        jobs: processes at a time.
        root: the checkout, where they run.
        logs: a folder that takes each step's output.
        environment: more of it, for each.
        on_row, on_done, on_start: told of a step's name and each result, of each step that has ended, and of each that
            begins. An exception out of them ends all steps.
    """
    start, finished = time.monotonic(), []
    waiting, running = list(enumerate(steps)), []

    def end(process: _Running, killed: str = "") -> None:
        for row in process.new_rows():
            on_row(process.step.name, row)
        done, more = process.done(killed)
        process.close()
        for row in more:
            on_row(process.step.name, row)
        finished.append(done)
        on_done(done)

    try:
        while waiting or running:
            left = budget - (time.monotonic() - start)
            while waiting and len(running) < jobs:
                number, step = waiting[0]
                if running and (step.alone or running[0].step.alone):
                    break
                waiting.pop(0)
                if step.seconds > left:
                    why = f"needs about {step.seconds:.0f} s, {max(left, 0):.0f} s are left of {budget:.0f}"
                    done = Done(step.name, "left out", 0.0, why)
                    finished.append(done)
                    on_done(done)
                    continue
                on_start(step.name)
                try:
                    log = logs / f"{number:02d}-{step.name.replace(' ', '-').replace('/', '-')}.txt"
                    running.append(_Running(step, log, root, environment))
                except FileNotFoundError:
                    done = Done(step.name, "left out", 0.0, f"{step.tool or 'python3'} is not here")
                    finished.append(done)
                    on_done(done)
            time.sleep(0.05)
            for process in list(running):
                for row in process.new_rows():
                    on_row(process.step.name, row)
                over = process.seconds > process.step.limit
                if process.process.poll() is not None:
                    running.remove(process)
                    end(process)
                elif over or left <= 0:
                    running.remove(process)
                    limit = f"after {process.seconds:.0f} s" + ("" if over else ", the end of the budget")
                    gone = process.kill()
                    end(process, limit if gone else f"{limit} (it does not die)")
    except BaseException:
        for process in running:
            process.kill()
        raise
    return finished
