"""Commands that evaluate trained models: evaluate, compare-models."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...._errors import InputError
from ...._formats import DTYPES
from ....bench.report.console import console, print_table, table
from ....bench.report.write import check_writable
from ....cli.options import at_least, bad, check_device, choice, progress_bar
from .app import app

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..manifest import Manifest

_MISSING = 'evaluation requires more packages: pip install "se_fused[train]"'


def _check_folder(option: str, path: Path | None) -> None:
    """Check before the work that a folder can be created and written to."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise bad(option, f"{path} is a file; give a folder")
    above = path
    while not above.exists():
        above = above.parent
    check_writable(above / "report.md")


def _refuse_unknown(classifier: "Classifier", manifest: "Manifest", split: str, data: Path) -> "Manifest":
    chosen = manifest.where(split)
    if not chosen.records:
        there = ", ".join(name or "none" for name in manifest.counts())
        raise InputError(f"{data}: has no images of the split {split} (it has: {there}); give another --split")
    return chosen


def show_evaluation(content: dict[str, Any], output: Path) -> None:
    from ..evaluation.report import NAMES, percent

    to, split = console(), content["split"]
    found = content["splits"][split]
    values, limits = found["metrics"], found["intervals"]["figures"]
    made = table(("metric",), ("% [95 % confidence interval]",))
    for name, title in NAMES.items():
        made.add_row(title, percent(values[name], limits[name]))
    clusters = found["intervals"]["clusters"]
    title = f"{content['about'].get('model', '')} on {split}: {values['images']} images"
    print_table(f"{title}, intervals over {clusters['count']} {clusters['what']}", made, to)
    lost = content["missing"][split]
    if lost:
        names = ", ".join(Path(path).name for path in lost[:5])
        to.print(f"{len(lost)} images could not be read: {names}", style="yellow", markup=False, soft_wrap=True)
    to.print(f"written: {output} (report.md, metrics.json, predictions, plots)", markup=False, soft_wrap=True)
    to.print(f"{content['notice']}.", markup=False)


