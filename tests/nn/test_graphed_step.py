"""The training step of docs/training.md as a CUDA graph, on a stand-in for CUDA graphs; test_gpu.py has a real one."""

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.cuda_graphs import GraphsOnCpu, cuda_stand_in  # noqa: F401 (fixture)
from support.documents import blocks, section
from support.paths import ROOT
from torch import nn

import se_fused


@pytest.fixture(autouse=True)
def adam_takes_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


def example() -> str:
    """The code of the guide for the CPU, with a narrower model and smaller images."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = blocks(section(text, "## A training step as a CUDA graph"), "python")
    for old, new in (("torch.cuda.is_available()", "True"), ('"cuda"', '"cpu"'), ("(8, 3, 64, 64", "(4, 3, 32, 32"),
                     ("zeros(8,", "zeros(4,"), ("(5, (8,))", "(5, (4,))"),
                     ("num_classes=5", "num_classes=5, channels=(8, 16, 24, 32), stem_channels=8")):  # fmt: skip
        assert old in code
        code = code.replace(old, new)
    return code


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(code, "example", "exec"), names)
    return names


@pytest.mark.parametrize("schedule", [False, True])
def test_the_step_of_the_guide_trains_as_without_a_graph(cuda: GraphsOnCpu, schedule: bool) -> None:
    """Losses, weights, running statistics, counts and optimiser states of six steps are those of six plain steps, also
    with a schedule that writes into the learning rate."""
    code = example()
    if schedule:
        made = "    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)\n"
        code = code.replace("    for number", made + "    for number") + "        schedule.step()\n"
    graphed = run(code)
    assert cuda.replays == [3]
    plain = run(code.replace("number < 3", "number < 6"))
    assert cuda.replays == [3, 0]
    assert len({float(loss) for loss in graphed["losses"]}) == 6
    assert float(graphed["lr"]) == pytest.approx(1e-3 / (64 if schedule else 1))
    # Under the stand-in's dispatch mode, running statistics are updated by PyTorch, with another rounding.
    torch.testing.assert_close(graphed["losses"], plain["losses"])
    found, wanted = graphed["model"].state_dict(), plain["model"].state_dict()
    torch.testing.assert_close(found, wanted)
    assert found["bn1.num_batches_tracked"] == 6
    states = [list(names["optimizer"].state.values()) for names in (graphed, plain)]
    torch.testing.assert_close(*states)


def test_drop_path_draws_in_each_replay(cuda: GraphsOnCpu) -> None:
    class Path(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.path = se_fused.nn.DropPath(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.path(x)

    path, x = Path(), torch.ones(64, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = path(x)
    drawn = []
    for _ in range(4):
        graph.replay()
        drawn.append(tuple(y[:, 0].tolist()))
    assert len(set(drawn)) == 4 and {0.0, 2.0} == set(drawn[0])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_cumulative_statistics_cannot_be_captured(cuda: GraphsOnCpu, momentum: float | None) -> None:
    """A batch norm with ``momentum=None`` reads its count on the host, as PyTorch's does; others do not."""
    model, images = se_fused.SEResNet18(num_classes=5), torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum

    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            F.cross_entropy(model(images), torch.tensor([0, 1])).backward()

    if momentum is None:
        with pytest.raises(RuntimeError, match="CUDA error") as error:
            capture()
        assert "not permitted when stream is capturing" in str(error.value.__context__)
    else:
        capture()
