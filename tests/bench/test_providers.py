"""Tests of the providers: those that can run here agree with float64, and the others give the reason."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch
from support.agreement import assert_agrees, errors
from support.modules import one_thread  # noqa: F401 (a fixture)
from torch import nn

from se_fused._formats import LAYOUTS
from se_fused.bench.providers import engines, registry, torch_compile
from se_fused.bench.providers.modules import LIBRARIES, se_layer
from se_fused.bench.providers.registry import ALL_MODES
from se_fused.bench.workloads import block, network
from se_fused.bench.workloads.base import Workload
from se_fused.bench.workloads.block import BlockWorkload
from se_fused.bench.workloads.network import ImageBatch, ModelWorkload
from se_fused.testing.error_bounds import GRADIENT_FLOOR, relative_error

DTYPES = [torch.float32, torch.bfloat16]
SHAPE = (2, 16, 7, 7)
FORMS = [(mode, batch_norm) for mode in ALL_MODES for batch_norm in (False, True)]


def installed(name: str) -> None:
    module = registry.PROVIDERS[name].module
    if module is not None:
        pytest.importorskip(module)


# ---- blocks
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mode", "batch_norm"), FORMS)
@pytest.mark.parametrize("name", ["se_fused", *LIBRARIES])
def test_block(name: str, mode: str, batch_norm: bool, layout: str, dtype: torch.dtype) -> None:
    """Results, gradients and running statistics are right, and have the same names for every candidate."""
    installed(name)
    workload = BlockWorkload(SHAPE, dtype, layout, mode, "cpu", batch_norm)
    for seed in (0, 1):  # the second draw reaches the candidate too, because it shares the memory
        candidate = workload.candidate(name, layout)
        workload.draw(seed)
        truth = workload.truth()
        running = {"running_mean", "running_var"} if batch_norm and mode != "infer" else set()
        gradients = {f"d{k}" for k, t in workload.given.items() if not k.startswith("running")}
        assert truth.keys() == {"y"} | running | (gradients if mode == "train" else set())
        eager = errors(workload, "eager", layout, truth)
        candidate.run()  # changes the running statistics, which must not affect the next results
        results = candidate.results()
        assert results.keys() == truth.keys()
        for key, t in truth.items():
            assert results[key].shape == t.shape, key
            allowed = 2 * eager[key] + GRADIENT_FLOOR + (0 if key.startswith("running") else 4 * torch.finfo(dtype).eps)
            assert relative_error(results[key], t) <= allowed, key
        assert results["y"].is_contiguous(memory_format=LAYOUTS[layout])
    if name == "se_fused":
        bound = workload.bound("y")
        assert bound is not None and ((results["y"].double() - truth["y"]).abs() <= bound).all()


@pytest.mark.parametrize(("mode", "batch_norm"), FORMS)
def test_forms(mode: str, batch_norm: bool) -> None:
    """Title, counted traffic and operations, and the result of a run are right for each form of the block."""
    workload = BlockWorkload(SHAPE, torch.float32, "contiguous", mode, "cpu", batch_norm)
    what = {"infer": "inference", "forward": "forward", "train": "forward+backward"}[mode]
    assert workload.title == ("BN+" if batch_norm else "") + f"SE+add+ReLU {what}"
    elements, mask = 2 * 16 * 49, 2 * 16 * 49 // 8
    passes, masks, per_element, layers = {
        ("infer", False): (3, 0, 4, 1),
        ("infer", True): (3, 0, 6, 1),
        ("forward", False): (4, 1, 4, 1),
        ("forward", True): (4, 1, 10, 1),
        ("train", False): (9, 2, 9, 3),
        ("train", True): (10, 2, 24, 3),
    }[mode, batch_norm]
    assert workload.counted() == (4 * passes * elements + masks * mask, (6 if mode == "train" else 3) * 4 * elements)
    assert workload.flops() == per_element * elements + layers * 2 * (2 * 2 * 16 * 8)
    got = workload.candidate("eager", "contiguous").run()
    if mode == "train":
        y, gradients = got
        assert len(gradients) == sum(t.requires_grad for t in workload.given.values()) and y.requires_grad
    else:
        assert got.requires_grad == (mode == "forward")


@pytest.mark.parametrize(("mode", "depends"), [("infer", True), ("forward", False), ("train", False)])
def test_bound_goes_by_the_statistics_that_count(mode: str, depends: bool) -> None:
    """The error bound uses the batch's statistics in training, and the running ones in inference."""
    workload = BlockWorkload(SHAPE, torch.float32, "contiguous", mode, "cpu", True)
    before = workload.bound("y")
    workload.given["running_var"].mul_(9)
    after = workload.bound("y")
    assert before is not None and after is not None and torch.equal(before, after) is not depends


