"""The typer application with which the commands register."""

import typer

__all__ = ["app"]

app = typer.Typer(
    name="fracture",
    help="Long-bone fractures on radiographs: data sets, training, evaluation, prediction. Research use only.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
