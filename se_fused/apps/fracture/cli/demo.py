"""Command that demonstrates the library on radiographs: demo."""

from pathlib import Path
from typing import Annotated

import typer

from ...._formats import DTYPES
from ....bench.report.console import console
from ....cli.options import at_least, bad, check_device, check_output, choice, progress_bar
from ....models import list_models
from .app import app


@app.command("demo")
def demo_command(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images, a folder for each class. Default: synthetic phantoms.")
    ] = None,
    model: Annotated[str, typer.Option(help="One of se_fused.list_models().")] = "seresnet50",
    batch: Annotated[int, typer.Option(help="Batch size.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = 160,
    steps: Annotated[int, typer.Option(help="Number of training steps.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 (training: under autocast).")] = "float32",
    compile: Annotated[bool, typer.Option(help="Include torch.compile in the comparison of inference.")] = True,
    compile_training: Annotated[
        bool, typer.Option(help="Include torch.compile in the comparison of training; compiling takes minutes.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Plot images, losses and speed.")] = None,
) -> None:
    """Compare se_fused with plain PyTorch on radiographs.

    Runs inference and training steps of an SE-ResNet, or of another model.
    """
    from .. import demo

    choice("--model", model.lower(), list_models())
    check_device(device)
    choice("--dtype", dtype, tuple(DTYPES))
    for option, value, least in (("--batch", batch, 2), ("--size", size, 32), ("--steps", steps, 1)):
        at_least(option, value, least)
    check_output("--plot", plot, picture=True)
    try:
        loaded = demo.load(data, size, max(2 * batch, 16))
    except (OSError, ValueError, ImportError) as error:
        raise bad("--data", str(error)) from None
    settings = demo.Settings(model.lower(), batch, steps, device, dtype, compile, compile and compile_training)
    with progress_bar("demo") as progress:
        outcome = demo.run(loaded, settings, progress)
    to = console()
    if plot is not None:
        demo.draw(loaded, settings, outcome, plot)
    demo.show(loaded, settings, outcome, to)
    if plot is not None:
        to.print(f"drawn: {plot}", markup=False)
    raise typer.Exit(0 if outcome.ok(DTYPES[dtype]) else 1)