def test_defaults_of_a_block() -> None:
    titles = [BlockWorkload(SHAPE, torch.float32, "contiguous", mode, "cpu").title for mode in ALL_MODES]
    assert titles == ["SE+add+ReLU inference", "BN+SE+add+ReLU forward", "BN+SE+add+ReLU forward+backward"]


@pytest.mark.parametrize("channels", [4, 24, 200, 1000])
@pytest.mark.parametrize("library", LIBRARIES)
def test_hidden_units_of_every_library(library: str, channels: int) -> None:
    installed(library)
    hidden = max(channels // 16 // 8 * 8, 8)
    _, first, last = se_layer(library, channels, hidden)
    assert (first.weight.shape[:2], last.weight.shape[:2]) == ((hidden, channels), (channels, hidden))
    assert first.bias.shape == (hidden,) and last.bias.shape == (channels,)


# ---- networks
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", ["seresnet18", "resnet18"])
@pytest.mark.parametrize("name", [n for n in registry.NETWORK_PROVIDERS if not registry.compiles(n) and n != "eager"])
def test_network_inference(name: str, network: str, dtype: torch.dtype) -> None:
    workload = ModelWorkload(network, "infer", dtype, "cpu", data=ImageBatch(batch=4, size=64, num_classes=10))
    reason = registry.why_not(name, "cpu", dtype, "infer")
    if reason is not None:
        with pytest.raises(ValueError) as refused:
            workload.candidate(name, "contiguous")
        assert str(refused.value) == reason
        return
    own = registry.PROVIDERS[name].layout
    candidate = workload.candidate(name, "contiguous")
    assert candidate.layout == (own or "contiguous")
    workload.draw(7)  # the candidate uses the new images
    assert relative_error(candidate.results()["logits"], workload.truth()["logits"]) <= 0.3
    assert_agrees(workload, name, tuple(LAYOUTS) if own is None else (own,))


@pytest.mark.parametrize("network", ["seresnet18", "resnet18"])
def test_network_training(network: str) -> None:
    workload = ModelWorkload(network, "train", torch.float32, "cpu", data=ImageBatch(batch=4, size=64, num_classes=10))
    assert_agrees(workload, "se_fused")
    mine, other = (workload.candidate("se_fused", "contiguous") for _ in range(2))
    assert not {t.data_ptr() for t in mine.kept} & {t.data_ptr() for t in other.kept}, "candidates share weights"


def test_engines_follow_float64_closely() -> None:
    """In float32, engines err like PyTorch; their allowances are for the largest network in 16 bits."""
    workload = ModelWorkload(
        "seresnet18", "infer", torch.float32, "cpu", data=ImageBatch(batch=4, size=64, num_classes=10)
    )
    truth = workload.truth()
    for name in engines.ENGINES:
        if registry.why_not(name, "cpu", torch.float32, "infer") is None:
            eager = errors(workload, "eager", "contiguous", truth)["logits"]
            assert errors(workload, name, "contiguous", truth)["logits"] <= 4 * eager + GRADIENT_FLOOR, name


def test_operations_are_counted() -> None:
    """ResNet-50 has 4.089 G products at 224 x 224, as in torchvision's documentation; PyTorch counts two each."""
    from se_fused import create_model

    model = create_model("resnet50", device="meta")
    forward = network.network_flops(model, (1, 3, 224, 224), "infer")
    assert abs(forward / 2 / 4.089e9 - 1) < 1e-3
    # Backward computes each product twice more, except for the gradient of the images.
    stem = 2 * 64 * 3 * 49 * 112 * 112
    assert network.network_flops(model, (1, 3, 224, 224), "train") == 3 * forward - stem


class BasicBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) + x).relu()


def test_bytes_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(), nn.Flatten(), nn.Linear(4 * 25, 2, bias=False))
    x, u, y = 2 * 2 * 3 * 25, 2 * 2 * 4 * 25, 2 * 2 * 2  # in 16 bits
    w1, w2, w3 = 4 * (12 + 4), 4 * 4 * 4 * 9, 4 * 200  # in float32
    forward = (x + w1 + u) + (u + w2 + u) + (u + w3 + y) + u
    working_set = x + w1 + u + w2 + u + w3 + y
    assert network.network_bytes(model, (2, 3, 5, 5), torch.bfloat16, "infer") == (forward, working_set)
    backward = (u + x + 2 * w1) + (u + 2 * u + 2 * w2) + (y + 2 * u + 2 * w3) + u
    counted = network.network_bytes(model, (2, 3, 5, 5), torch.bfloat16, "train")
    assert counted == (forward + backward, 2 * working_set - x)


