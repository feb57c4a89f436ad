"""Tests of torch.export, AOTInductor and ONNX, and of TorchScript's error messages."""

import copy
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.modules import assert_as_close, one_thread, randomise  # noqa: F401
from support.paths import ROOT
from torch import Tensor, nn

import se_fused
from se_fused.models import SEResNet
from se_fused.models._blocks import Bottleneck

LAYERS = (1, 1, 1, 1)


def small(se: bool = True) -> nn.Module:
    """An SE-ResNet of four bottlenecks, in the legacy order."""
    return SEResNet(Bottleneck, LAYERS, num_classes=3, variant="caffe", se=se)


def converted(name: str) -> nn.Module:
    return se_fused.convert(pytest.importorskip("timm").create_model(name, num_classes=3))


def gates() -> nn.Module:
    """A layer with a gate other than SE: a 1-D convolution over the channels."""
    timm = pytest.importorskip("timm")
    return se_fused.convert(nn.Sequential(nn.Conv2d(3, 8, 1), timm.layers.EcaModule(8), nn.Conv2d(8, 3, 1)))


def optimized(build: Callable[[], nn.Module]) -> nn.Module:
    model = build()
    randomise(model)
    return se_fused.optimize_for_inference(model.eval(), torch.randn(2, 3, 32, 32))


def monai_block() -> nn.Module:
    blocks = pytest.importorskip("monai.networks.blocks")
    return se_fused.convert(
        nn.Sequential(nn.Conv3d(3, 8, 1), blocks.ResidualSELayer(3, 8), blocks.SEBlock(3, 8, 4, 4, 8))
    )


BUILD: dict[str, Callable[[], nn.Module]] = {
    "caffe": small,
    "resnet": lambda: small(se=False),
    "unet": lambda: se_fused.UNet(num_classes=3, width=4),
    "gates": gates,
    "monai": monai_block,
    "efficientnet": lambda: converted("test_efficientnet"),
    "optimized": lambda: optimized(small),
}
SLOW: dict[str, Callable[[], nn.Module]] = {
    "seresnet18": lambda: se_fused.SEResNet18(num_classes=3),
    "seresnet50-caffe": lambda: se_fused.SEResNet50(num_classes=3, variant="caffe"),
    "mobilenetv3": lambda: converted("mobilenetv3_small_050"),
    "optimized-mobilenetv3": lambda: optimized(
        lambda: pytest.importorskip("timm").create_model("mobilenetv3_small_050", num_classes=3)
    ),
}
EVERY = [*BUILD, *(pytest.param(name, marks=pytest.mark.nightly) for name in SLOW)]


def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """(model in eval mode, input to export with, input of another batch size); no weight is neutral."""
    torch.manual_seed(0)
    model = (BUILD | SLOW)[name]()
    if "optimized" not in name:
        randomise(model)
    size = (3, 6, 6, 6) if name == "monai" else (3, 32, 32)
    return model.eval(), torch.randn(2, *size), torch.randn(5, *size)


def exported(model: nn.Module, x: Tensor, strict: bool = False) -> torch.export.ExportedProgram:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """The operators in the graph and its inner graphs: "aten.conv2d.default", ..."""
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    return {str(node.target) for node in nodes if node.target is not operator.getitem}


def assert_is(result: Tensor, model: nn.Module, x: Tensor) -> None:
    """Check that a result is as close to the float64 truth as that of the exported model."""
    with torch.no_grad():
        plain = copy.deepcopy(model).double() if not isinstance(model, torch.fx.GraphModule) else None
        ours = model(x)
        assert_as_close(result.detach(), ours, ours.double() if plain is None else plain(x.double()), terms=1000)


OWN = {
    "caffe": "batch_norm_squeeze_excite_forward",
    "unet": None,  # without SE: plain operators, which a compiler fuses as well
    "efficientnet": "gated_conv1x1",
    "monai": "batch_norm_squeeze_excite_forward",
    "optimized": "conv1x1_squeeze_excite",
}


def in_a_fresh_process(code: str, *arguments: str) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=os.environ | {"PYTHONPATH": path})


