"""Judging trained models: evaluate, compare-models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report
from ..fracture.errors import InputError
from ._app import app, at_least, bad, check_device, choice, progress_bar

if TYPE_CHECKING:
    from ..fracture.classifier import Classifier
    from ..fracture.manifest import Manifest

_MISSING = 'evaluation needs more packages: pip install "se_fused[train]"'


def _check_folder(option: str, path: Path | None) -> None:
    """Whether a folder can be made and written to, asked before the work."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise bad(option, f"{path} is a file; give a folder")
    above = path
    while not above.exists():
        above = above.parent
    report.check_writable(above / "report.md")


def _refuse_unknown(classifier: "Classifier", manifest: "Manifest", split: str, data: Path) -> "Manifest":
    chosen = manifest.where(split)
    if not chosen.records:
        there = ", ".join(name or "none" for name in manifest.counts())
        raise InputError(f"{data}: has no images of the split {split} (there are: {there}); give another --split")
    return chosen


def _show(content: dict[str, Any], output: Path) -> None:
    from ..fracture.evaluation.report import NAMES, percent

    to, split = report.console(), content["split"]
    found = content["splits"][split]
    values, limits = found["metrics"], found["intervals"]["figures"]
    made = report.table(("metric",), ("%, [95 % interval]",))
    for name, title in NAMES.items():
        made.add_row(title, percent(values[name], limits[name]))
    clusters = found["intervals"]["clusters"]
    title = f"{content['about'].get('model', '')} on {split}: {values['images']} images"
    report.print_table(f"{title}, intervals over {clusters['count']} {clusters['what']}", made, to)
    lost = content["missing"][split]
    if lost:
        names = ", ".join(Path(path).name for path in lost[:5])
        to.print(f"{len(lost)} images could not be read: {names}", style="yellow", markup=False, soft_wrap=True)
    to.print(f"written: {output} (report.md, metrics.json, predictions, plots)", markup=False, soft_wrap=True)
    to.print(f"{content['notice']}.", markup=False)


@app.command("evaluate")
def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished se-fused train run.")],
    data: Annotated[
        Path | None, typer.Option(metavar="MANIFEST.csv", help="Other images to judge it on. Default: the run's own.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Default: the run's folder, or evaluation/DATA-SPLIT in it with --data."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")] = "cpu",
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    tta: Annotated[bool, typer.Option("--tta", help="Mean over each image and its mirror image.")] = False,
    draws: Annotated[int, typer.Option(help="Draws of patients for the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of these draws.")] = 0,
) -> None:
    """Predict a set of images with a trained model and judge it: figures with intervals, report, pictures, heat maps."""
    choice("--split", split, ("train", "valid", "test"))
    for option, value, least in (("--batch", batch, 1), ("--draws", draws, 100), ("--seed", seed, 0)):
        at_least(option, value, least)
    check_device(device)
    _check_folder("--output", output)
    try:
        from ..fracture import evaluation
    except ImportError as error:
        raise InputError(f"{_MISSING} ({error})") from None
    from ..fracture.classifier import Classifier
    from ..fracture.manifest import Manifest

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
            # The baselines are fitted on what the model was trained on.
            train = () if split == "train" else own.where("train").records
            both = Manifest((*train, *chosen.records))
            cracks = evaluation.cracks_of(chosen, source)
            content = evaluation.evaluation(
                classifier, both, {split: table}, output, cracks=cracks, draws=draws, seed=seed, progress=rest
            )
        evaluation.write_metrics(output, content)
    _show(content, output)