# ---- the compiler
class Counting:
    """A compiler backend that counts compilations and calls."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object):
        self.graphs += 1

        def run(*arguments):
            self.calls += 1
            return graph(*arguments)

        return run


def test_compiled_networks_live_side_by_side() -> None:
    """More models of one class than Dynamo's limit per code object, each with its own shape, compile only once each."""
    backend = Counting()
    models = [nn.Sequential(nn.Conv2d(1, c, 1), nn.ReLU()).eval() for c in range(1, 13)]
    graphs = [torch_compile.compiled(m, backend=backend) for m in models]
    with torch.no_grad():
        for turn in range(3):
            for c, (model, graph) in enumerate(zip(models, graphs, strict=True), 1):
                x = torch.randn(1, 1, c, c)
                assert torch.equal(graph(x), model(x))
                assert backend.graphs == (c if turn == 0 else 12), "compiled again"
    assert backend.calls == 36, "a call ran eagerly"
    torch_compile.fresh_compiler()
    with torch.no_grad():
        graphs[0](torch.randn(1, 1, 1, 1))
    assert backend.graphs == 13


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_compiled_candidates_live_side_by_side(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate compiles only once: blocks of ten shapes, and a network with and without SE."""
    backend, right = Counting(), torch_compile.compiled

    def spy(what, **options):
        options.pop("mode")
        return right(what, backend=backend, **options)

    monkeypatch.setattr(block, "compiled", spy)
    monkeypatch.setattr(network, "compiled", spy)
    built: list[Workload] = [
        BlockWorkload((1, 8, 2, w), torch.float32, "contiguous", mode, "cpu") for w in range(1, 11)
    ]
    built += [
        ModelWorkload(n, mode, torch.float32, "cpu", data=ImageBatch(batch=2, size=32, num_classes=2))
        for n in ("seresnet18", "resnet18")
    ]
    candidates = [workload.candidate("compile", workload.compiled_layout) for workload in built]
    for candidate in candidates:
        candidate.run()
    first, calls = backend.graphs, backend.calls
    assert first == len(candidates), "one graph each"
    for _ in range(2):
        for candidate in candidates:
            candidate.run()
    assert backend.graphs == first and backend.calls == 3 * calls


@pytest.mark.parametrize("mode", ALL_MODES)
def test_compiled_block(mode: str) -> None:
    assert_agrees(BlockWorkload(SHAPE, torch.float32, "channels_last", mode, "cpu"), "compile", ("channels_last",))


def test_freezing_is_set_for_the_first_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    seen = []

    def call(x: torch.Tensor) -> torch.Tensor:
        seen.append(inductor.freezing)
        if len(seen) == 1:
            raise RuntimeError("no compiler")
        return x

    monkeypatch.setattr(torch_compile, "compiled", lambda _: call)
    frozen = torch_compile.frozen(nn.Identity())
    with pytest.raises(RuntimeError, match="no compiler"):
        frozen(torch.ones(1))
    assert inductor.freezing is False
    for _ in range(3):
        frozen(torch.ones(1))
        assert inductor.freezing is False
    assert seen == [True, True, False, False]


def test_frozen_weights_are_constants() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).eval()
    x = torch.randn(2, 2, 4, 4)
    frozen = torch_compile.frozen(model)
    with torch.no_grad():
        y = frozen(x)
        torch.testing.assert_close(y, model(x))
        for p in model.parameters():
            p.zero_()
        assert torch.equal(frozen(x), y)


# ---- refusals and their reasons
REFUSED = [
    ("se_fused optimized", "cpu", torch.float32, "train", "se_fused optimized computes inference only"),
    ("se_fused graphed", "cpu", torch.float32, "infer", "se_fused graphed computes inference on GPUs only"),
    ("compile freezing", "cuda", torch.float32, "infer", "compile freezing is compared in inference on CPUs only"),
    ("compile freezing", "cpu", torch.float32, "train", "compile freezing is compared in inference on CPUs only"),
    ("compile max-autotune", "cpu", torch.float32, "infer", "max-autotune is compared on GPUs only: it needs a GPU"),
    ("compile reduce-overhead", "cpu", torch.float32, "infer", "reduce-overhead uses CUDA graphs: it needs a GPU"),
    ("openvino", "cuda", torch.float32, "infer", "openvino is compared in inference on CPUs only"),
    ("openvino", "cpu", torch.float32, "train", "openvino is compared in inference on CPUs only"),
    ("onnxruntime", "cpu", torch.float32, "forward", "onnxruntime computes inference only"),
    ("tensorrt", "cpu", torch.float32, "infer", "tensorrt needs torch_tensorrt and a GPU: pip install torch-tensorrt"),
]


@pytest.mark.parametrize(("name", "device", "dtype", "mode", "reason"), REFUSED)
def test_says_why_not(name: str, device: str, dtype: torch.dtype, mode: str, reason: str) -> None:
    assert registry.why_not(name, device, dtype, mode) == reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_onnxruntime_and_its_dtypes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    kind = str(dtype).removeprefix("torch.")
    reason = f"onnxruntime's CPU provider has no {kind} convolution"
    assert registry.why_not("onnxruntime", "cpu", dtype, "infer") == reason
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    reason = "onnxruntime has no CUDA provider here: pip install onnxruntime-gpu"
    assert registry.why_not("onnxruntime", "cuda", dtype, "infer") == reason
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    bf16 = "onnxruntime's CUDA provider has no bfloat16 convolution"
    assert registry.why_not("onnxruntime", "cuda", dtype, "infer") == (bf16 if dtype == torch.bfloat16 else None)


@pytest.mark.parametrize("name", ["timm", "torchvision", "monai", "openvino", "onnxruntime"])
def test_what_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    reason = f'{name} is not installed: pip install "se_fused[bench]"'
    assert registry.missing(name) == registry.why_not(name, "cpu", torch.float32, "infer") == reason
    workload = BlockWorkload(SHAPE, torch.float32, "contiguous", "infer", "cpu")
    known = registry.PROVIDERS[name].blocks
    with pytest.raises(ValueError, match="is not installed" if known else "name must be one of se_fused, eager, timm"):
        workload.candidate(name, "contiguous")


def test_missing_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    reason = "torch.compile needs a C++ compiler, but /nowhere/c++ was not found: set CXX"
    for name in ("compile", "compile freezing"):
        assert registry.why_not(name, "cpu", torch.float32, "infer") == reason
    monkeypatch.setitem(sys.modules, "triton", None)
    reason = "triton is not installed: pip install triton"
    for name in ("compile", "compile max-autotune", "compile reduce-overhead"):
        assert registry.why_not(name, "cuda", torch.float32, "train") == reason


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"name must be one of se_fused, .*; got 'tvm'"):
        registry.why_not("tvm", "cpu", torch.float32, "infer")
    with pytest.raises(ValueError, match="mode must be one of infer, forward, train; got 'test'"):
        registry.why_not("eager", "cpu", torch.float32, "test")
    with pytest.raises(ValueError, match="mode must be one of infer, forward, train; got 'test'"):
        BlockWorkload(SHAPE, torch.float32, "contiguous", "test", "cpu")
    workload = BlockWorkload(SHAPE, torch.float32, "contiguous", "infer", "cpu")
    with pytest.raises(ValueError, match="layout must be the workload's, 'contiguous'; got 'channels_last'"):
        workload.candidate("timm", "channels_last")
    with pytest.raises(ValueError, match="mode must be infer or train for a network; got 'forward'"):
        ModelWorkload("seresnet18", "forward", torch.float32, "cpu", data=ImageBatch(batch=1, size=32))


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.version("eager") == registry.version("compile") == f"torch {torch.__version__}"
    assert registry.version("se_fused").startswith("se_fused ")
    installed("timm")
    assert registry.version("timm") == f"timm {metadata.version('timm')}"

    def none(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", none)
    assert registry.version("openvino") == "openvino"


def test_allowances() -> None:
    own_rounding = {n for n in registry.PROVIDERS if registry.allowance(n, torch.bfloat16, "cpu") is not None}
    assert own_rounding == engines.ENGINES.keys() == {"openvino", "onnxruntime", "tensorrt"}
    assert registry.allowance("openvino", torch.float32, "cpu") == 1e-4


def test_asking_is_cheap() -> None:
    code = """
import sys, torch
from se_fused.bench.providers import registry
for name in registry.PROVIDERS:
    registry.why_not(name, "cpu", torch.float32, "infer"), registry.version(name)
heavy = {"timm", "torchvision", "monai", "openvino", "onnxruntime", "onnx", "torch_tensorrt"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
