"""Checks of command line options, and a progress bar, shared by the library's commands and the applications."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import typer

from ..bench.report.console import console
from ..bench.report.style import check_matplotlib
from ..bench.report.write import check_writable

__all__ = ["at_least", "bad", "check_device", "check_output", "choice", "progress_bar"]


def bad(option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=option)


def choice(option: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise bad(option, f"must be one of {', '.join(choices)}; got {value!r}")
    return value


def at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise bad(option, f"must be at least {least}; got {value}")


def check_device(value: str) -> str:
    try:
        device = torch.device(value)
    except RuntimeError:
        raise bad("--device", f"must be cpu, cuda or cuda:INDEX; got {value!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise bad("--device", f"must be cpu, cuda or cuda:INDEX; got {value!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise bad("--device", f"torch finds {found or 'no'} GPU{'' if found == 1 else 's'} here; got {value!r}")
    return value


def check_output(option: str, path: Path | None, picture: bool = False) -> None:
    """Raise a usage error if ``path`` cannot be written, before the command does any work."""
    if path is None:
        return
    try:
        check_writable(path)
        if picture:
            if path.suffix.lower() not in (".png", ".pdf", ".svg"):
                raise ValueError(f"{path} must end in .png, .pdf or .svg")
            check_matplotlib()
    except (ValueError, ImportError) as error:
        raise bad(option, str(error)) from None


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, float], None]]:
    """Progress bar on stderr, hidden if stderr is not a terminal; yields a function of the label and the share done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    to = console(stderr=True)
    columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
               TextColumn("{task.description}", markup=False))  # fmt: skip
    with Progress(*columns, console=to, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
