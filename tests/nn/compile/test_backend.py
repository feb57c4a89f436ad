"""The backend "se_fused" of torch.compile on a small model of each family, and as a backend of Dynamo."""

import importlib.metadata
import subprocess
import sys
import tomllib

import pytest
import torch
from support.compile import counts, keeping
from support.convert import build, cancelled_sizes, images, step, trio
from support.modules import FLIPS, assert_as_close, one_thread, rms  # noqa: F401 (a fixture)
from support.paths import ROOT
from torch import nn

import se_fused
from se_fused.nn.compile import backend

BN, SE, BN_SE = "batch_norm_act", "squeeze_excite", "batch_norm_squeeze_excite"
MEANS, PROJECTION = "batch_norm_act_squeeze", "gated_conv1x1"
# The calls in training, and in inference, where batch norms without squeeze-excite are the compiler's.
EXPECTED = {
    "timm-seresnet18-drop-path": ({BN_SE: 8, BN: 9}, {BN_SE: 8}),
    "timm-seresnext26d_32x4d": ({BN_SE: 8, BN: 19}, {BN_SE: 8}),
    "timm-legacy_seresnet18": ({SE: 8, BN: 17}, {SE: 8}),
    "timm-legacy_seresnext26_32x4d": ({BN_SE: 8, BN: 17}, {BN_SE: 8}),
    "timm-mobilenetv3_small_050": ({MEANS: 9, PROJECTION: 9, BN: 21}, {SE: 9}),
    "timm-regnety_002": ({MEANS: 13, PROJECTION: 13, BN: 27}, {SE: 13}),
    "timm-ecaresnet26t": ({BN: 19}, {}),
    "torchvision-mobilenet_v3_small": ({MEANS: 9, PROJECTION: 9, BN: 20}, {SE: 9}),
    "torchvision-resnet18": ({BN: 17}, {}),
    "monai-SEResNet50": ({BN_SE: 16, BN: 33}, {BN_SE: 16}),
    "monai-SEResNext50-3d": ({BN_SE: 16, BN: 33}, {BN_SE: 16}),
}
BY_DAY = (
    "timm-seresnet18-drop-path", "timm-legacy_seresnet18", "torchvision-mobilenet_v3_small", "torchvision-resnet18",
)  # fmt: skip
NAMES = [name if name in BY_DAY else pytest.param(name, marks=pytest.mark.nightly) for name in EXPECTED]


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("name", NAMES)
def test_training_steps(name):
    """After two steps the output, the gradients and the running statistics agree up to rounding."""
    model, original, truth = trio(build(name).train())
    x = images(name, 4)
    graphs, keep = keeping()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=keep)
    sizes = cancelled_sizes(truth)
    for _ in range(2):
        (ours, _), (theirs, eager), (y, wanted) = step(compiled, x), step(original, x), step(truth, x.double())
    mine = {k: p.grad for k, p in model.named_parameters() if p.grad is not None} | dict(model.named_buffers())
    assert counts(graphs) == EXPECTED[name][0]
    assert_as_close(ours, theirs, y, flips=1e-4)
    assert mine.keys() == wanted.keys() - {"input"}
    for key, value in mine.items():
        if key.endswith("num_batches_tracked"):
            assert value == 2 == eager[key]
        else:
            assert_as_close(value, eager[key], wanted[key], flips=FLIPS, size=sizes.get(key, 0.0))


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("name", NAMES)
def test_inference(name):
    model, original, truth = trio(build(name).eval())
    x = images(name)
    graphs, keep = keeping()
    torch._dynamo.reset()
    with torch.no_grad():
        ours = torch.compile(model, fullgraph=True, backend=keep)(x)
        assert_as_close(ours, original(x), truth(x.double()))
    assert counts(graphs) == EXPECTED[name][1]


