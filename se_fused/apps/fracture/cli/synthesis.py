"""Command that draws synthetic radiographs: synth."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ....bench.report.console import console, print_table, table
from ....cli.options import at_least, bad, choice, progress_bar
from ..manifest import SPLITS, Manifest
from .app import app


def _print_counts(manifest: Manifest) -> None:
    counts = manifest.counts()
    made = table(("class",), (*SPLITS, "all"))
    for name in manifest.classes:
        each = [counts.get(split, Counter())[name] for split in SPLITS]
        made.add_row(name, *map(str, (*each, sum(each))))
    totals = [sum(counts.get(split, Counter()).values()) for split in SPLITS]
    made.add_row("all", *map(str, (*totals, len(manifest))))
    patients = len({record.patient for record in manifest.records})
    print_table(f"Images of {patients} synthetic phantoms, no clinical meaning", made, console())


@app.command("synth")
def synth_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder; created if missing.")],
    patients: Annotated[int, typer.Option(help="Number of patients; each has an AP and a lateral view.")] = 400,
    size: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = 224,
    difficulty: Annotated[str, typer.Option(help="easy, medium, hard, or a number from 0 to 1.")] = "easy",
    seed: Annotated[int, typer.Option(help="Random seed of the data set.")] = 0,
    bits: Annotated[str, typer.Option(help="Bits per pixel of the PNG files, 8 or 16.")] = "8",
    workers: Annotated[int | None, typer.Option(help="Number of processes. Default: one for each core.")] = None,
) -> None:
    """Draw a synthetic data set of long-bone radiographs. The images are labelled phantoms with no clinical meaning.

    Writes images, manifest.csv (for se-fused fracture train --data), cracks.csv (position of each crack), about.json
    and sheet.png.
    """
    from ...._errors import InputError
    from ..synth import draw_sheet, write_set
    from ..synth.drawing import difficulty_of

    for option, value, least in (("--patients", patients, 1), ("--size", size, 32), ("--seed", seed, 0)):
        at_least(option, value, least)
    at_least("--workers", workers, 1)
    choice("--bits", bits, ("8", "16"))
    try:
        number = difficulty_of(difficulty)
    except InputError as error:
        raise bad("--difficulty", str(error)) from None
    with progress_bar("synth") as progress:
        manifest = write_set(folder, patients, size, seed, number, int(bits), workers, progress)
        progress("drawing the sheet", 1.0)
        draw_sheet(folder, folder / "sheet.png")
    _print_counts(manifest)
    to = console()
    for name, what in (("images/", ""), ("manifest.csv", "for --data"), ("cracks.csv", "position of each crack"),
                       ("sheet.png", "examples of each class")):  # fmt: skip
        to.print(f"  {folder / name}{'/' if name.endswith('/') else ''}  {what}".rstrip(), markup=False, soft_wrap=True)
