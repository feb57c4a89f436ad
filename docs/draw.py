"""Draws the pictures of DESIGN.md as SVG files beside this script: ``python -m docs.draw`` in the repository's root.

The output depends on this file and on ``se_fused.bench.measure.traffic`` alone: the same bytes on every machine. A test
(tests/package/test_design.py) compares the committed files with it, and the list of PyTorch's operators below with
the operators that PyTorch calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import torch

from se_fused.bench.measure.traffic import PassCounts, counted_bytes, counted_passes

HERE = Path(__file__).resolve().parent
WIDTH = 800
INK, QUIET, LINE = "#1f2933", "#55616e", "#9aa5b1"
BLUE, ORANGE, GREEN = "#2f6299", "#b3560f", "#0b7a5c"
PALE_BLUE, PALE_ORANGE, PALE_GREEN, PALE = "#dbe7f3", "#fbe9d7", "#d9efe7", "#f3f5f7"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


# ---- shapes
class Picture:
    """An SVG file: a white sheet with a title."""

    def __init__(self, height: int, title: str, subtitle: str = "") -> None:
        self.height, self.title = height, title
        self.parts: list[str] = []
        self.text(24, 36, title, size=20, weight="bold")
        if subtitle:
            self.text(24, 59, subtitle, size=14, colour=QUIET)

    def text(
        self, x: float, y: float, text: str, *, size: int = 14, colour: str = INK, anchor: str = "start",
        weight: str = "normal",
    ) -> None:  # fmt: skip
        """One line of text, its baseline at y."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(text)}</text>'
        )

    def lines(self, x: float, y: float, lines: Sequence[str], *, size: int = 13, step: float = 18, **how: str) -> None:
        """Lines of text, the first baseline at y."""
        for i, line in enumerate(lines):
            self.text(x, y + i * step, line, size=size, **how)

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "none", radius: float = 4,
        dash: str = "",
    ) -> None:  # fmt: skip
        """A rectangle with its upper left corner at (x, y)."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"{dashed}/>'
        )

    def arrow(self, *points: tuple[float, float], colour: str = INK, both: bool = False) -> None:
        """A line through the points with a head at its end, and at its start if ``both``."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        start = f' marker-start="url(#head-{colour[1:]})"' if both else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round" '
            f'marker-end="url(#head-{colour[1:]})"{start}/>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: Sequence[str], *, fill: str, stroke: str,
        colour: str = INK, size: int = 13, bold: bool = True,
    ) -> None:  # fmt: skip
        """A rectangle with centred lines of text, the first one bold."""
        self.rect(x, y, width, height, fill, stroke=stroke)
        step = size + 5
        first = y + height / 2 - step * (len(lines) - 1) / 2 + size * 0.36
        for i, line in enumerate(lines):
            weight = "bold" if bold and i == 0 else "normal"
            self.text(x + width / 2, first + i * step, line, size=size, colour=colour, anchor="middle", weight=weight)

    def svg(self) -> str:
        """The file's text."""
        heads = "".join(
            f'<marker id="head-{c[1:]}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" '
            f'orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z" fill="{c}"/></marker>'
            for c in (INK, BLUE, ORANGE, GREEN)
        )
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="{FONT}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<defs>{heads}</defs>",
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{self.height - 1}" rx="8" fill="#ffffff" '
            f'stroke="{LINE}"/>',
            *self.parts,
            "</svg>",
            "",
        ])  # fmt: skip


# ---- memory passes
SHAPE, DTYPE = (128, 256, 56, 56), torch.bfloat16
PASS = counted_bytes(SHAPE, DTYPE, PassCounts(forward=1, backward=0))
MASK = counted_bytes(SHAPE, DTYPE, PassCounts(forward=0, backward=0, forward_masks=1))
BOOLEANS = PASS // DTYPE.itemsize  # torch.compile's mask has a byte per element


class Kernel(NamedTuple):
    """A launch: the maps that it reads and writes. A name with "?" is a mask."""

    name: str
    reads: str
    writes: str


@dataclass(frozen=True)
class Implementation:
    """The kernels of BN + SE + add + ReLU in training."""

    name: str
    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]
    mask_bytes: int = 0