LOAD = """
import sys, torch
torch.set_num_threads(1)
for path in sys.argv[1:]:
    x, y = torch.load(path + ".pt")
    with torch.no_grad():
        assert torch.equal(torch.export.load(path).module()(x), y), path
"""
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("se_fused", "timm", "monai"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""


def test_programs_hold_the_operators_and_load_elsewhere(tmp_path: Path) -> None:
    paths = []
    for name, own in OWN.items():
        model, x, other = built(name)
        with torch.no_grad():
            program = exported(model, x)
            assert {f"se_fused.{own}.default"} <= operators(program) if own else own is None
            y = program.module()(other)
            assert_is(y, model, other)
        paths.append(str(tmp_path / f"{name}.pt2"))
        torch.export.save(program, paths[-1])
        torch.save((other, y), paths[-1] + ".pt")
    in_a_fresh_process("import se_fused" + LOAD, *paths)


def test_plain_programs_need_no_library(tmp_path: Path) -> None:
    paths = []
    for name in OWN:
        model, x, other = built(name)
        with se_fused.use_backend("reference"), torch.no_grad():
            program = exported(model, x)
        assert all(target.startswith(("aten.", "<built-in function")) for target in operators(program))
        y = program.module()(other)
        assert_is(y, model, other)
        paths.append(str(tmp_path / f"{name}.pt2"))
        torch.export.save(program, paths[-1])
        torch.save((other, y.detach()), paths[-1] + ".pt")
    in_a_fresh_process(BLOCK + LOAD, *paths)


@pytest.mark.parametrize("name", ["caffe", "efficientnet", "gates"])
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_programs_can_be_trained(name: str, strict: bool) -> None:
    """A program exported with gradients enabled gives the same result and a gradient for each parameter."""
    model, x, other = built(name)
    program = exported(model, x, strict)
    module = program.module()
    module(other).square().mean().backward()
    gradients = {k: p.grad for k, p in module.named_parameters()}
    twin = copy.deepcopy(model)
    twin.zero_grad()
    y = twin(other)
    assert_is(module(other), model, other)
    y.square().mean().backward()
    assert len(gradients) == len(list(twin.parameters()))
    for key, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-5, atol=1e-6)


def test_a_program_for_inference_says_so_when_a_gradient_is_wanted() -> None:
    with torch.no_grad():
        program = exported(se_fused.SqueezeExcite(8), torch.randn(2, 8, 4, 4))
    with pytest.raises(RuntimeError, match=r"exported under torch.no_grad\(\)"):
        program.module()(torch.randn(2, 8, 4, 4))


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_aot_inductor(backend: str, tmp_path: Path) -> None:
    """A package with our operators needs se_fused in Python; one with plain operators does not."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.se = nn.BatchNorm2d(8), se_fused.SqueezeExcite(8)

        def forward(self, x: Tensor) -> Tensor:
            return se_fused.nn.fused_block_end(self.bn, self.se, x, x, "relu")

    model = Block().eval()
    randomise(model)
    x, other = torch.randn(2, 8, 6, 6), torch.randn(5, 8, 6, 6)
    with torch.no_grad(), se_fused.use_backend(backend):
        program = exported(model, x)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "block.pt2"))
    with torch.no_grad():
        y = torch._inductor.aoti_load_package(path)(other)
    assert_is(y, model, other)
    torch.save((other, y), path + ".pt")
    load = LOAD.replace("torch.export.load(path).module()", "torch._inductor.aoti_load_package(path)")
    in_a_fresh_process(("import se_fused" if backend == "auto" else BLOCK) + load, path)


# ---- ONNX
def run_onnx(path: Path, x: Tensor) -> Tensor:
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    assert {node.domain for node in onnx.load(path).graph.node} <= {""}
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)


@pytest.mark.parametrize("name", EVERY)
def test_onnx(name: str, tmp_path: Path) -> None:
    """torch.onnx.export gives standard operators only, for any batch; ONNX Runtime is as exact as the model."""
    pytest.importorskip("onnxscript")
    model, x, other = built(name)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False)
    assert_is(run_onnx(path, other), model, other)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["caffe", "optimized"])
def test_onnx_by_the_older_exporter(name: str, tmp_path: Path) -> None:
    model, x, other = built(name)
    pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(model, (x,), path, dynamo=False, dynamic_axes={"x": {0: "n"}}, **names)
    assert_is(run_onnx(path, other), model, other)


# ---- TorchScript
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILD)
def test_torchscript_is_refused(name: str) -> None:
    model, x, _ = built(name)
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile .*(torch.export|se_fused.revert)"):
        torch.jit.script(nn.Sequential(model))
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record .*torch.export.*'reference'"):
        torch.jit.trace(model, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILD)
def test_plain_models_can_be_traced(name: str, tmp_path: Path) -> None:
    model, x, other = built(name)
    with se_fused.use_backend("reference"), torch.no_grad():
        traced = torch.jit.trace(model, x)
    torch.jit.save(traced, tmp_path / "traced.pt")
    assert "se_fused" not in {node.kind().split("::")[0] for node in traced.inlined_graph.nodes()}
    assert_is(torch.jit.load(tmp_path / "traced.pt")(other), model, other)
