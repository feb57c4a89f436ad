"""Entry point of ``python -m se_fused`` and ``se-fused``: ``info`` needs only torch, other commands se_fused[cli]."""

import json
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def _without_cli(arguments: Sequence[str], missing: str) -> int:
    """The command line without typer and rich: ``info`` as JSON; any other command is an error."""
    if list(arguments[:1]) == ["info"]:
        from .info.environment import info

        print(json.dumps(info(), indent=1))
        return 0
    command = f" {arguments[0]}" if arguments else ""
    print(f'se-fused{command}: {missing} is not installed: pip install "se_fused[cli]"', file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 if results disagree, 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        return _without_cli(arguments, error.name or "typer")
    from .cli import run

    try:
        return run(arguments)
    except BrokenPipeError:  # the reader closed the pipe, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
