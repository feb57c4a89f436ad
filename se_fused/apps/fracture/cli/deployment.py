"""Commands that use trained models: predict, export, serve."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...._atomic_write import write_text
from ...._errors import InputError
from ....bench.report.console import console, print_table, table
from ....cli.options import at_least, bad, check_device, check_output, choice, progress_bar
from .app import app

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..deploy.predictor import Predictor
    from ..predictions import Predictions

Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")]
_SHOWN = 40


def _needs(extra: str, error: ImportError) -> InputError:
    return InputError(f'{error.name or error} is not installed: pip install "se_fused[{extra}]"')


def _check_inputs(model: Path, more: list[Path]) -> None:
    for option, path in (("MODEL", model), *(("--also", other) for other in more)):
        if not path.exists():
            raise bad(option, f"{path}: no such file or folder; give the folder of a run or its model.pt")


def _notice(classifiers: Sequence["Classifier"]) -> str:
    from ..deploy import RESEARCH_USE_ONLY, warning_of

    return f"{RESEARCH_USE_ONLY} {warning_of(classifiers)}".strip()


def _write_overlays(predictor: "Predictor", predictions: "Predictions", folder: Path, progress: Any) -> None:
    from ..deploy import warning_of
    from ..deploy.overlay import write_overlay
    from ..images import decode

    warning = warning_of(predictor.classifiers)
    digits = len(str(len(predictions)))
    for i, best in enumerate(predictions.predicted.tolist()):
        path = Path(predictions.paths[i])
        picture = decode(path)
        heat = predictor.heat(predictor.squares(picture), best)
        said = f"{predictions.classes[best]}: {predictions.probabilities[i, best]:.0%}"
        write_overlay(folder / f"{i + 1:0{digits}d} {path.stem}.png", picture, heat, said, warning)
        progress(f"{i + 1} of {len(predictions)} overlays", (i + 1) / len(predictions))


def _document(predictor: "Predictor", predictions: "Predictions") -> str:
    from ..deploy import RESEARCH_USE_ONLY, warning_of

    rows = []
    for i, best in enumerate(predictions.predicted.tolist()):
        row: dict[str, Any] = {"path": predictions.paths[i]}
        known = {"patient": predictions.patients[i], "study": predictions.studies[i], "view": predictions.views[i]}
        row |= {name: text for name, text in known.items() if text}
        if predictions.labels[i] >= 0:
            row["label"] = predictions.classes[predictions.labels[i]]
        row["predicted"] = predictions.classes[best]
        row["probabilities"] = dict(zip(predictions.classes, predictions.probabilities[i].tolist(), strict=True))
        rows.append(row)
    content: dict[str, Any] = {
        "notice": RESEARCH_USE_ONLY,
        "warning": warning_of(predictor.classifiers) or None,
        "models": [{"name": c.name, "size": c.preprocessing.size, **c.about} for c in predictor.classifiers],
        "classes": list(predictions.classes),
        "images": rows,
        "unreadable": [{"path": path, "reason": reason} for path, reason in predictions.skipped],
    }
    return json.dumps(content, indent=1) + "\n"


def _print_predictions(predictor: "Predictor", predictions: "Predictions") -> None:
    to = console()
    made = table(("image", "predicted"), predictions.classes)
    for i, best in enumerate(predictions.predicted.tolist()[:_SHOWN]):
        path = Path(predictions.paths[i])
        here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        # Escape square brackets, which are markup.
        cells = (str(here).replace("[", "\\["), predictions.classes[best].replace("[", "\\["))
        made.add_row(*cells, *(f"{p:.1%}" for p in predictions.probabilities[i]))
    print_table(f"{len(predictions)} predictions of {', '.join(c.name for c in predictor.classifiers)}", made, to)
    if len(predictions) > _SHOWN:
        to.print(f"and {len(predictions) - _SHOWN} more; write all with --output FILE.csv", markup=False)
    to.print(_notice(predictor.classifiers), markup=False, style="bold yellow")


@app.command("predict")
def predict_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a run, or its model.pt.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUTS...", help="Images, DICOM files, folders of them, or a manifest.csv."),
    ],
    also: Annotated[
        list[Path] | None, typer.Option(metavar="MODEL", help="Another model to average with; may be repeated.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write FILE.csv or FILE.json; - prints only JSON.")
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write each image with Grad-CAM of the predicted class.")
    ] = None,
    device: Device = "cpu",
    batch: Annotated[int, typer.Option(help="Batch size.")] = 16,
    tta: Annotated[bool, typer.Option("--tta", help="Average over each image and its mirror image.")] = False,
    per_study: Annotated[
        bool, typer.Option("--per-study", help="Average over the images of a study or, without studies, of a folder.")
    ] = False,
) -> None:
    """Predict class probabilities for radiographs. Research use only, not a medical device.

    Files that cannot be read are reported. The exit code is then 1, or 2 if no file can be read.
    """
    _check_inputs(model, also or [])
    check_device(device)
    at_least("--batch", batch, 1)
    file = None if output in (None, "-") else Path(str(output))
    if file is not None and file.suffix.lower() not in (".csv", ".json"):
        raise bad("--output", f"must end in .csv or .json, or be -; got {file}")
    check_output("--output", file)
    if overlays is not None and (overlays.exists() and not overlays.is_dir()):
        raise bad("--overlays", f"{overlays} is a file; give a folder")
    try:
        from ..deploy.predictor import Predictor, by_study
    except ImportError as error:
        raise _needs("train", error) from None

    with progress_bar("loading") as progress:
        predictor = Predictor([model, *(also or [])], device=device, batch=batch, tta=tta)
        predictions = predictor.predict(inputs, progress)
        if len(predictions) and overlays is not None:
            overlays.mkdir(parents=True, exist_ok=True)
            _write_overlays(predictor, predictions, overlays, progress)
    for note in predictor.notes:
        print(f"se-fused fracture predict: {note}", file=sys.stderr)
    for path, reason in predictions.skipped:
        print(f"se-fused fracture predict: {path}: {' '.join(reason.split())}", file=sys.stderr)
    count = f"{len(predictions.skipped)} of {len(predictions.skipped) + len(predictions)} could not be read"
    if not len(predictions):
        raise InputError(f"{count}, so there is nothing to predict; give PNG, JPEG, TIFF, BMP or DICOM files")
    if per_study:
        predictions = by_study(predictions)
    document = _document(predictor, predictions)
    if file is not None:
        write_text(file, predictions.text() if file.suffix.lower() == ".csv" else document)
    if output == "-":
        print(document, end="")
    else:
        _print_predictions(predictor, predictions)
    if predictions.skipped:
        print(f"se-fused fracture predict: {count}", file=sys.stderr)
        raise typer.Exit(1)


@app.command("export")
def export_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a run, or its model.pt.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="FILE.onnx, or FILE.pt2 for aoti and program.")],
    format: Annotated[
        str,
        typer.Option(help="onnx; aoti (AOTInductor: compiled for this type of machine); program (torch.export)."),
    ] = "onnx",
    device: Device = "cpu",
) -> None:
    """Export a classifier to a file for other programs. The file records its classes and preprocessing.

    The exported model maps images (N, 1, S, S) in [0, 1] to probabilities; it includes normalisation and softmax. Its
    outputs are compared with the classifier's before the file is written. Running it does not require se_fused.
    """
    from ..classifier import Classifier
    from ..deploy.export import FORMATS, export

    _check_inputs(model, [])
    choice("--format", format, tuple(FORMATS))
    if output.suffix != FORMATS[format]:
        raise bad("--output", f"must end in {FORMATS[format]} for --format {format}; got {output}")
    check_output("--output", output)
    check_device(device)
    classifier = Classifier.load(model, device)
    with progress_bar(f"exporting as {format}"):
        notes = export(classifier, format, output)
    for note in notes:
        print(f"se-fused fracture export: {note}", file=sys.stderr)
    to = console()
    size = classifier.preprocessing.size
    to.print(
        f"{output}: images (N, 1, {size}, {size}) float32 in [0, 1] -> probabilities (N, {len(classifier.classes)}) of "
        f"{', '.join(classifier.classes)}",
        markup=False,
        soft_wrap=True,
    )
    to.print(_notice([classifier]), markup=False, style="bold yellow")


@app.command("serve")
def serve_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a run, or its model.pt.")],
    host: Annotated[str, typer.Option(help="Address to listen on. Addresses other than localhost are not safe.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8765,
    device: Device = "cpu",
    max_megabytes: Annotated[int, typer.Option(help="Largest accepted file in MB.")] = 25,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Additional host name accepted in requests.")
    ] = None,
) -> None:
    """Serve a local web page that classifies radiographs. It shows class probabilities and heat maps.

    Files are not stored and their names are not logged. Research use only, not a medical device.
    """
    _check_inputs(model, [])
    check_device(device)
    at_least("--max-megabytes", max_megabytes, 1)
    if not 1 <= port <= 65535:
        raise bad("--port", f"must be from 1 to 65535; got {port}")
    for name in allow_host or []:
        if not re.fullmatch(r"[A-Za-z0-9.:-]+", name):
            raise bad("--allow-host", f"must be a host name or address without a port, e.g. radiology-7; got {name}")
    try:
        from ..deploy.serve import LOCAL, run
    except ImportError as error:
        raise _needs("serve", error) from None

    if host not in LOCAL:
        print(
            f"se-fused fracture serve: warning: {host} can be reached from other machines, without a password and "
            "without encryption. Radiographs sent to it can be intercepted. Listen on 127.0.0.1, or use a reverse "
            "proxy with both",
            file=sys.stderr,
        )
    run(model, host, port, device=device, max_bytes=max_megabytes * 1_000_000, hosts=tuple(allow_host or ()))