# The operators that PyTorch calls for se_fused.reference; batch norm reads its inputs once for sums and once more.
EAGER = Implementation(
    "PyTorch, eager",
    (
        Kernel("batch norm", "x x", "u"),  # statistics, then normalisation
        Kernel("mean", "u", ""),
        Kernel("mul", "u", "v"),
        Kernel("add", "v r", "t"),
        Kernel("relu", "t", "y"),
    ),
    (
        Kernel("relu", "dy y", "dr"),
        Kernel("mul: ds", "dr u", "w"),
        Kernel("mul", "dr", "du"),
        Kernel("sum", "w", ""),
        Kernel("div", "", "e"),  # the gradient of the mean, spread over the positions
        Kernel("add", "du e", "g"),
        Kernel("batch norm", "g x g x", "dx"),  # sums, then the gradient
    ),
)
# Inductor's output code for the same function (torch 2.14.1, CPU, bfloat16, channels_last; see TORCH_LOGS). A loop
# that reads what the loop before it has just written counts as part of that loop (u's mean, the sum over dr): a GPU's
# kernel may fuse the two. The CPU's code does not, and moves two passes more.
COMPILED = Implementation(
    "torch.compile",
    (
        Kernel("statistics", "x", ""),
        Kernel("normalise and mean", "x", "u"),
        Kernel("scale, add, ReLU", "u r", "y m?"),
    ),
    (
        Kernel("ReLU and sum for ds", "m? dy x", "dr"),
        Kernel("batch norm's sums", "dr x", ""),
        Kernel("gradient of x", "dr x", "dx"),
    ),
    BOOLEANS,
)
OURS = Implementation(
    "se_fused",
    (Kernel("moments", "x", ""), Kernel("scale_shift_act", "x r", "y m?")),
    (Kernel("moments_backward", "dy m? x", "dr"), Kernel("scale_shift_act_backward", "dr x", "dx")),
    MASK,
)


def moved(kernels: Sequence[Kernel], mask_bytes: int) -> int:
    """Bytes that kernels read and write."""
    names = [name for kernel in kernels for name in f"{kernel.reads} {kernel.writes}".split()]
    return sum(mask_bytes if "?" in name else PASS for name in names)


def total(implementation: Implementation) -> int:
    """Bytes of forward and backward pass."""
    return moved(implementation.forward + implementation.backward, implementation.mask_bytes)


def passes_text(count: int) -> str:
    """Bytes as passes: "11", "6 + 1/16"."""
    whole, rest = divmod(Fraction(count, PASS), 1)
    return f"{whole} + {rest}" if rest else str(whole)


def memory_passes() -> Picture:
    """Every read and write of a map, as cells whose width is their bytes."""
    assert total(OURS) == counted_bytes(SHAPE, DTYPE, counted_passes(training=True)), "OURS must be the library's count"
    n, c, h, w = SHAPE
    p = Picture(
        650,
        "Memory passes of a training step: relu(SE(BN(x)) + r)",
        f"Each cell reads or writes one map of ({n}, {c}, {h}, {w}) in bfloat16: {PASS / 1e6:.1f} MB. "
        "Counted, not measured.",
    )
    left, cell, gap, height = 112, 30.5, 9.0, 30
    y = 96.0
    for implementation in (EAGER, COMPILED, OURS):
        count = total(implementation)
        p.text(24, y, implementation.name, size=16, weight="bold")
        label = f"{passes_text(count)} passes, {count / 1e9:.2f} GB"
        if implementation is not EAGER:
            label += f"; eager moves {total(EAGER) / count:.1f} times as much"
        p.text(WIDTH - 24, y, label, size=14, anchor="end")
        for direction in ("forward", "backward"):
            kernels: tuple[Kernel, ...] = getattr(implementation, direction)
            y += 16
            p.text(24, y + 15, direction, size=13, colour=QUIET)
            p.text(24, y + 31, passes_text(moved(kernels, implementation.mask_bytes)), size=13, colour=QUIET)
            x = float(left)
            centres = []
            for kernel in kernels:
                begin = x
                for names, colour in ((kernel.reads, BLUE), (kernel.writes, ORANGE)):
                    for name in names.split():
                        mask = "?" in name
                        width = cell * (implementation.mask_bytes if mask else PASS) / PASS
                        p.rect(x + 0.75, y, max(width - 1.5, 1.8), height, INK if mask else colour, radius=2)
                        if width > 10:
                            p.text(
                                x + width / 2, y + 20, name.removesuffix("?"), size=12, colour="#ffffff",
                                anchor="middle",
                            )  # fmt: skip
                        x += max(width, 3.3)
                centres.append((begin + x) / 2)
                x += gap
            below = y + height + 15
            if implementation is EAGER:
                for kernel, centre in zip(kernels, centres, strict=True):
                    p.text(centre, below, kernel.name, size=12, colour=QUIET, anchor="middle")
            else:  # longer names than cells
                p.text(left, below, "; ".join(kernel.name for kernel in kernels), size=12, colour=QUIET)
            y += height + 20
        y += 40
    y -= 12
    for x, colour, label in ((24, BLUE, "read"), (94, ORANGE, "write"), (170, INK, "mask of the ReLU")):
        p.rect(x, y - 12, 14, 14, colour, radius=2)
        p.text(x + 20, y, label, size=13)
    p.text(320, y, "torch.compile saves a byte per element (m), se_fused a bit (black lines)", size=12, colour=QUIET)
    p.text(24, y + 26, "x: input, r: residual, y: result, u: normalised map, dr: gradient of u s + r; the other "
           "letters: intermediate maps", size=12, colour=QUIET)  # fmt: skip
    return p


