"""convert changes a model in place and reversibly; hooks, pickle, copies, optimisers, DDP and compilers still work."""

import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
import torch.distributed as dist
from support.convert import build, classes, images
from support.modules import one_thread, randomise, spy_on_functional  # noqa: F401 (a fixture)
from timm.layers import DropPath, SEModule
from timm.models.resnet import Bottleneck, downsample_conv
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models.feature_extraction import create_feature_extractor

import se_fused
from se_fused.nn.convert.class_swap import Fused

pytestmark = pytest.mark.quick


def bottleneck(attention: str = "se") -> Bottleneck:
    """A bottleneck block with every optional part."""
    block = Bottleneck(
        16, 4, stride=2, downsample=downsample_conv(16, 16, 1, stride=2), attn_layer=attention, drop_path=DropPath(0.4)
    )
    randomise(block)
    return block


def x16(n: int = 3) -> Tensor:
    return torch.randn(n, 16, 6, 6, generator=torch.Generator().manual_seed(0))


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """y, and the gradients of x and of the parameters."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [x, *module.parameters()])]


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.detach().abs().max())))


PARTS = [name for name, _ in bottleneck().named_modules()]


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p or "block")
@pytest.mark.parametrize("kind", ["forward", "pre", "backward", "changing"])
def test_hooks_fire_as_before(part, kind):
    """A hook on any part of a block, even one that changes the output, is called as before, with the same results."""
    if (part, kind) == ("drop_path", "backward"):
        pytest.skip("timm adds to its output in place, which PyTorch refuses with a backward hook")
    records = []
    for convert in (True, False):
        block, seen = bottleneck(), []
        watched = block.get_submodule(part)
        if kind == "forward":
            watched.register_forward_hook(lambda _, i, o, seen=seen: seen.append(o.detach().clone()))
        elif kind == "pre":
            watched.register_forward_pre_hook(lambda _, i, seen=seen: seen.append(i[0].detach().clone()))
        elif kind == "backward":
            for module in block.modules():  # full backward hooks and in-place activations exclude each other
                if hasattr(module, "inplace"):
                    module.inplace = False
            watched.register_full_backward_hook(lambda _, i, o, seen=seen: seen.append(o[0].clone()))
        else:
            watched.register_forward_hook(lambda _, i, o, seen=seen: (seen.append(o.detach().clone()), o * 0.5)[1])
        if convert:
            se_fused.convert(block)
        records.append((run(block, x16()), seen))
    (ours, mine), (theirs, wanted) = records
    assert len(mine) == len(wanted) >= 1
    assert_alike(mine, wanted)
    assert_alike(ours, theirs)


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        ("bn3", nn.GroupNorm(2, 16)),
        ("bn1", nn.Identity()),
        ("act3", nn.GELU()),
        ("act2", nn.SiLU()),
        ("se", timm.layers.GlobalContext(16, rd_channels=8)),  # its norm over 2 channels multiplies rounding errors
        ("se", None),
        ("se.act", nn.ELU()),
        ("se.gate", nn.Tanh()),
        ("se.bn", nn.BatchNorm2d(8)),
        ("drop_path", nn.Dropout(0.5)),
        ("drop_block", nn.Dropout(0.5)),
        ("aa", nn.AvgPool2d(1)),
        ("downsample", nn.Sequential(nn.Dropout(0.5), nn.Conv2d(16, 16, 1, 2))),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_replaced_parts(part, replacement, when):
    """A part that was replaced before or after the conversion is used; random numbers are drawn in timm's order."""
    records = []
    for convert in (True, False):
        block = bottleneck()
        if convert and when == "after":
            se_fused.convert(block)
        parent, _, name = part.rpartition(".")
        setattr(block.get_submodule(parent), name, copy.deepcopy(replacement))
        if convert and when == "before":
            se_fused.convert(block)
        records.append(run(block, x16(4)))
    assert_alike(*records)


def test_a_conversion_that_saves_nothing_is_refused():
    block = Bottleneck(16, 4, norm_layer=lambda c, **_: nn.GroupNorm(2, c), attn_layer="se")
    report = se_fused.conversion_report(se_fused.convert(block))
    assert report.left == (("", "timm.models.resnet.Bottleneck", "bn3 is GroupNorm, not a batch norm"),)
    assert [name for name, *_ in report.converted] == ["se"]


