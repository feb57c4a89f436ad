"""Commands for data sets of radiographs: prepare, audit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ...._atomic_write import write_text
from ....cli.options import at_least, bad, check_output, progress_bar
from .app import app

Layout = Annotated[str, typer.Option(help="Layout of the folder; auto detects it from its files.")]


def _fractions(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3 or not all(part > 0 for part in found) or abs(sum(found) - 1) > 1e-6:
        raise bad("--fractions", f"must be three numbers above 0 that sum to 1, such as .7,.15,.15; got {text!r}")
    return found


def _labels(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        old, sign, new = (part.strip() for part in text.rpartition("="))
        if not sign or not old or found.setdefault(old, new) != new:
            raise bad("--label", f"must be CLASS=NAME, or CLASS= to leave it out, once per class; got {text!r}")
    return found


def _check_layout(layout: str) -> None:
    from ....cli.options import choice
    from ..layouts import LAYOUTS

    choice("--layout", layout, ("auto", *LAYOUTS))


@app.command("prepare")
def prepare_command(
    root: Annotated[Path, typer.Argument(help="Folder of a data set, or a manifest.csv to complete.")],
    output: Annotated[Path, typer.Option(metavar="FILE.csv", help="The manifest to write.")] = Path("manifest.csv"),
    layout: Layout = "auto",
    seed: Annotated[int, typer.Option(help="Random seed of the splits.")] = 0,
    fractions: Annotated[str, typer.Option(help="Shares of the images in train, valid and test.")] = ".7,.15,.15",
    keep_splits: Annotated[
        bool, typer.Option("--keep-splits", help="Keep the existing splits of the data set even if they leak.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=NAME", help="Rename a class, or merge it with class NAME; CLASS= leaves it out."),
    ] = None,
) -> None:
    """Prepare a data set for training. Writes a manifest of its images with patients and splits.

    Where the data set names no patients, duplicate images (equal, rotated, mirrored, cropped, changed in grey levels)
    form groups that replace the patients. All images of a patient or group are in the same split. Existing splits are
    kept unless they leak.
    """
    parts, labels = _fractions(fractions), _labels(label or [])
    at_least("--seed", seed, 0)
    _check_layout(layout)
    check_output("--output", output)
    if output.suffix.lower() != ".csv":
        raise bad("--output", f"{output} must end in .csv")
    from ..audit import audit
    from ..preparing import prepare_and_find

    with progress_bar("prepare") as progress:
        manifest, found = prepare_and_find(root, layout, seed, parts, keep_splits or None, progress, labels)
    seen = audit(manifest, found=found)
    manifest.save(output)
    print(seen.text(), end="")
    print(f"written: {output}")


@app.command("audit")
def audit_command(
    data: Annotated[Path, typer.Argument(metavar="MANIFEST_OR_FOLDER", help="A manifest.csv or a data set's folder.")],
    layout: Layout = "auto",
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all findings to a file; - prints them as JSON.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw pairs of duplicate images.")] = None,
) -> None:
    """Check a data set for leaks between its splits. Also reports damaged files and conflicting labels.

    A leak is a patient, or a pair of duplicate images, in two splits. The exit code is 1 if there is a leak or a
    damaged file.
    """
    _check_layout(layout)
    to_file = None if json_file in (None, "-") else Path(str(json_file))
    check_output("--json", to_file)
    check_output("--plot", plot, picture=True)
    from .. import duplicates
    from ..audit import audit, draw_pairs
    from ..preparing import open_manifest

    manifest = open_manifest(data, layout)
    with progress_bar("audit") as progress:
        found = duplicates.find(manifest, progress)
    seen = audit(manifest, found=found)
    text = json.dumps(seen.as_dict(), indent=1) + "\n"
    if to_file is not None:
        write_text(to_file, text)
    pairs = draw_pairs(manifest, found, plot) if plot is not None else 0
    if json_file == "-":
        print(text, end="")
    else:
        print(seen.text(), end="")
        if plot is not None:
            print(f"drawn: {plot}" if pairs else "not drawn: there are no duplicate images")
    raise typer.Exit(0 if seen.ok else 1)