# ---- a cluster that holds a sample
def cluster() -> Picture:
    """cluster_fused for one sample of ResNet-50's first stage: what each block holds, and what blocks exchange."""
    p = Picture(
        742,
        "cluster_fused: a thread-block cluster holds one sample",
        "Inference on sm_90 and later. A sample (256, 56, 56) in bfloat16, channels_last: 1.6 MB in 16 blocks.",
    )
    columns = ((112, "block 0"), (326, "block 1"), (566, "block 15"))
    width = 202

    def memory(y: float, labels: Sequence[str], fill: str, stroke: str) -> None:
        for (x, _), label in zip(columns, labels, strict=True):
            p.box(x, y, width, 30, [label], fill=fill, stroke=stroke, bold=False)
        p.text(547, y + 20, "...", size=18, anchor="middle", colour=QUIET)

    def exchange(y: float, first: str, second: str) -> None:
        p.rect(112, y, 656, 46, PALE_ORANGE, stroke=ORANGE)
        p.text(440, y + 19, first, size=13, anchor="middle", weight="bold", colour=ORANGE)
        p.text(440, y + 37, second, size=12, anchor="middle")

    slices = ("positions 0 to 195", "196 to 391", "2940 to 3135")
    p.lines(24, 90, ["x in", "memory"], colour=QUIET)
    memory(78, slices, PALE_BLUE, BLUE)
    p.rect(102, 132, 676, 524, "none", stroke=LINE, dash="6 4")
    p.lines(24, 158, ["cluster of", "16 blocks;", "each has", "112 KiB", "of shared", "memory"], size=13, colour=QUIET)
    for x, name in columns:
        p.arrow((x + width / 2, 108), (x + width / 2, 150), colour=BLUE)
        p.text(x + width / 2 + 10, 127, "bulk copy", size=12, colour=BLUE)
        p.rect(x, 152, width, 492, PALE, stroke=LINE)
        p.text(x + width / 2, 171, name, size=14, anchor="middle", weight="bold")
        p.box(
            x + 10, 180, width - 20, 60, ["196 positions of x", "all 256 channels, 98 KiB"], fill=PALE_BLUE, stroke=BLUE
        )
        p.box(x + 10, 248, width - 20, 42, ["means of its positions", "for all 256 channels"], fill="#ffffff",
              stroke=LINE, bold=False)  # fmt: skip
        p.box(x + 10, 362, width - 20, 56, ["z of its 16 channels,", "W1 z: its part of hidden"], fill="#ffffff",
              stroke=LINE, bold=False)  # fmt: skip
        p.box(x + 10, 490, width - 20, 42, ["hidden; gate s, scale and", "shift of its 16 channels"], fill="#ffffff",
              stroke=LINE, bold=False)  # fmt: skip
        p.box(x + 10, 604, width - 20, 32, ["act(scale x + shift + r)"], fill=PALE_GREEN, stroke=GREEN)
        for top, bottom in ((290, 302), (348, 362), (418, 430), (476, 490), (532, 544), (590, 604)):
            p.arrow((x + width / 2, top), (x + width / 2, bottom))
        p.arrow((x + width / 2, 636), (x + width / 2, 672), colour=GREEN)
    for y in (210, 270, 390, 512, 622):
        p.text(547, y + 5, "...", size=18, anchor="middle", colour=QUIET)
    exchange(302, "Cluster barrier: means through distributed shared memory",
             "each block adds the 16 blocks' shares of its 16 channels' means")  # fmt: skip
    exchange(430, "Cluster barrier: parts of hidden",
             "each block adds the 16 parts of W1 z, R numbers; W1 and W2 are each read once per cluster")  # fmt: skip
    exchange(544, "Cluster barrier: scale and shift",
             "each block reads scale and shift of all 256 channels")  # fmt: skip
    p.lines(24, 686, ["r is read,", "y written"], colour=QUIET)
    memory(674, slices, PALE_GREEN, GREEN)
    p.text(112, 726, "3 passes in one launch, where separate launches take 4. Not run on a GPU yet.", size=13,
           colour=QUIET)  # fmt: skip
    return p