class Net(nn.Module):
    """Two SE residual blocks, with 16 channels and small maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(True), nn.Conv2d(4, 16, 1), nn.Sigmoid()
            )
            for _ in range(2)
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for conv, norm, layer in zip(self.convs, self.norms, self.layers, strict=True):
            u = norm(conv(x))
            x = torch.relu(u * layer(u) + x)
        return self.fc(x.mean((2, 3)))


def nets(layout: torch.memory_format = torch.contiguous_format) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(trio(Net().to(memory_format=layout)))  # type: ignore[return-value]


def batch(n: int, layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    x = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(n))
    return x.contiguous(memory_format=layout)


def gradients(model: nn.Module, call: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(output, by name: gradients of a step with any batch size, and the buffers afterwards)."""
    torch._dynamo.mark_dynamic(x, 0)
    model.zero_grad()
    y = call(x)
    y.logsumexp(1).mean().backward()
    return y.detach(), {k: p.grad for k, p in model.named_parameters()} | dict(model.named_buffers())


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize(
    ("then", "layout"),
    [
        ("aot_eager", "contiguous"),
        pytest.param("aot_eager", "channels_last", marks=pytest.mark.nightly),
        pytest.param("inductor", "contiguous", marks=pytest.mark.nightly),
        ("inductor", "channels_last"),
    ],
)
@pytest.mark.grid(quick=0)
def test_dynamic_batch(then, layout, capsys):
    """One graph serves all batch sizes, in AOTAutograd and in Inductor's code."""
    models = nets(LAYOUTS[layout])
    torch._dynamo.reset()
    options = {"then": then, "verbose": True}
    compiled = torch.compile(models[0], fullgraph=True, backend=backend, options=options)
    for n in (4, 6):
        x = batch(n, LAYOUTS[layout])
        (a, mine), (b, theirs), (y, truth) = (
            gradients(model, call, given)
            for model, call, given in zip(
                models, (compiled, *models[1:]), (x.clone(), x.clone(), x.double()), strict=True
            )
        )
        assert_as_close(a, b, y)
        for key, value in mine.items():
            assert_as_close(value, theirs[key], truth[key], flips=FLIPS)
    said = capsys.readouterr().out
    assert said.startswith("se_fused: 2 x batch_norm_squeeze_excite, 1 x batch_norm_act in a graph of ")
    assert said.count("se_fused: ") == 1


def test_autocast():
    """Under autocast, the error is at most 1.5 times eager's."""
    ours, theirs, truth = nets()
    x, (graphs, keep) = batch(4), keeping()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend=keep)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, eager = compiled(x), theirs(x)
    exact = truth(x.double())
    assert y.dtype == eager.dtype == torch.bfloat16 and counts(graphs) == {BN_SE: 2, BN: 1}
    assert rms(y.double() - exact) <= 1.5 * rms(eager.double() - exact)


def test_autocast_inside_the_graph():
    """A block that begins in autocast and ends outside of it is left."""
    bn = nn.BatchNorm2d(4)

    def across(x):
        with torch.autocast("cpu", torch.bfloat16):
            u = bn(x)
        return torch.relu(u)

    def within(x):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.relu(bn(x)) + 1

    x = torch.randn(4, 4, 5, 5)
    for run, wanted in ((across, {}), (within, {BN: 1})):
        graphs, keep = keeping()
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(run, backend=keep)(x), run(x))
        assert counts(graphs) == wanted


def test_converted_models_agree():
    """A converted model's kernels are in the graph already; the batch norms outside its blocks are replaced."""
    ours, theirs, truth = trio(build("timm-seresnet18").eval())
    x, (graphs, keep) = images("timm-seresnet18"), keeping()
    torch._dynamo.reset()
    with torch.no_grad():
        assert_as_close(torch.compile(se_fused.convert(ours), backend=keep)(x), theirs(x), truth(x.double()))
    assert not counts(graphs) and "se_fused.batch_norm_squeeze_excite_forward" in str(graphs[0].graph)


def test_mode_and_options_are_passed_on():
    given = []

    def then(gm, inputs, **arguments):
        given.append(arguments)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(nn.ReLU(), backend=backend, options={"then": then, "epilogue_fusion": True})(torch.ones(2))
    torch._dynamo.reset()
    torch.compile(nn.ReLU(), backend=backend, options={"then": then, "verbose": False})(torch.ones(2))
    assert given == [{"options": {"epilogue_fusion": True}}, {}]
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no_such_option"):
        torch.compile(nn.ReLU(), backend=backend, options={"no_such_option": True})(torch.ones(2))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no-such-mode"):
        torch.compile(nn.ReLU(), backend=lambda *a: backend(*a, mode="no-such-mode"))(torch.ones(2))


@pytest.mark.grid(quick=0)
def test_found_by_name_after_an_installation(tmp_path):
    """The entry point makes torch.compile find the backend by its name, without an import of this package, which does
    not import Dynamo itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["torch_dynamo_backends"].items()
    assert name == "se_fused"
    assert importlib.metadata.EntryPoint(name, target, "torch_dynamo_backends").load() is backend
    metadata = tmp_path / "se_fused_entry_point-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: se_fused_entry_point\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[torch_dynamo_backends]\n{name} = {target}\n")
    code = f"""
import sys, torch
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU())
compiled = torch.compile(model, backend="se_fused", options={{"then": "eager", "verbose": True}})
compiled(torch.randn(2, 4, 3, 3))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("se_fused: 1 x batch_norm_act in a graph of ")
    code = "import sys, se_fused; print({'torch._dynamo', 'se_fused.nn.compile', 'sympy'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "set()"
