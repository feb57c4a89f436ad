"""Tests of DESIGN.md: its pictures are those that the script draws, its counts are PyTorch's.

test_references.py checks the sections that other files cite.
"""

import importlib.util
import re
from math import prod
from typing import Any

import pytest
import torch
from support.paths import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from se_fused import reference
from se_fused.bench.measure.traffic import counted_bytes, counted_passes

pytestmark = pytest.mark.quick

SPEC = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
assert SPEC is not None and SPEC.loader is not None
draw = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw)

DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"^##+ (\d+(?:\.\d+)?)\b", DESIGN, re.MULTILINE))
SHAPE = (4, 16, 12, 12)
ATEN = {"native_batch_norm": "batch norm", "native_batch_norm_backward": "batch norm", "threshold_backward": "relu"}


def test_numbers_of_cited_inner_sections() -> None:
    inner = re.findall(r"\bsections? (\d+(?:\.\d+)?)(?: (?:and|to) (\d+(?:\.\d+)?))?", DESIGN)
    assert inner and {number for pair in inner for number in pair if number} <= SECTIONS


@pytest.mark.parametrize("name", draw.PICTURES)
def test_committed_pictures(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == draw.PICTURES[name]().svg(), "run: python -m docs.draw"


def test_every_picture_is_shown() -> None:
    assert all(f"](docs/{name})" in DESIGN for name in draw.PICTURES)


class MapTraffic(TorchDispatchMode):
    """Records the operators that read or write whole maps: (name, reads, writes)."""

    VIEWS = ("view", "reshape", "detach", "alias", "expand")

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        reads, writes = self._maps(args), self._maps(result if isinstance(result, tuple) else (result,))
        if name not in self.VIEWS and reads + writes:
            self.rows.append((ATEN.get(name, name), reads, writes))
        return result

    @staticmethod
    def _maps(values: Any) -> int:
        return sum(isinstance(t, torch.Tensor) and t.numel() == prod(SHAPE) and 0 not in t.stride() for t in values)


def test_eager_operators() -> None:
    """PyTorch calls the operators of EAGER on as many maps; one that a kernel reads twice counts once here."""
    channels, hidden = SHAPE[1], 8
    x, residual = (torch.randn(SHAPE, requires_grad=True) for _ in range(2))
    norm = [torch.ones(channels, requires_grad=True) for _ in range(2)]
    layers = [
        torch.randn(s, requires_grad=True) for s in ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    ]
    with MapTraffic() as forward:
        y = reference.batch_norm_squeeze_excite(x, None, None, *norm, *layers, residual, training=True, out_act="relu")
    dy = torch.randn_like(y)
    with MapTraffic() as backward:
        torch.autograd.grad(y, [x, residual, *norm, *layers], dy)
    for recorded, drawn in ((forward.rows, draw.EAGER.forward), (backward.rows, draw.EAGER.backward)):
        wanted = [(k.name.split(":")[0], len(set(k.reads.split())), len(k.writes.split())) for k in drawn]
        assert sorted(recorded) == sorted(wanted)


def test_other_eager_counts() -> None:
    """The eager columns of DESIGN section 4 that are not drawn."""

    def moved(traffic: MapTraffic, again: int) -> int:
        """Passes; ``again``: maps that batch norm's kernel reads a second time."""
        return sum(reads + writes for _, reads, writes in traffic.rows) + again

    channels, hidden = SHAPE[1], 8
    x, residual = (torch.randn(SHAPE, requires_grad=True) for _ in range(2))
    norm = [torch.ones(channels, requires_grad=True) for _ in range(2)]
    with MapTraffic() as forward:
        y, squeezed = reference.batch_norm_act_squeeze(x, None, None, *norm, training=True, out_act="silu")
    results = torch.randn_like(y), torch.randn_like(squeezed)
    with MapTraffic() as backward:
        torch.autograd.grad((y, squeezed), [x, *norm], results)
    assert (moved(forward, 1), moved(backward, 2)) == (6, 12)
    factor = torch.rand(*SHAPE[:2], 1, 1, requires_grad=True)
    with MapTraffic() as forward:
        y = x * factor
    with MapTraffic() as backward:
        torch.autograd.grad(y, [x, factor], results[0])
    assert (moved(forward, 0), moved(backward, 0)) == (2, 6)
    layers = [torch.randn(s) for s in ((hidden, channels), (hidden,), (channels, hidden), (channels,))]
    given = torch.zeros(channels), torch.ones(channels)
    with torch.no_grad(), MapTraffic() as forward:
        reference.squeeze_excite(x, *layers, residual, out_act="relu")
    assert moved(forward, 0) == 8
    with torch.no_grad(), MapTraffic() as forward:
        reference.batch_norm_act_squeeze(x, *given, *norm, training=False, out_act="silu")
    assert moved(forward, 0) == 5


def test_totals() -> None:
    """The totals that DESIGN.md's table has."""
    one = draw.PASS
    assert draw.moved(draw.EAGER.forward, 0) == 11 * one and draw.moved(draw.EAGER.backward, 0) == 18 * one
    assert draw.moved(draw.COMPILED.forward, one // 2) == 6.5 * one
    assert draw.moved(draw.COMPILED.backward, one // 2) == 8.5 * one
    assert draw.total(draw.OURS) == counted_bytes(draw.SHAPE, draw.DTYPE, counted_passes(training=True))
