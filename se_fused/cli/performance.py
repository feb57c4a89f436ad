"""What the kernels do here: info, verify, compare, demo, and reports of benchmark runs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import compare as comparing
from .. import plots, report
from .._files import write_text
from ..models import list_models
from ..workloads import DTYPES, LAYOUTS, MODES
from ._app import app, at_least, bad, check_device, check_output, choice, progress_bar

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.command("info")
def info_command(as_json: AsJson = False) -> None:
    """What is installed and built, and which backend each op takes here, and why not the others."""
    from ..info import info

    about = info()
    if as_json:
        print(json.dumps(about, indent=1))
    else:
        report.print_info(about, report.console())


@app.command("verify")
def verify_command(as_json: AsJson = False) -> None:
    """Every op, dtype and layout on this machine's devices and backends against float64."""
    from ..verify import verify_command as verify

    raise typer.Exit(verify(as_json))


@app.command("compare")
def compare_command(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="stages (the tails of ResNet-50's four), a block N,C,H,W, or a model.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: float32, for blocks bfloat16 too. Networks train in the "
            "smaller two under autocast."
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="contiguous, channels_last or both.")] = "both",
    batch: Annotated[int | None, typer.Option(help="Batch size. Default: 8, or the block's.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of a model's images. Default: 224.")] = None,
    mode: Annotated[str, typer.Option(help="infer, train (forward and backward) or both.")] = "both",
    compile: Annotated[bool, typer.Option(help="Whether torch.compile of the peer takes part.")] = True,
    repeats: Annotated[int | None, typer.Option(help="Rounds. Default: 2 s of them a block, 15 s a model.")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all figures there; - prints them.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the speed-ups.")] = None,
) -> None:
    """Ours against eager PyTorch and torch.compile: the same output first, then time, memory and ratios.

    Eager and compiled peers are timm's model with the same weights, or the block in plain PyTorch. The exit code is 1
    if ours differs from float64 by more than twice what eager does.
    """
    try:
        parsed = comparing.parse_target(target)
    except ValueError as error:
        raise bad("TARGET", str(error)) from None
    check_device(device)
    if dtype is not None:
        choice("--dtype", dtype, tuple(DTYPES))
    choice("--layout", layout, (*LAYOUTS, "both"))
    choice("--mode", mode, (*MODES, "both"))
    for option, value in (("--batch", batch), ("--repeats", repeats)):
        at_least(option, value, 1)
    at_least("--size", size, 32)
    if size is not None and (parsed == "stages" or not isinstance(parsed, str)):
        raise bad("--size", "is for models; a block's size is in N,C,H,W")
    to_file = None if json_file in (None, "-") else Path(str(json_file))
    check_output("--json", to_file)
    check_output("--plot", plot, picture=True)

    builds = comparing.plan(
        parsed, device=device, dtypes=None if dtype is None else (dtype,), batch=batch, size=size,
        layouts=tuple(LAYOUTS) if layout == "both" else (layout,), modes=MODES if mode == "both" else (mode,),
    )  # fmt: skip
    with progress_bar("compare") as progress:
        rows, memory = comparing.run(builds, compiled=compile, repeats=repeats, progress=progress)
    text = report.document(rows, memory, context.obj or sys.argv[1:])
    # Files first: a reader of the output that closes its pipe early does not lose them.
    if to_file is not None:
        write_text(to_file, text)
    if plot is not None:
        threads = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
        plots.speedup_figure(rows, f"se-fused compare {target} on {device}, {threads}, torch {torch.__version__}", plot)
    if json_file == "-":
        print(text, end="")
    else:
        report.print_rows(rows, memory, report.console())
    raise typer.Exit(0 if rows and all(row.ok for row in rows) else 1)


@app.command("demo")
def demo_command(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your images, a folder for each class. Default: drawn phantoms.")
    ] = None,
    model: Annotated[str, typer.Option(help="One of se_fused.list_models().")] = "seresnet50",
    batch: Annotated[int, typer.Option(help="Images per step.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 160,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 (training: under autocast).")] = "float32",
    compile: Annotated[bool, typer.Option(help="Whether torch.compile takes part in inference.")] = True,
    compile_training: Annotated[bool, typer.Option(help="And in training, which compiles for minutes.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw images, losses and speed.")] = None,
) -> None:
    """SE-ResNet on radiographs, inference and real training steps, through us and through plain PyTorch."""
    from ..fracture import demo

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
    to = report.console()
    if plot is not None:
        demo.draw(loaded, settings, outcome, plot)
    demo.show(loaded, settings, outcome, to)
    if plot is not None:
        to.print(f"drawn: {plot}", markup=False)
    raise typer.Exit(0 if outcome.ok(DTYPES[dtype]) else 1)


@app.command("report")
def report_command(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS.json...", help="Files of pytest benchmarks/ --benchmark-json=FILE.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write report.md and pictures there; the folder is made.")
    ] = None,
) -> None:
    """What a run of the benchmarks says, as Markdown: speed and memory against all peers, what SE costs, the limits.

    Several files count as one run; they must be of one machine.
    """
    from ..results import commands, load_all, markdown

    try:
        if output is not None:
            commands.check_folder(output)
    except (ValueError, ImportError) as error:
        raise bad("--output", str(error)) from None
    try:
        loaded = load_all(results)
    except ValueError as error:
        raise bad("RESULTS.json", str(error)) from None
    if output is not None:
        commands.write_report(loaded, output)
    print(markdown(loaded), end="")


@app.command("changes")
def changes_command(
    before: Annotated[str, typer.Argument(metavar="BEFORE.json", help="A run of the benchmarks.")],
    after: Annotated[str, typer.Argument(metavar="AFTER.json", help="Another, on the same machine.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
) -> None:
    """Whether two runs differ by more than noise, which the peers tell: their code is the same in both.

    The exit code is 1 if something of ours is slower.
    """
    from ..results import changes, commands, load

    check_output("--json", json_file)
    runs = []
    for argument, path in (("BEFORE.json", before), ("AFTER.json", after)):
        try:
            runs.append(load(path))
        except ValueError as error:
            raise bad(argument, str(error)) from None
    try:
        found = changes(*runs)
    except ValueError as error:
        raise bad("AFTER.json", str(error)) from None
    if json_file is not None:
        commands.write_changes(found, json_file)
    print(found.text(), end="")
    raise typer.Exit(0 if found.ok else 1)
