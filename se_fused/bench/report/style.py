"""Drawing functions shared by the pictures: figures, files, styles of the candidates, grouped bars and legends.

They need matplotlib but no display, and do not change the state of pyplot.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._atomic_write import write_whole
from .format import layout_name, shape
from .records import Measurement, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "SMALL",
    "STYLES",
    "Bar",
    "Panel",
    "bar_pages",
    "check_matplotlib",
    "finish",
    "heading",
    "label_of",
    "legend",
    "new_figure",
    "save",
    "style",
]

SMALL = 8
"""Font size of the smallest text, in points."""
_HINT = 'drawing needs matplotlib: pip install matplotlib, or pip install "se_fused[bench]"'
_WHISKERS = {"ecolor": "#777777", "elinewidth": 1, "zorder": 3}

# Label, colour and marker. The colours are Okabe & Ito's and similar ones, darkened for text and thin lines; each
# candidate also has another marker, except for the group "module".
STYLES: dict[str, tuple[str, str, str]] = {
    "se_fused": ("se_fused", "#1b1b1b", "o"),
    "eager": ("eager PyTorch", "#3b6ea8", "s"),
    "compile": ("torch.compile", "#d9822b", "^"),
    "module": ("best of timm, torchvision, MONAI", "#009e73", "D"),
    "timm": ("timm", "#009e73", "D"),
    "torchvision": ("torchvision", "#56b4e9", "v"),
    "monai": ("MONAI", "#cc79a7", "P"),
    "openvino": ("OpenVINO", "#8c6bb1", "X"),
    "onnxruntime": ("ONNX Runtime", "#b09f1c", "<"),
    "tensorrt": ("TensorRT", "#7f7f7f", ">"),
    # this library's kernels, and their expected speed
    "cuda": ("CUDA", "#7a1f5c", "h"),
    "triton": ("Triton", "#2f8f9d", "p"),
    "expected": ("expected", "#cccccc", "|"),
}


def check_matplotlib() -> None:
    """Raise an ImportError with the command that installs matplotlib, if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(_HINT) from error


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches; needs no display."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write the figure as .png, .pdf or .svg, atomically."""
    write_whole(Path(path), lambda part: figure.savefig(part, dpi=130))


def style(name: str) -> tuple[str, str, str]:
    """Label, colour and marker of a family of candidates."""
    return STYLES.get(name, (name, "#a05a2c", "*"))


def label_of(m: Measurement) -> str:
    """Shape and layout of a measurement, such as "8×256×56×56 NCHW"."""
    return f"{shape(m.shape)} {layout_name(m.layout)}"


def heading(run: Run) -> str:
    """Title of a picture: machine, threads, version of torch and commit."""
    versions = run.info.get("versions") or {}
    threads = (run.info.get("cpu") or {}).get("threads")
    about = [run.where, f"{threads} threads" if threads and not run.machine[1] else ""]
    about += [f"torch {versions['torch']}" if versions.get("torch") else ""]
    about += [f"commit {run.commit[:10]}{' + changes' if run.dirty else ''}" if run.commit else ""]
    return ", ".join(filter(None, about))


def legend(figure: "Figure", columns: int = 4) -> None:
    """One legend below all panels, with each label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )


def finish(axes: "Axes", title: str, x: str, y: str = "") -> None:
    """Set title, labels and spines of a panel."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=SMALL)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@dataclass(frozen=True)
class Bar:
    """A value and its quartiles."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Bar":
        """A value without a range."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Panel:
    """Rows of bars; each row has a label and a bar per candidate."""

    title: str
    rows: Sequence[tuple[str, Mapping[str, Bar]]]

    @property
    def height(self) -> float:
        """Height in inches that the rows need with a text of 8 points beside each bar."""
        return 0.75 + sum(0.17 * max(len(bars), 1) + 0.12 for _, bars in self.rows)


def bars(axes: "Axes", panel: Panel, text: Callable[[float], str], x: str, line: float | None = None) -> None:
    """Draw grouped horizontal bars of equal thickness with their values, the first row at the top.

    Args:
        axes: the axes to draw into.
        panel: the rows.
        text: function that formats a value.
        x: label of the x axis.
        line: position of a dashed line, or None.
    """
    thick, gap = 1.0, 0.7
    top, places = 0.0, []
    lowest = min([0.0, *(bar.low for _, row in panel.rows for bar in row.values())])
    highest = max([line or 0.0, *(bar.high for _, row in panel.rows for bar in row.values())])
    width = highest - lowest or 1.0
    shown = set()
    for _, row in panel.rows:
        for k, (name, bar) in enumerate(row.items()):
            label, colour, _ = style(name)
            at = top + (k + 0.5) * thick
            error = [[max(bar.value - bar.low, 0)], [max(bar.high - bar.value, 0)]] if bar.high > bar.low else None
            axes.barh(at, bar.value, height=0.9 * thick, color=colour, zorder=2, xerr=error, error_kw=_WHISKERS,
                      label=None if label in shown else label)  # fmt: skip
            shown.add(label)
            axes.text(max(bar.high, 0) + 0.012 * width, at, text(bar.value), va="center", fontsize=SMALL, zorder=4,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # fmt: skip
        places.append(top + max(len(row), 1) * thick / 2)
        top += max(len(row), 1) * thick + gap
    if line is not None:
        axes.axvline(line, color="#666666", linewidth=1, linestyle="--", zorder=1)
    axes.set_xlim(lowest - (0.03 * width if lowest < 0 else 0), highest + 0.16 * width)
    axes.set_ylim(top - gap / 2, -gap / 2)
    axes.set_yticks(places, labels=[label for label, _ in panel.rows])
    finish(axes, panel.title, x)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines["left"].set_visible(False)


def bar_pages(
    panels: Iterable[Panel],
    title: str,
    text: Callable[[float], str],
    x: str,
    line: float | None = None,
    tallest: float = 24.0,
) -> list["Figure"]:
    """Figures with two columns of panels, each figure at most ``tallest`` inches high."""
    found = [panel for panel in panels if panel.rows]
    lines = [found[i : i + 2] for i in range(0, len(found), 2)]
    pages: list[list[list[Panel]]] = []
    room = 0.0
    for two in lines:
        height = max(panel.height for panel in two)
        if not pages or height > room:
            pages.append([])
            room = tallest
        pages[-1].append(two)
        room -= height
    figures = []
    for number, page in enumerate(pages, start=1):
        heights = [max(panel.height for panel in two) for two in page]
        columns = max(len(two) for two in page)
        figure = new_figure(6.6 * columns, sum(heights) + 1.0)
        grid = figure.subplots(len(page), columns, squeeze=False, height_ratios=heights)
        for line_of_axes, two in zip(grid, page, strict=True):
            for k, axes in enumerate(line_of_axes):
                if k < len(two):
                    bars(axes, two[k], text, x, line)
                else:
                    axes.remove()
        legend(figure)
        figure.suptitle(title + (f" ({number} of {len(pages)})" if len(pages) > 1 else ""), fontsize=11)
        figures.append(figure)
    return figures
