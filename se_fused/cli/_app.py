"""The application that commands register with, and what they share: checks of options, a progress bar."""

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import plots, report
from .._version import __version__
from ..fracture.errors import InputError

__all__ = ["app", "at_least", "bad", "check_device", "check_output", "choice", "progress_bar", "run"]

app = typer.Typer(
    name="se-fused",
    help="Fused Squeeze-and-Excitation for PyTorch: what is built, whether it is right, how fast it is.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]  # click's, which newer typers carry within them


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code. Wrong usage is one line on stderr that names the option."""
    from typer.main import get_command

    if not arguments:
        arguments = ["--help"]
    command = next((a for a in arguments if not a.startswith("-")), "")
    name = f"se-fused {command}".strip()
    try:
        return int(get_command(app).main(list(arguments), "se-fused", standalone_mode=False, obj=arguments) or 0)
    except _USAGE_ERROR as error:
        print(f"{name}: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _FULL:
            raise
        print(
            f"{name}: {error.filename or 'the disk'}: {error.strerror}; free some space, then run it again",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print(f"{name}: interrupted; nothing was left half-written", file=sys.stderr)
        return 130


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
        raise bad("--device", f"torch sees {found or 'no'} GPU{'' if found == 1 else 's'} here; got {value!r}")
    return value


def check_output(option: str, path: Path | None, picture: bool = False) -> None:
    """Whether a result can be written, asked before it is measured."""
    if path is None:
        return
    try:
        report.check_writable(path)
        if picture:
            if path.suffix.lower() not in (".png", ".pdf", ".svg"):
                raise ValueError(f"{path} must end in .png, .pdf or .svg")
            plots.check_matplotlib()
    except (ValueError, ImportError) as error:
        raise bad(option, str(error)) from None


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr; nothing where that is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    to = report.console(stderr=True)
    columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
               TextColumn("{task.description}", markup=False))  # fmt: skip
    with Progress(*columns, console=to, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"se_fused {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass
