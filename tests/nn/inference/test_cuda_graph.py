"""Tests of se_fused.graphed with a stand-in for CUDA graphs; tests/backends/test_gpu.py has those on a GPU."""

import copy
import io
import threading
from typing import Any

import pytest
import torch
from support.cuda_graphs import Detector, GraphsOnCpu, Stream, cuda_stand_in, same, small_model  # noqa: F401 (fixture)
from support.modules import randomise
from support.optimize import images
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import se_fused
from se_fused.functional import dispatch
from se_fused.nn import Graphed

pytestmark = pytest.mark.quick


# ---- replays
def test_calls_replay_the_graph_of_their_shape(cuda: GraphsOnCpu) -> None:
    plain = small_model()
    fast = se_fused.graphed(plain, images(1, 3, 8, 8), images(4, 3, 8, 8))
    assert isinstance(fast, Graphed) and fast.module is plain and not fast.training
    assert cuda.replays == [0, 0] and cuda.options == [{"capture_error_mode": "thread_local"}] * 2
    assert cuda.pools[0] is not None and cuda.pools[0] is cuda.pools[1]
    for seed in range(2, 5):
        same(fast, plain, images(1, 3, 8, 8, seed=seed))
        same(fast, plain, images(4, 3, 8, 8, seed=seed))
    assert cuda.replays == [3, 3] and cuda.current.name == "default"
    assert not fast(images(1, 3, 8, 8)).requires_grad  # although the parameters require grad


def test_the_capture_runs_on_a_side_stream_after_three_calls(cuda: GraphsOnCpu) -> None:
    seen = []

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((cuda.current.name, cuda.capturing, torch.is_grad_enabled()))
            return x + 1

    se_fused.graphed(Module().eval(), images(1, 2))
    assert seen == [("side", False, False)] * 3 + [("side", True, False)]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: images(2, 3, 8, 8),
        lambda x: images(1, 3, 9, 8),
        lambda x: x.double().float()[:, :, ::1].contiguous(memory_format=torch.channels_last),
        lambda x: images(1, 3, 8, 16)[..., ::2],
        lambda x: x[:, :1].expand(1, 3, 8, 8),
    ],
    ids=["batch", "size", "layout", "gaps", "expanded"],
)
def test_other_tensors_call_the_model(cuda: GraphsOnCpu, change: Any) -> None:
    plain, x = small_model(), images(1, 3, 8, 8)
    fast = se_fused.graphed(plain, x)
    other = change(x)
    assert fast.why_not(x) is None
    assert "(1, 3, 8, 8) of float32 with strides (0, 64, 8, 1) on cpu" in str(fast.why_not(other))
    same(fast, plain, other)
    assert not fast(other).requires_grad and cuda.replays == [0]


