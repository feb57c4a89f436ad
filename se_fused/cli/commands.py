"""The commands of the library: info, verify, compare, and the reports of benchmark runs.

Each command imports its implementation when it runs, so that no command waits for imports of another.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from .._atomic_write import write_text
from .._formats import DTYPES, LAYOUTS
from ..bench.report.console import console, print_info, print_rows
from .app import app
from .options import at_least, bad, check_device, check_output, choice, progress_bar

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.command("info")
def info_command(as_json: AsJson = False) -> None:
    """Show the installation, the build, the backend that each op uses here, and why others are not available."""
    from ..info.environment import info

    about = info()
    if as_json:
        print(json.dumps(about, indent=1))
    else:
        print_info(about, console())


@app.command("verify")
def verify_command(as_json: AsJson = False) -> None:
    """Compare every op, dtype and layout with float64, on the devices and backends of this machine."""
    from ..testing.verify import verify_command as verify

    raise typer.Exit(verify(as_json))


@app.command("compare")
def compare_command(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(help="stages (a block of each stage of ResNet-50), a block N,C,H,W, or a model's name.")
    ],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: float32; for blocks, both float32 and bfloat16. In bfloat16 "
            "and float16, networks train under autocast."
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="contiguous, channels_last or both.")] = "both",
    batch: Annotated[int | None, typer.Option(help="Batch size. Default: 8, or the N of a block N,C,H,W.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of a model's images. Default: 224.")] = None,
    mode: Annotated[str, typer.Option(help="infer, train (forward and backward) or both.")] = "both",
    compile: Annotated[bool, typer.Option(help="Also compare with the baseline under torch.compile.")] = True,
    repeats: Annotated[
        int | None, typer.Option(help="Number of rounds. Default: as many as take 2 s for a block, 15 s for a model.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all figures to FILE; - prints them.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the speed-ups to FILE.png.")] = None,
) -> None:
    """Compare se_fused with eager PyTorch and torch.compile: outputs first, then time, memory and ratios.

    The eager and compiled baselines are timm's model with the same weights, or the block in plain PyTorch. The exit
    code is 1 if the error of se_fused against float64 is more than twice the error of eager PyTorch.
    """
    from ..bench.compare import parse_target, plan, run
    from ..bench.report.plots import speedup_figure
    from ..bench.report.write import comparison_json
    from ..bench.workloads.base import MODES

    try:
        parsed = parse_target(target)
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
        raise bad("--size", "applies to models only; a block has its size in N,C,H,W")
    to_file = None if json_file in (None, "-") else Path(str(json_file))
    check_output("--json", to_file)
    check_output("--plot", plot, picture=True)

    builds = plan(
        parsed, device=device, dtypes=None if dtype is None else (dtype,), batch=batch, size=size,
        layouts=tuple(LAYOUTS) if layout == "both" else (layout,), modes=MODES if mode == "both" else (mode,),
    )  # fmt: skip
    with progress_bar("compare") as progress:
        rows, memory = run(builds, compiled=compile, repeats=repeats, progress=progress)
    text = comparison_json(rows, memory, context.obj or sys.argv[1:])
    # Write the files first: printing fails if the reader of the output closes the pipe early.
    if to_file is not None:
        write_text(to_file, text)
    if plot is not None:
        threads = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
        speedup_figure(rows, f"se-fused compare {target} on {device}, {threads}, torch {torch.__version__}", plot)
    if json_file == "-":
        print(text, end="")
    else:
        print_rows(rows, memory, console())
    raise typer.Exit(0 if rows and all(row.ok for row in rows) else 1)


@app.command("report")
def report_command(
    results: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS.json...", help="Files from pytest benchmarks/ --benchmark-json=FILE."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write report.md and pictures to FOLDER, which is created if needed."),
    ] = None,
) -> None:
    """Print a report of a benchmark run as Markdown: speed and memory against all baselines, cost of SE, limits.

    Several files count as one run and must come from one machine.
    """
    from ..bench.report.load import load_all
    from ..bench.report.markdown import markdown
    from ..bench.report.write import check_folder, write_report

    try:
        if output is not None:
            check_folder(output)
    except (ValueError, ImportError) as error:
        raise bad("--output", str(error)) from None
    try:
        loaded = load_all(results)
    except ValueError as error:
        raise bad("RESULTS.json", str(error)) from None
    if output is not None:
        write_report(loaded, output)
    print(markdown(loaded), end="")


@app.command("changes")
def changes_command(
    before: Annotated[str, typer.Argument(metavar="BEFORE.json", help="A run of the benchmarks.")],
    after: Annotated[str, typer.Argument(metavar="AFTER.json", help="A later run on the same machine.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to FILE.")] = None,
) -> None:
    """Report differences between two runs beyond noise, estimated from the baselines, whose code did not change.

    The exit code is 1 if a measurement of se_fused became slower.
    """
    from ..bench.report.load import load
    from ..bench.report.regressions import changes
    from ..bench.report.write import write_changes

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
        write_changes(found, json_file)
    print(found.text(), end="")
    raise typer.Exit(0 if found.ok else 1)