@pytest.mark.parametrize("part", ["conv3", "bn3", "conv2", "se"])
def test_inference_writes_over_no_map_that_a_hook_has_seen(part):
    block, seen = se_fused.convert(bottleneck()).eval(), []
    block.get_submodule(part).register_forward_hook(lambda _, i, o: seen.append((o, o.clone())))
    with torch.no_grad():
        block(x16())
    assert torch.equal(*seen[0])


def test_one_call_for_the_tail(monkeypatch):
    calls = spy_on_functional(monkeypatch)
    se_fused.convert(bottleneck())(x16())
    assert calls == ["batch_norm_act", "batch_norm_act", "batch_norm_squeeze_excite"]


@pytest.mark.grid(quick=0)
def test_pickle_and_copies(tmp_path):
    model = se_fused.convert(build("timm-seresnet18").eval())
    x = images("timm-seresnet18")
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    twin = copy.deepcopy(model)
    assert type(loaded.layer1[0]) is type(twin.layer1[0]) is type(model.layer1[0])
    with torch.no_grad():
        y = model(x)
        for other in (loaded, twin, pickle.loads(pickle.dumps(model, protocol=5))):
            assert torch.equal(other(x), y)
            other.layer1[0].se.fc2.bias += 1
        assert torch.equal(model(x), y)
    se_fused.revert(twin)
    assert isinstance(model.layer1[0], Fused) and not isinstance(twin.layer1[0], Fused)
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False); import se_fused; "
        "assert len(se_fused.conversion_report(m).converted) == 16; se_fused.revert(m); "
        "assert type(m.layer1[0]).__module__ == 'timm.models.resnet'"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt"], check=True)


@pytest.mark.grid(quick=0)
def test_optimiser_keeps_its_parameters():
    """An optimiser's momentum continues with the same tensors if the model is converted between two steps."""
    results = []
    for convert in (True, False):
        model = build("timm-seresnet18").double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        for step in range(2):
            if convert and step:
                se_fused.convert(model)
            optimizer.zero_grad()
            model(images("timm-seresnet18", 4).double()).logsumexp(1).mean().backward()
            optimizer.step()
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
        results.append(model.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-7, atol=1e-9, msg=key)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("when", ["inside", "through"])
def test_ddp(process_group, when):
    """A model may be converted before it is wrapped in DDP or through the wrapper; DDP's reducer has its parameters."""
    torch.manual_seed(0)
    block, plain = bottleneck(), bottleneck()
    if when == "inside":
        se_fused.convert(block)
    wrapped = nn.parallel.DistributedDataParallel(block)
    if when == "through":
        se_fused.convert(wrapped)
    assert isinstance(wrapped.module, Fused) and isinstance(wrapped.module.se, Fused)
    x = x16()
    for model in (wrapped, plain):
        torch.manual_seed(3)
        model(x).square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4, msg=key)
    se_fused.revert(wrapped)
    assert type(wrapped.module) is Bottleneck


@pytest.mark.grid(quick=0)
@pytest.mark.parametrize("attention", ["se", "eca"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile(attention, training):
    """torch.compile gives one graph with its backward pass, and a later conversion takes effect in the next call."""
    torch._dynamo.reset()
    block = bottleneck(attention).train(training)
    block.drop_path.drop_prob = 0.0  # compiled code draws other random numbers
    x = x16()
    graphs: list[str] = []

    def backend(graph, _):
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    theirs = run(compiled, x)
    assert se_fused.convert(compiled) is compiled and isinstance(block, Fused)
    ours, eager = run(compiled, x), run(block, x)
    assert len(graphs) == 2 and "se_fused" not in graphs[0]
    assert "se_fused" in graphs[1] or "autograd_function" in graphs[1]
    assert_alike(ours, theirs)
    assert_alike(eager, theirs)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))


@pytest.mark.parametrize(
    "name", ["torchvision-regnet_y_400mf", "torchvision-resnet18", "torchvision-mobilenet_v3_small"]
)
def test_torch_fx_traces_the_plain_modules(name):
    model = build(name).eval()
    x = images(name)
    nodes = list(dict(model.named_children()))[:1]
    wanted = create_feature_extractor(copy.deepcopy(model), nodes)
    ours = create_feature_extractor(se_fused.convert(model), nodes)
    assert [str(n) for n in ours.graph.nodes] == [str(n) for n in wanted.graph.nodes]
    with torch.no_grad():
        torch.testing.assert_close(ours(x), wanted(x))


def test_torchscript():
    model = se_fused.convert(bottleneck().eval())
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile Fused.*se_fused\.revert\(model\)"):
        torch.jit.script(nn.Sequential(model))
    scripted = torch.jit.script(se_fused.revert(model))
    for function in (se_fused.convert, se_fused.revert):
        with pytest.raises(TypeError, match=r"model is compiled by TorchScript.*before"):
            function(scripted)
    report = se_fused.conversion_report(se_fused.convert(nn.Sequential(torch.jit.script(SEModule(16)))))
    assert report.left == (("0", "SEModule", "compiled by TorchScript: convert before torch.jit.script"),)


class Other(SEModule):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Same(SEModule):
    """A class with its own name and parameter keys, and timm's forward."""


class SCSEModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_report(capsys):
    replaced = SEModule(16)
    replaced.forward = lambda x: x
    model = nn.ModuleDict({
        "same": Same(16), "other": Other(16), "pooled": SEModule(16, add_maxpool=True), "strange": SCSEModule(),
        "replaced": replaced, "own": se_fused.SqueezeExcite(16), "loss": nn.MSELoss(), "act": nn.SELU(),
        "wide": timm.layers.squeeze_excite.SqueezeExciteCl(16),
    })  # fmt: skip
    model["conv"] = SEModule(16)
    model["conv"].fc1 = nn.Conv2d(16, 8, 3, padding=1)
    before = se_fused.conversion_report(model)
    assert not before.converted and ("same", f"{__name__}.Same", "not converted yet") in before.left
    se_fused.convert(model, verbose=True)
    printed = capsys.readouterr().out
    report = se_fused.conversion_report(model)
    assert printed == f"{report}\n"
    assert report.converted == (("same", f"{__name__}.Same", "squeeze-excite"),)
    assert {name: reason for name, _, reason in report.left} == {
        "other": "overrides forward of SEModule",
        "pooled": "add_maxpool is set: its squeeze is not the mean alone",
        "strange": "se_fused does not support this class",
        "replaced": "its forward was replaced on this instance",
        "wide": "se_fused does not support this class",
        "conv": "fc1 is no 1x1 convolution",
    }
    assert report.own == ("own",)
    assert "1 modules converted, 6 left" in printed and "  pooled: timm.layers.squeeze_excite.SEModule: add" in printed
    se_fused.convert(model)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("function", [se_fused.convert, se_fused.revert])
def test_wrong_models(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        function({})


def test_class_changed_since():
    """A parametrization changes a block's class: the model works, the report names it, and revert gives the reason."""
    model = nn.Sequential(bottleneck().eval())
    y = model(x16())
    se_fused.convert(model)
    model[0].register_parameter("extra", nn.Parameter(torch.ones(1)))
    parametrize.register_parametrization(model[0], "extra", nn.Identity())
    torch.testing.assert_close(model(x16()), y)
    before = classes(model)
    with pytest.raises(RuntimeError, match="0 is ParametrizedFusedBottleneck now, its class was changed after convert"):
        se_fused.revert(model)
    assert classes(se_fused.convert(model)) == before
    assert se_fused.conversion_report(model).left[0][2] == "its class was changed after it was converted"
    parametrize.remove_parametrizations(model[0], "extra")
    assert type(se_fused.revert(model)[0]) is Bottleneck


def test_parametrized_layers_are_called():
    records = []
    for convert in (True, False):
        block = bottleneck()
        if convert:
            se_fused.convert(block)
        parametrize.register_parametrization(block.se.fc1, "weight", nn.Tanh())
        records.append(run(block, x16()))
    assert_alike(*records)


def test_meta_device_shared_modules_and_the_root():
    with torch.device("meta"):
        model = timm.create_model("seresnet18")
    assert len(se_fused.conversion_report(se_fused.convert(model)).converted) == 16
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 1000)
    se = SEModule(16)
    assert se_fused.convert(se) is se and isinstance(se, SEModule) and isinstance(se, Fused)
    twice = se_fused.revert(nn.Sequential(se, se))
    assert type(twice[1]) is SEModule
    assert "FusedSEModule(" in repr(se_fused.convert(se))


def test_activation_checkpointing():
    blocks = nn.Sequential(bottleneck(), nn.Upsample(scale_factor=2), bottleneck()).eval()
    x = x16().requires_grad_()
    wanted = torch.autograd.grad(blocks(x).square().sum(), x)[0]
    y = torch.utils.checkpoint.checkpoint_sequential(se_fused.convert(blocks), 2, x, use_reentrant=False)
    got = torch.autograd.grad(y.square().sum(), x)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