def test_other_dtypes_and_settings_call_the_model(cuda: GraphsOnCpu) -> None:
    x = images(1, 3, 8, 8)
    plain = small_model()
    fast = se_fused.graphed(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast to bfloat16" in str(fast.why_not(x))
        same(fast, plain, x)
        fast.add(x)
        same(fast, plain, x)
    with torch.autocast("cpu", torch.float16), se_fused.use_backend("reference"):
        assert "autocast to float16, backend reference" in str(fast.why_not(x))
    assert cuda.replays == [0, 1]
    same(fast, plain, x)
    assert cuda.replays == [1, 1]
    with pytest.raises(RuntimeError, match="should be the same"):  # the error of the model itself
        fast(x.double())
    with pytest.raises(TypeError, match="positional argument"):
        fast(x, x)
    with pytest.raises(TypeError, match="unexpected keyword"):
        fast(x, mask=x)


def test_casts_of_weights_are_part_of_the_graph(cuda: GraphsOnCpu) -> None:
    """Autocast stores the casts of weights until its block ends; a graph that used them would miss later values."""
    plain, x = small_model(), images(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        fast = se_fused.graphed(plain, x)
        before = fast(x)
    randomise(plain, 4)
    with torch.autocast("cpu", torch.bfloat16):
        same(fast, plain, x)
        assert not torch.equal(fast(x), before)
    assert cuda.replays == [3]


def test_one_channel_has_no_layout(cuda: GraphsOnCpu) -> None:
    # oneDNN's convolutions may add up in another order for the strides of channels_last.
    fast = se_fused.graphed(nn.ReLU().eval(), images(2, 1, 5, 5))
    same(fast, fast.module, images(2, 1, 5, 5, seed=2).to(memory_format=torch.channels_last))
    assert cuda.replays == [1]


def test_results_are_copies_unless_told_otherwise(cuda: GraphsOnCpu) -> None:
    x, other = images(1, 3, 8, 8), images(1, 3, 8, 8, seed=5)
    plain = small_model()
    fast = se_fused.graphed(plain, x)
    first = fast(x)
    kept = first.clone()
    fast(other)
    assert torch.equal(first, kept)
    bare = se_fused.graphed(plain, x, clone=False)
    first = bare(x)
    second = bare(other)
    assert first is second and torch.equal(first, fast(other))
    assert "clone=False" in repr(bare) and "(1, 3, 8, 8) of float32" in repr(bare)


def test_nested_arguments_and_results(cuda: GraphsOnCpu) -> None:
    plain = Detector().eval()
    image, boxes = images(2, 3, 4, 4), {"a": torch.arange(3)}
    fast = se_fused.graphed(plain, (image, boxes), {"image": image, "boxes": boxes, "wide": True, "shift": 2.0})
    image, boxes = images(2, 3, 4, 4, seed=7), {"a": torch.arange(3) + 5}
    same(fast, plain, image, boxes)
    same(fast, plain, image, boxes=boxes)  # the same call
    assert cuda.replays == [2, 0]
    same(fast, plain, image, boxes, True, shift=2.0)
    assert cuda.replays == [2, 1]
    for other in ((image, boxes, False), (image, {"a": boxes["a"], "b": image})):
        same(fast, plain, *other)
    same(fast, plain, image, boxes, True, shift=3.0)
    same(fast, plain, image, boxes, 1, shift=2.0)  # an int, not a bool
    assert cuda.replays == [2, 1]
    assert "2.0" in str(fast.why_not(image, boxes, [1], shift={2})) and cuda.replays == [2, 1]
    assert fast.why_not(image, boxes, {1}) is not None  # a set cannot be hashed


def test_inputs_that_the_model_writes_to_are_not_changed(cuda: GraphsOnCpu) -> None:
    fast = se_fused.graphed(nn.ReLU(inplace=True).eval(), images(2, 3))
    x = images(2, 3, seed=3)
    kept = x.clone()
    for _ in range(2):
        assert torch.equal(fast(x), kept.relu())
    assert torch.equal(x, kept)


def test_inference_mode(cuda: GraphsOnCpu) -> None:
    """A graph that is captured in inference mode can be replayed outside, and the reverse."""
    plain, x = small_model(), images(1, 3, 8, 8)
    with torch.inference_mode():
        inside = se_fused.graphed(plain, images(1, 3, 8, 8))
    same(inside, plain, x)
    outside = se_fused.graphed(plain, x)
    with torch.inference_mode():
        same(outside, plain, images(1, 3, 8, 8, seed=4))
    same(outside, plain, x)
    assert cuda.replays == [1, 2]


def test_streams_and_threads_wait_for_each_other(cuda: GraphsOnCpu) -> None:
    plain = small_model()
    fast = se_fused.graphed(plain, images(1, 3, 8, 8))
    fast(images(1, 3, 8, 8))
    other = Stream(name="other")
    with torch.cuda.stream(other):  # type: ignore[arg-type]
        fast(images(1, 3, 8, 8))
        fast(images(1, 3, 8, 8))
    assert other.waited == ["default"]
    fast(images(1, 3, 8, 8))
    assert cuda.current.waited[-1] == "other"
    wrong = []

    def call(seed: int) -> None:
        x = images(1, 3, 8, 8, seed=seed)
        with torch.no_grad():
            wrong.extend(seed for _ in range(20) if not torch.equal(fast(x), plain(x)))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cuda.replays == [84]


def test_modes_and_captures_see_the_operators_of_the_model(cuda: GraphsOnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", set())  # each warning comes once
    plain, x = small_model(), images(1, 3, 8, 8)
    fast = se_fused.graphed(plain, x)
    with FlopCounterMode(display=False) as mine:
        assert "TorchDispatchMode" in str(fast.why_not(x))
        fast(x)
    with FlopCounterMode(display=False) as theirs:
        plain(x)
    assert mine.get_total_flops() == theirs.get_total_flops() > 0
    with pytest.warns(UserWarning, match="torch.func's transforms"):
        torch.testing.assert_close(torch.func.vmap(fast)(x[None]), plain(x)[None])
    outer = se_fused.graphed(nn.Sequential(fast, nn.ReLU()).eval(), x)
    assert cuda.replays == [3, 0]  # replayed in the three calls before the capture of the outer graph, not in it
    torch.testing.assert_close(outer(x), plain(x).relu())
    assert cuda.replays == [3, 1]


# ---- changes of the model
def test_values_that_are_written_hold_for_the_next_call(cuda: GraphsOnCpu) -> None:
    plain, x = small_model(), images(1, 3, 8, 8)
    fast = se_fused.graphed(plain, x)
    before = fast(x)
    other = copy.deepcopy(plain)
    randomise(other, 3)
    fast.load_state_dict(other.state_dict())
    same(fast, other, x)
    assert cuda.replays == [2] and not torch.equal(before, fast(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.load_state_dict({k: v.clone() * 2 for k, v in m.state_dict().items()}, assign=True),
        lambda m: m[0].weight.data.__class__ and setattr(m[0].weight, "data", m[0].weight.data * 2),
        lambda m: setattr(m[1], "running_mean", m[1].running_mean + 1),
        lambda m: m.__setitem__(2, nn.Sigmoid().eval()),
        lambda m: m.append(nn.Tanh().eval()),
        lambda m: m.bfloat16().float(),
    ],
    ids=["assign", "data", "buffer", "module", "append", "cast"],
)
def test_what_is_replaced_is_captured_again(cuda: GraphsOnCpu, change: Any) -> None:
    plain, x = small_model(), images(1, 3, 8, 8)
    fast = se_fused.graphed(plain, x, images(2, 3, 8, 8))
    same(fast, plain, x)
    change(plain)
    for _ in range(2):
        same(fast, plain, x)
        same(fast, plain, images(2, 3, 8, 8))
    assert len(cuda.graphs) == 4
    assert cuda.pools[2] is cuda.pools[3] is not cuda.pools[1]  # a pool without graphs cannot be used again


def test_moving_the_graphed_model_drops_its_graphs(cuda: GraphsOnCpu) -> None:
    fast = se_fused.graphed(small_model(), images(1, 3, 8, 8))
    fast.to(torch.bfloat16)
    x = images(1, 3, 8, 8).bfloat16()
    same(fast, fast.module, x)
    fast.float()
    same(fast, fast.module, x.float())
    assert cuda.replays == [0, 1]


def test_the_graphed_model_is_a_module(cuda: GraphsOnCpu) -> None:
    plain, x = small_model(), images(1, 3, 8, 8)
    fast = se_fused.graphed(plain, x)
    assert fast.eval() is fast and fast.state_dict().keys() == plain.state_dict().keys()
    outer = nn.Sequential(fast, nn.ReLU()).eval()
    inner = nn.Sequential(small_model(), nn.ReLU()).eval()
    assert outer.state_dict().keys() == inner.state_dict().keys()
    randomise(inner, 9)
    outer.load_state_dict(inner.state_dict())
    same(outer, inner, x)
    with pytest.raises(RuntimeError, match="Missing key"):
        fast.load_state_dict({})
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for again in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        before = len(cuda.graphs)
        for _ in range(2):
            same(again, plain, x)
        assert len(cuda.graphs) == before + 1 and cuda.graphs[-1].replays == 2
        same(again, plain, images(3, 3, 8, 8))


# ---- optimised models
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small_model()

    def forward(self, image: Tensor, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.body(image)
        return y if scale is None else y * scale


def test_an_optimised_model_is_graphed(cuda: GraphsOnCpu) -> None:
    x = images(2, 3, 8, 8).double()  # graphs are for the example's own dtype, not for the one that is checked
    plain = small_model()
    fast = se_fused.optimize_for_inference(plain, x, cuda_graph=True)
    assert isinstance(fast, Graphed) and isinstance(fast.module, torch.fx.GraphModule)
    torch.testing.assert_close(fast(x), plain(x.float()), rtol=1e-4, atol=1e-4)
    assert cuda.replays == [1] and fast.why_not(x.float()) is not None
    scale = torch.tensor(2.0)
    for example in ((x, scale), {"image": x, "scale": scale}):
        fast = se_fused.optimize_for_inference(TwoInputs().eval(), example, cuda_graph=True)
        torch.testing.assert_close(fast(x, scale), 2 * fast.module.eval()(x, torch.tensor(1.0)))
        assert cuda.replays[-1] == 1


def test_an_optimised_model_without_an_example_or_a_gpu(cuda: GraphsOnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cuda_graph captures calls of example_input's shape: give example_input"):
        se_fused.optimize_for_inference(small_model(), cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph must be"):
        se_fused.optimize_for_inference(small_model(), images(1, 3, 8, 8), cuda_graph=1)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="example_input has a tensor on meta"):
        se_fused.optimize_for_inference(small_model(), images(1, 3, 8, 8).to("meta"), cuda_graph=True)
    monkeypatch.setattr("se_fused.nn.inference.captures.DEVICE", "cuda")
    with pytest.raises(ValueError, match=r"cuda_graph needs a model on a GPU, this one is on cpu: model\.cuda\(\)"):
        se_fused.optimize_for_inference(small_model(), images(1, 3, 8, 8), cuda_graph=True)
