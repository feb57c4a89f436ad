"""Runs steps in order within a time budget, each as a process with a time limit, and reports results immediately.

If a kernel hangs, only its step is lost: the process and its children are killed at the limit of the step. A step that
does not fit into the remaining budget is reported as "left out".
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
"""Prefix of a line with a result in a step's output; JSON follows."""
AT = "@at "
"""Prefix of a line that names the next action of a step, so that it is known where a step hangs or crashes."""
GRACE = 3.0  # seconds to wait after SIGTERM, and after SIGKILL


@dataclass(frozen=True)
class Step:
    """A step of a command, which runs as one process."""

    name: str
    arguments: tuple[str, ...]
    """Arguments of ``tool``, or of ``python3`` without one. "python3" among them means the running Python."""
    seconds: float
    """Expected duration; the step is left out if the remaining budget is shorter."""
    limit: float
    """Seconds after which the process is killed."""
    alone: bool = False
    """Whether no other step may run at the same time, because this one measures time."""
    reader: str = "rows"
    """Key of the reader of its output in :data:`.read.READERS`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: str | None = None
    """Program to run instead of python3; if it is not installed, the step is left out."""
    settles: str = ""
    """What the step determines, for the list of steps."""


@dataclass(frozen=True)
class Done:
    """Outcome of a step."""

    step: str
    verdict: str
    """"ok"; "wrong": a result is wrong; "failed": the process failed; "killed": at its time limit; "no result": the
    process succeeded without a result; "left out": not run."""
    seconds: float
    figure: str

    @property
    def good(self) -> bool:
        return self.verdict in ("ok", "left out")


class _Running:
    """The process of a running step, and the position up to which its output was read."""

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
        """Result rows that the process has printed since the last call."""
        *lines, self._rest = (self._rest + self._in.read()).split(b"\n")
        found = []
        for raw in lines:
            line = raw.decode(errors="replace")
            if line.startswith(AT):
                self.at = line.removeprefix(AT)
            if line.startswith(ROW):
                try:
                    row = json.loads(line.removeprefix(ROW))
                except ValueError:  # a partial line of a crashed process, or other output; it remains in the log
                    continue
                if isinstance(row, dict):
                    found.append(row)
        self.rows += found
        return found

    def kill(self) -> bool:
        """Kill the process and its children; return whether the process has ended."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        try:  # children that still run after their parent has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        return self.process.poll() is not None

    def close(self) -> None:
        self._out.close()
        self._in.close()

    def done(self, killed: str = "") -> tuple[Done, list[dict[str, Any]]]:
        """The outcome, and the additional rows that the reader found in the output of other tools."""
        more: list[dict[str, Any]] = []
        reader = READERS[self.step.reader]
        try:
            text = self.log.read_text(errors="replace")
            figure, more = reader(text, self.rows)
        except Exception as error:  # the output of a tool has another format than expected; it remains in the log
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
    """Run the steps in order, up to ``jobs`` at the same time, except steps that must run ``alone``.

    Args:
        steps: the steps to run.
        budget: seconds for all steps. A step is left out if the remaining time is shorter than its expected duration,
            and killed when no time remains.
        jobs: maximum number of processes at the same time.
        root: folder of the checkout, the working directory of the steps.
        logs: folder for the output of each step.
        environment: additional environment variables for all steps.
        on_row: called with the name of a step and each of its results.
        on_done: called with the outcome of each step.
        on_start: called with the name of each step that starts. An exception in these functions ends all steps.

    Returns:
        The outcomes in the order in which the steps ended.
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
                    end(process, limit if gone else f"{limit} (the process does not end)")
    except BaseException:
        for process in running:
            process.kill()
        raise
    return finished