@app.command("evaluate")
def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run of se-fused fracture train.")],
    data: Annotated[
        Path | None, typer.Option(metavar="MANIFEST.csv", help="Images to evaluate on. Default: those of the run.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Default: the run's folder; evaluation/DATA-SPLIT in it for other images."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")] = "cpu",
    batch: Annotated[int, typer.Option(help="Batch size.")] = 32,
    tta: Annotated[bool, typer.Option("--tta", help="Average over each image and its mirror image.")] = False,
    draws: Annotated[int, typer.Option(help="Bootstrap resamples of the patients for confidence intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Random seed of the resamples.")] = 0,
) -> None:
    """Evaluate a trained model on a test set. Writes metrics with confidence intervals, a report and figures."""
    choice("--split", split, ("train", "valid", "test"))
    for option, value, least in (("--batch", batch, 1), ("--draws", draws, 100), ("--seed", seed, 0)):
        at_least(option, value, least)
    check_device(device)
    _check_folder("--output", output)
    try:
        from .. import evaluation
    except ImportError as error:
        raise InputError(f"{_MISSING} ({error})") from None
    from ..classifier import Classifier
    from ..manifest import Manifest

    classifier = Classifier.load(run, device)
    own = Manifest.load(run / "manifest.csv")
    manifest, source = (own, run / "manifest.csv") if data is None else (Manifest.load(data), data)
    chosen = _refuse_unknown(classifier, manifest, split, source)
    plain = data is None and split == "test" and not tta
    if output is None:
        name = f"{source.stem}-{split}{'-tta' if tta else ''}"
        output = run if plain else run / "evaluation" / name
    with progress_bar("evaluate") as progress:
        table = evaluation.predict_manifest(
            classifier, chosen, batch, progress=lambda what, share: progress(what, share / 2), tta=tta
        )
        (output / "predictions").mkdir(parents=True, exist_ok=True)
        table.save(output / "predictions" / f"{split}.csv")

        def rest(what: str, share: float) -> None:
            progress(what, 0.5 + share / 2)

        if output == run:
            content = evaluation.write_evaluation(run, device, draws=draws, seed=seed, progress=rest)
        else:
            # The baselines are fitted on the training images of the model.
            train = () if split == "train" else own.where("train").records
            both = Manifest((*train, *chosen.records))
            cracks = evaluation.cracks_of(chosen, source)
            content = evaluation.evaluation(
                classifier, both, {split: table}, output, cracks=cracks, draws=draws, seed=seed, progress=rest
            )
        evaluation.write_metrics(output, content)
    show_evaluation(content, output)


@app.command("compare-models")
def compare_models_command(
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="More runs.", show_default=False)
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", metavar="RUN...", help="Finished runs, or folders that contain finished runs."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A manifest.csv or a folder: train the runs missing in --output."),
    ] = None,
    models: Annotated[str, typer.Option(help="With --data: models to train, separated by commas.")] = "",
    seeds: Annotated[int, typer.Option(help="With --data: number of training runs of each model.")] = 3,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="With --data: settings and model.variants; a file, or small-cpu etc."),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for tables, figures, report and, with --data, the runs.")
    ] = Path("comparison"),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:INDEX. Default: that of --config, or cpu.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size of the speed measurement.")] = 32,
    dtype: Annotated[
        str, typer.Option(help="Of the speed measurement: float32, or bfloat16 or float16 under autocast.")
    ] = "float32",
    speed: Annotated[bool, typer.Option(help="Measure speed and memory.")] = True,
    draws: Annotated[int, typer.Option(help="Bootstrap resamples of the patients for confidence intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Random seed of the resamples.")] = 0,
) -> None:
    """Compare trained models on one test set.

    Writes the paper's Table 1 and Figures 2 and 3 for these data, with confidence intervals, paired tests and speed.
    """
    given = [*(runs or []), *(more or [])]  # click accepts one value per option; further values become arguments
    if bool(given) == (data is not None):
        raise bad("--runs", "give either --runs (finished runs) or --data (training data)")
    for option, value, least in (
        ("--batch", batch, 2),
        ("--draws", draws, 100),
        ("--seed", seed, 0),
        ("--seeds", seeds, 1),
    ):
        at_least(option, value, least)
    if device is not None:
        check_device(device)
    choice("--dtype", dtype, tuple(DTYPES))
    _check_folder("--output", output)
    try:
        from ..evaluation.comparison import write_comparison
        from ..evaluation.runs import SYSTEMS, load_runs, runs_below, train_missing
        from ..evaluation.speed import SpeedOptions
        from ..training import Config
    except ImportError as error:
        raise InputError(f"{_MISSING} ({error})") from None
    folders = [run for folder in given for run in runs_below(folder)]
    with progress_bar("compare-models") as progress:
        if data is not None:
            base = Config() if config is None else Config.load(config)
            named = [name.strip().lower() for name in models.split(",") if name.strip()]
            given_values = {"data.path": str(data), **({} if device is None else {"training.device": device})}
            folders = train_missing(
                output, base.with_values(given_values, "--data"), named or list(base.model.variants or SYSTEMS), seeds,
                progress, lambda line: print(line, file=sys.stderr),
            )  # fmt: skip
            device = base.training.device if device is None and base.training.device != "auto" else device
        content = write_comparison(
            load_runs(folders, progress), output, draws=draws, seed=seed, progress=progress,
            speed=SpeedOptions(device or "cpu", batch, DTYPES[dtype]) if speed else None,
        )  # fmt: skip
    _show_comparison(content, output)


def _show_comparison(content: dict[str, Any], output: Path) -> None:
    from ..evaluation.baselines import TITLES
    from ..evaluation.comparison_report import COLUMNS, mean_sd
    from ..evaluation.report import percent

    to = console()
    made = table(("",), tuple(COLUMNS.values()))
    for model in content["models"].values():
        made.add_row(model["title"], *(mean_sd(model["figures"].get(key)) for key in COLUMNS))
        if model["paper"] is not None:
            theirs = (model["paper"][key] for key in ("precision", "recall", "f1", "accuracy"))
            made.add_row("  paper, different data", *(f"{value:.2f}" for value in theirs), style="dim")
    for name, row in content["baselines"].items():
        if "why" not in row:
            made.add_row(TITLES[name], *(percent(row[key]) for key in COLUMNS))
    clusters = content["clusters"]
    title = f"{content['images']} test images, %, mean ± sd over training runs [95 % interval over {clusters['what']}]"
    print_table(title, made, to)
    to.print(content["headline"], markup=False, soft_wrap=True)
    to.print(f"written: {output} (report.md, table1, figures, results.json)", markup=False, soft_wrap=True)
    to.print(f"{content['notice']}.", markup=False)
