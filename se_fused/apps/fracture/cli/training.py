"""Command that trains a classifier: train."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...._errors import InputError
from ....bench.report.console import console, print_table, table
from ....cli.options import bad, progress_bar
from .app import app
from .evaluation import show_evaluation

if TYPE_CHECKING:
    from ..training.run import Run


def _show_plan(run: "Run") -> None:
    """Print the data and the settings of a run before the training starts."""
    c, sources, to = run.config, run.sources, console()
    title = f"{c.data.path}: {len(sources.manifest)} images, {len(sources.classes)} classes"
    made = table(("split",), ("images", "patients", *sources.classes))
    for split, data in sources.sets.items():
        patients = len({record.patient for record in data.manifest.records})
        made.add_row(split, str(len(data)), str(patients), *map(str, sources.counts(split)))
    print_table(title, made, to)
    for note in sources.manifest.notes:
        to.print(note, style="yellow", markup=False, soft_wrap=True)
    for record, reason in sources.damaged[:3]:
        to.print(f"left out: {record.path}: {reason}", style="yellow", markup=False, soft_wrap=True)
    if len(sources.damaged) > 3:
        where = "" if run.dry else f", all in {run.folder / 'damaged.csv'}"
        to.print(f"and {len(sources.damaged) - 3} more{where}", style="yellow", markup=False, soft_wrap=True)
    kernels = "fused kernels" if c.model.fused else "plain PyTorch"
    p, t = sources.preprocessing, c.training
    lines = [
        f"{c.model.name}, {run.parameters / 1e6:.2f} M parameters, {kernels}"
        + (", torch.compile" if c.model.compile else "")
        + f"; {run.loaded}",
        f"{p.size}×{p.size} pixels, mean {p.mean:.3f}, sd {p.std:.3f}; {t.epochs} epochs of batches of {t.batch}"
        + (f" × {run.place.world} processes" if run.place.world > 1 else "")
        + f", seed {c.seed}",
        f"on {run.place}, {run.place.precision}, "
        + (f"{run.workers} loading processes" if run.workers else "images loaded by the training process"),
        "dry run: one step, nothing is saved"
        if run.dry
        else f"output: {run.folder}" + (", resumed" if run.checkpoint else ""),
    ]
    for line in lines:
        to.print(line, markup=False, soft_wrap=True)


def _show_results(folder: Path) -> None:
    import json

    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    facts = content["training"]
    best, to = facts["best"], console()
    to.print(
        f"best epoch {facts['best_epoch']} of {facts['epochs']}: valid accuracy {best['valid/accuracy']:.3f}, macro F1 "
        f"{best['valid/macro_f1']:.3f}, loss {best['valid/loss']:.4f}",
        markup=False,
        soft_wrap=True,
    )
    memory = f", {facts['gpu_memory_bytes'] / 1e9:.1f} GB of GPU memory" if facts["gpu_memory_bytes"] else ""
    to.print(
        f"{facts['seconds']:.0f} s, {facts['images_per_second']:.0f} img/s, {100 * facts['data_wait']:.1f} % of the "
        f"training time spent waiting for data{memory}",
        markup=False,
        soft_wrap=True,
    )
    show_evaluation(content, folder)


@app.command("train")
def train_command(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="All settings: a file, or the name small-cpu or full-gpu.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="A manifest.csv, or a folder, which is prepared first.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="One of se_fused.list_models(). Default: seresnet50.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size on each device.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of weights, order and augmentation.")] = None,
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="Run folder. Default: runs/fracture.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:INDEX.")] = None,
    devices: Annotated[int | None, typer.Option(help="Number of GPUs (or processes) of this machine.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Number of machines; start them with torchrun.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32, bf16 or fp16.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as training.ema=0.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Use plain PyTorch instead of the fused kernels.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run one batch of each split; save nothing.")] = False,
) -> None:
    """Train a classifier of radiographs. All results are written to one folder.

    An interrupted run continues with --resume; its result equals that of an uninterrupted run.
    """
    try:
        from ..training import Config
        from ..training.run import prepare_run
    except ImportError as error:
        raise InputError(f'training requires more packages: pip install "se_fused[train]" ({error})') from None
    given: dict[str, Any] = {
        "data.path": data, "data.size": size, "training.epochs": epochs, "training.batch": batch,
        "training.device": device, "training.devices": devices, "training.nodes": nodes,
        "training.precision": precision, "seed": seed, "output": output,
    }  # fmt: skip
    made = Config() if config is None else Config.load(config)
    made = made if model is None else made.with_model(model)
    made = made.with_values({name: value for name, value in given.items() if value is not None}, "command line")
    made = made.overridden(settings or [])
    if plain:
        made = replace(made, model=replace(made.model, fused=False))
    if not made.data.path:
        raise bad("--data", "must be a manifest.csv or a folder of images")
    with progress_bar("train") as progress:
        run = prepare_run(made, resume=resume, dry_run=dry_run, progress=progress)
    if run is None:
        console().print(f"{made.output}: this run is already finished", markup=False, soft_wrap=True)
        return
    first = run.place.rank == 0
    if first:
        _show_plan(run)
        sys.stdout.flush()
    with progress_bar("train") as progress:
        folder = run.fit(progress, lambda line: print(line, file=sys.stderr) if first else None)
    if first and run.dry:
        console().print("the dry run succeeded", markup=False)
    elif first:
        _show_results(folder)