# ---- the backward pass
def backward() -> Picture:
    """The backward pass as a data flow."""
    p = Picture(
        602,
        "The backward pass: pass 1, (N, C) arithmetic, pass 2",
        "Blue: maps (N, C, *spatial). Orange: (N, C) vectors in float32. Green: gradients that are returned.",
    )

    def a_map(x: float, y: float, name: str, about: str = "", width: float = 96, result: bool = False) -> None:
        lines = [name, about] if about else [name]
        p.box(x, y, width, 44, lines, fill=PALE_GREEN if result else PALE_BLUE, stroke=GREEN if result else BLUE)

    def kernel(x: float, y: float, width: float, height: float, lines: Sequence[str]) -> None:
        p.box(x, y, width, height, lines, fill=PALE, stroke=INK)

    a_map(148, 84, "x", "saved")
    a_map(268, 84, "dy", "given")
    a_map(388, 84, "mask", "1 bit each")
    for x in (196, 316, 436):
        p.arrow((x, 128), (x, 164), colour=BLUE)
    kernel(128, 166, 340, 66, ["Pass 1: moments_backward", "dr = dy where the mask is set (ReLU)",
                               "P = sum dr,  Q = sum dr (x - m)"])  # fmt: skip
    p.arrow((196, 232), (196, 290), colour=BLUE)
    a_map(128, 292, "dr", "= gradient of r", 136, result=True)
    p.arrow((400, 232), (400, 292), colour=ORANGE)
    p.text(412, 266, "P, Q", size=14, weight="bold", colour=ORANGE)
    kernel(300, 294, 304, 118, [
        "Excitation backward, (N, C)", "ds = d (a Q + z P)", "through gate, W2, act, W1: dz",
        "g1 = d s P + dz,  g2 = d s Q", "batch norm: k1, k2, k3",
    ])  # fmt: skip
    p.box(628, 166, 148, 84, ["saved", "means m, factor s,", "hidden, statistics"], fill=PALE_ORANGE, stroke=ORANGE)
    p.arrow((702, 250), (702, 324), (606, 324), colour=ORANGE)
    p.box(628, 356, 148, 84, ["gradients of", "gamma, beta,", "W1, b1, W2, b2"], fill=PALE_GREEN, stroke=GREEN)
    p.arrow((604, 398), (626, 398), colour=GREEN)
    p.arrow((400, 412), (400, 472), colour=ORANGE)
    p.text(412, 446, "k1, k2, k3", size=14, weight="bold", colour=ORANGE)
    p.arrow((196, 336), (196, 472), colour=BLUE)
    p.arrow((148, 106), (76, 106), (76, 501), (126, 501), colour=BLUE)
    p.text(86, 404, "read again", size=13, colour=BLUE)
    kernel(128, 474, 340, 54, ["Pass 2: scale_shift_act_backward", "dx = k1 dr + k2 (x - m) + k3"])
    p.arrow((468, 501), (626, 501), colour=GREEN)
    a_map(628, 479, "dx", "", 148, result=True)
    p.lines(128, 562, [
        "Maps moved: dy, x in and dr out, then dr, x in and dx out: 6 passes, and the mask once.",
        "Without a residual's gradient dr is not written: pass 2 reads dy and the mask again, 5 passes.",
    ], size=13, step=21, colour=QUIET)  # fmt: skip
    return p


PICTURES = {"memory-passes.svg": memory_passes, "cluster.svg": cluster, "backward.svg": backward}


def main() -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
