"""Tests that need a real GPU: what neither Triton's interpreter nor the CPU shim for CUDA kernels can show.

The other tests of the backends run on the GPU too. Tests marked ``sanitizer`` are small; ``python3 -m benchmarks.gpu
right`` runs them under compute-sanitizer's memcheck.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.triton_groups import l2_grouped_config_of
from torch import nn

import se_fused
from se_fused import backends, functional, reference
from se_fused._formats import LAYOUTS
from se_fused.testing.verify import Case, check, to_layout

pytestmark = pytest.mark.gpu


TRITON_ONLY = ("test_l2_grouped_inference", "test_convolution", "test_autotuning_measures_once")


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each GPU backend; a backend that is built but cannot run on this GPU fails."""
    name = request.param
    if name != "triton" and request.node.originalname in TRITON_ONLY:
        pytest.skip("tests the Triton backend only")
    if not backends.BACKENDS[name].describe()["built"]:
        pytest.skip(str(backends.BACKENDS[name].describe()["reason"]))
    with backends.use_backend(name):
        yield name


def infer(x: torch.Tensor, *fc: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return functional.squeeze_excite(x, *fc, x, out_act="relu")


def weights(c: int, r: int, dtype: torch.dtype) -> list[torch.Tensor]:
    sizes = ((r, c), (r,), (c, r), (c,))
    return [(torch.randn(*size) * c**-0.5).to("cuda", dtype) for size in sizes]


# ---- small tests, which also run under compute-sanitizer
@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 70, 9, 7), (3, 16, 14, 14)], ids=str)
def test_training(shape: tuple[int, ...], layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert check(Case("batch_norm_squeeze_excite", shape, dtype, layout, "cuda", hidden=17), seeds=range(3)).ok


@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_l2_grouped_inference(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that wait for each other give the right result, also when there are more than can run at once."""
    from se_fused.backends.triton import batch_norm_squeeze_excite, plan

    monkeypatch.setattr(batch_norm_squeeze_excite, "l2_grouped_config", l2_grouped_config_of(512, 32, 3))
    plan.forget()
    x = to_layout(torch.randn(32, 96, 13, 11), layout).cuda()
    fc = weights(96, 24, torch.float32)
    truth = reference.squeeze_excite(x, *fc, x, out_act="relu")
    for _ in range(20):
        torch.testing.assert_close(infer(x, *fc), truth)
    plan.forget()


@pytest.mark.sanitizer
def test_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("se_fused.backends.triton.conv1x1_squeeze_excite.fastest", lambda key, ways, device: "product")
    h = torch.randn(3, 40, 13, 11).cuda().bfloat16().contiguous(memory_format=torch.channels_last)
    conv_weight = (torch.randn(136, 40, 1, 1) * 0.15).cuda().bfloat16()
    fc = weights(136, 9, torch.bfloat16)
    with torch.no_grad():
        y = functional.conv1x1_squeeze_excite(h, conv_weight, None, *fc, out_act="relu")
        truth = reference.conv1x1_squeeze_excite(h, conv_weight, None, *fc, out_act="relu")
    torch.testing.assert_close(y, truth, rtol=2e-2, atol=2e-2)


@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(13, 64, 9, 7), (9, 96, 28, 28), (40, 256, 14, 14)], ids=str)
def test_inference(shape: tuple[int, ...], layout: str) -> None:
    """The result is right with clusters of one and of several samples, and with an incomplete last cluster."""
    c = shape[1]
    for dtype in (torch.float32, torch.bfloat16):
        x = to_layout(torch.randn(shape), layout).to("cuda", dtype)
        fc = weights(c, c // 4, dtype)
        truth = reference.squeeze_excite(x.double(), *(t.double() for t in fc), x.double(), out_act="relu")
        for _ in range(5):
            torch.testing.assert_close(infer(x, *fc), truth.to(dtype))


# ---- large tests
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(128, 256, 56, 56), (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7)])
def test_stages_of_resnet50(shape: tuple[int, ...], layout: str) -> None:
    """The launch shapes that the benchmarks use give the results of eager PyTorch in float32."""
    x = to_layout(torch.randn(shape, device="cuda"), layout)
    c = shape[1]
    fc = weights(c, c // 16, torch.float32)
    torch.testing.assert_close(infer(x, *fc), reference.squeeze_excite(x, *fc, x, out_act="relu"))
    bn = (torch.rand(c, device="cuda") + 0.5, torch.randn(c, device="cuda"))
    given = [t.requires_grad_() for t in (x, *bn, *fc)]

    def forward(module: ModuleType, out_act: str | None) -> torch.Tensor:
        y: torch.Tensor = module.batch_norm_squeeze_excite(
            given[0], None, None, *given[1:], x.detach(), training=True, out_act=out_act
        )
        return y

    # Where ReLU's argument is zero up to rounding, two correct results may differ in its derivative, and one such
    # element of N already changes dx by 2 / sqrt(N) of its norm. The incoming gradient is zero there.
    with torch.no_grad():
        t = forward(reference, None)
        dy = (t.abs() > 8 * torch.finfo(t.dtype).eps * t.abs().max()).to(t.dtype)
        assert dy.mean() > 0.999
    results = []
    for module in (functional, reference):
        y = forward(module, "relu")
        results.append([y, *torch.autograd.grad(y, given, dy)])
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.alone
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_elements_than_an_int32_counts(layout: str) -> None:
    """With more than 2^31 elements the last sample is right, although it lies beyond every 32-bit offset."""
    torch.cuda.empty_cache()  # frees the memory that earlier tests left in the cache
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    n, c, h, w = 3, 768, 1024, 1024
    x = torch.empty((n, c, h, w), dtype=torch.float16, device="cuda")
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    x.normal_()
    fc = weights(c, 8, torch.float16)
    y = infer(x, *fc)
    for i in (0, n - 1):
        one = x[i : i + 1]
        truth = reference.squeeze_excite(one, *fc, one, out_act="relu")
        torch.testing.assert_close(y[i : i + 1], truth, rtol=4e-3, atol=4e-3)  # eager rounds between the steps
    running = (torch.zeros(c, device="cuda"), torch.ones(c, device="cuda"))
    with torch.no_grad():
        y = functional.batch_norm_act(x, *running, None, None, training=True)
    assert (y[-1].float().mean() - 0.3989).abs() < 1e-2  # the mean of relu of a standard normal


# ---- streams, graphs, devices
def test_cuda_graph() -> None:
    for shape in ((8, 64, 14, 14), (64, 256, 56, 56)):
        x, fc = torch.randn(shape, device="cuda"), weights(shape[1], 16, torch.float32)
        infer(x, *fc)  # compiles the kernels, which is not possible during a capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = infer(x, *fc)
        for _ in range(3):
            x.normal_()
            graph.replay()
            torch.testing.assert_close(y, reference.squeeze_excite(x, *fc, x, out_act="relu"))


def small_network() -> nn.Module:
    """Two SE blocks of a network without max pooling, whose backward pass is not reproducible on a GPU."""
    torch.manual_seed(0)
    model = se_fused.SEResNet18(num_classes=5, drop_path_rate=0.2)
    return nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.layer1, model.layer2, nn.Flatten(2)).cuda()


@pytest.fixture(name="reproducible")
def cudnn_in_a_fixed_order() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimised", [False, True], ids=["plain", "optimised"])
def test_graphed(dtype: torch.dtype, optimised: bool) -> None:
    """Replays give the bits of eager calls, for two batch sizes in turn, with other weights and on another stream."""
    model = small_network().to(dtype).eval()
    sizes = [torch.randn(n, 3, 64, 64, device="cuda", dtype=dtype) for n in (1, 4)]
    if optimised:
        fast = se_fused.optimize_for_inference(model, sizes[0], cuda_graph=True)
        fast.add(sizes[1])
    else:
        fast = se_fused.graphed(model, *sizes)
    kept = []
    for turn in range(6):
        x = torch.randn_like(sizes[turn % 2])
        with torch.cuda.stream(torch.cuda.Stream() if turn == 3 else torch.cuda.current_stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            assert fast.why_not(x) is None
            y = fast(x)
        torch.cuda.synchronize()
        with torch.no_grad():
            kept.append((y, fast.module(x)))
            for parameter in fast.module.parameters():
                parameter.mul_(0.9)
    assert all(torch.equal(mine, theirs) for mine, theirs in kept)
    other = torch.randn(3, 3, 64, 64, device="cuda", dtype=dtype)
    assert fast.why_not(other) is not None and fast(other).shape[0] == 3


def test_what_cannot_be_captured() -> None:
    """After a capture that failed, the same model can be captured without what failed, and the GPU is usable."""

    class Reads(nn.Module):
        reads = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (x.sum().item() if self.reads else 2)

    model, x = Reads().eval(), torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError, match="cannot be captured"):
        se_fused.graphed(model, x)
    model.reads = False
    assert torch.equal(se_fused.graphed(model, x)(x), 2 * x)


@pytest.mark.usefixtures("reproducible")
def test_a_training_step_as_a_graph() -> None:
    """Three replays of a captured training step give the losses, weights and statistics of three plain steps."""
    found = []
    for graphed in (True, False):
        model = small_network().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3, device="cuda"), capturable=True)
        torch.manual_seed(1)
        batches = torch.randn(6, 8, 3, 32, 32)
        images = torch.zeros_like(batches[0], device="cuda").contiguous(memory_format=torch.channels_last)

        def step(model: nn.Module = model, optimizer: Any = optimizer, images: Any = images) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
                loss = model(images).float().square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        side, graph, losses = torch.cuda.Stream(), torch.cuda.CUDAGraph(), []
        for number, batch in enumerate(batches):
            images.copy_(batch)
            if number < 3 or not graphed:
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    loss = step()
                torch.cuda.current_stream().wait_stream(side)
            else:
                if number == 3:
                    with torch.cuda.graph(graph):
                        loss = step()
                graph.replay()
            losses.append(loss.clone())
        found.append([*losses, *model.state_dict().values()])
    assert all(torch.equal(mine, plain) for mine, plain in zip(*found, strict=True))


def on_two_streams(call: Callable[[], list[torch.Tensor]], times: int) -> list[list[torch.Tensor]]:
    """Return the results of ``times`` calls on each of two concurrent streams; each call has its own counters."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    torch.cuda.synchronize()
    for _ in range(times):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(call())
    torch.cuda.synchronize()
    return results


def test_streams_do_not_disturb_each_other() -> None:
    x, fc = torch.randn(64, 256, 56, 56, device="cuda"), weights(256, 16, torch.float32)
    truth = infer(x, *fc)
    assert all(torch.equal(y, truth) for (y,) in on_two_streams(lambda: [infer(x, *fc)], 5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_on_two_streams(layout: str) -> None:
    """Two concurrent streams give the results of one, forward and backward.

    Training always launches the excitation kernels, whose programs take tickets and wait for each other.
    """
    given = [to_layout(torch.randn(32, 256, 56, 56, device="cuda"), layout), *weights(256, 16, torch.float32)]
    residual = given[0].flip(0)
    for t in given:
        t.requires_grad_()

    def step() -> list[torch.Tensor]:
        x, *fc = given
        bn = (None,) * 4
        y = functional.batch_norm_squeeze_excite(x, *bn, *fc, residual, training=True, out_act="relu")
        return [y.detach(), *torch.autograd.grad(y, given, residual)]

    truth = step()
    for found in on_two_streams(step, 3):
        assert all(torch.equal(mine, wanted) for mine, wanted in zip(found, truth, strict=True))


def test_groups_of_samples(backend: str) -> None:
    """Inference with the planned groups of samples in L2 is right on one and on two streams."""
    n, c, s, r = 16, 256, 112, 16
    x = to_layout(torch.randn(n, c, s, s, device="cuda"), "channels_last").bfloat16()
    fc = weights(c, r, torch.bfloat16)
    if backend == "cuda":
        plan = backends.BACKENDS["cuda"].plan(n, c, s * s, True, 2, r)
        grouped = plan.startswith("l2_grouped")
    else:
        from se_fused.backends.triton.launch import recording

        with recording() as launches:
            infer(x, *fc)
        plan = " ".join(launch.name for launch in launches)
        grouped = plan == "l2_grouped_kernel"
    if not grouped:
        pytest.skip(f"this GPU does not use l2_grouped for this map: {plan}")
    truth = infer(x, *fc)
    wide = reference.squeeze_excite(x.double(), *(t.double() for t in fc), x.double(), out_act="relu")
    torch.testing.assert_close(truth, wide.bfloat16())
    assert all(torch.equal(y, truth) for (y,) in on_two_streams(lambda: [infer(x, *fc)], 5))


def test_same_bits_in_every_run() -> None:
    case = Case("batch_norm_squeeze_excite", (64, 256, 28, 28), torch.bfloat16, "channels_last", "cuda", hidden=16)
    given = case.draw(0)
    tensors = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    runs = []
    for _ in range(5):
        y = case.call(functional, given)
        runs.append([y, *torch.autograd.grad(y, tensors, torch.ones_like(y))])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    case = Case("batch_norm_squeeze_excite", (4, 24, 7, 5), device="cuda:1")
    given = case.draw(0)
    torch.testing.assert_close(case.call(functional, given), case.call(reference, given))


def compiled(function: Callable[..., torch.Tensor], mode: str) -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, mode=mode)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torch_compile(mode: str) -> None:
    x, fc = torch.randn(16, 64, 28, 28, device="cuda"), weights(64, 8, torch.float32)
    call = compiled(lambda x: functional.squeeze_excite(x, *fc, x, out_act="relu"), mode)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(call(x), reference.squeeze_excite(x, *fc, x, out_act="relu"))


def test_autotuning_measures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from se_fused.backends.triton import tuning

    monkeypatch.setenv("SE_FUSED_AUTOTUNE", "1")
    monkeypatch.setenv("SE_FUSED_CACHE", str(tmp_path))
    tuning._cache.cache_clear()
    x, fc = torch.randn(16, 64, 28, 28, device="cuda"), weights(64, 8, torch.float32)
    truth = reference.squeeze_excite(x, *fc, x, out_act="relu")
    torch.testing.assert_close(infer(x, *fc), truth)
    (path,) = tmp_path.iterdir()
    before = path.read_text()
    assert "means Map(n=16" in before and "scale_shift_act Map(n=16" in before
    torch.testing.assert_close(infer(x, *fc), truth)
    assert path.read_text() == before
    tuning._cache.cache_clear()
