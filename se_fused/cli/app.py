"""The command line application: the library's commands, and those of installed applications.

An application is an entry point of the group ``se_fused.applications``. The name of the entry point is the command, and
its value is the application's ``typer.Typer``. An application is imported when one of its commands runs, or when the
help lists the commands.
"""

import errno
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from .._errors import InputError
from .._version import __version__

__all__ = ["app", "run"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]  # click's UsageError; newer typers contain their own copy


def _applications() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group="se_fused.applications")}


class _Commands(TyperGroup):
    """Command group with the library's commands first, then the applications by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(_applications())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None and (found := _applications().get(cmd_name)) is not None:
            command = get_command(found.load())
            command.name = cmd_name
        return command


app = typer.Typer(
    name="se-fused",
    help="Fused Squeeze-and-Excitation for PyTorch: show the build, verify the results, measure the speed.",
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _name(arguments: Sequence[str]) -> str:
    """Name of the command in messages: "se-fused verify", with one word more for a command of an application."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    return " ".join(["se-fused", *words[: 2 if words and words[0] in _applications() else 1]])


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Errors of usage or input and a full disk print one line on stderr and give 2, an interruption gives 130.
    """
    if not arguments:
        arguments = ["--help"]
    try:
        return int(get_command(app).main(list(arguments), "se-fused", standalone_mode=False, obj=arguments) or 0)
    except _USAGE_ERROR as error:
        print(f"{_name(arguments)}: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"{_name(arguments)}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _FULL:
            raise
        print(
            f"{_name(arguments)}: {error.filename or 'the disk'}: {error.strerror}; free some space, then run it again",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print(f"{_name(arguments)}: interrupted; no partly written file remains", file=sys.stderr)
        return 130


def _version(wanted: bool) -> None:
    if wanted:
        print(f"se_fused {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
) -> None:
    pass
