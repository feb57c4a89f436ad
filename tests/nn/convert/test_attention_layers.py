"""Every layer and block class that convert recognises, in its variants, compared with the unconverted one."""

import copy

import pytest
import timm
import torch
from support.attention_blocks import BLOCKS, LAYERS, WHOLE, SqueezeExcitation, compare, monai
from support.modules import batch, one_thread, randomise  # noqa: F401
from timm.layers import EffectiveSEModule, SEModule
from timm.models import senet
from torch import nn

import se_fused

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    build, call, dims = LAYERS[name]
    compare(build, [] if call is None else [call], dims, monkeypatch)
    described = {what for _, _, what in se_fused.conversion_report(se_fused.convert(build())).converted}
    assert described == {"squeeze_excite": {"squeeze-excite"}, "channel_gate": {"channel gate"}, None: set()}[call]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name, training, monkeypatch):
    compare(*BLOCKS[name], monkeypatch, training, whole=name in WHOLE)


@pytest.mark.parametrize("name", [n for n in LAYERS if "maxpool" not in n])
def test_layers_with_hooks_inside(name):
    """A hook on any part of a layer sees the same values as before, and its return value is used."""
    build, _, dims = LAYERS[name]
    parts = [n for n, _ in build().named_modules()]
    for part in parts:
        outputs = []
        for convert in (True, False):
            layer, seen = build().eval(), []
            randomise(layer)
            hook = lambda _, i, o, seen=seen: (seen.append(o.clone()), o * 0.5)[1]  # noqa: E731
            layer.get_submodule(part).register_forward_hook(hook)
            if convert:
                se_fused.convert(layer)
            outputs.append([layer(batch(2, 16, dims)), *seen])
        for a, b in zip(*outputs, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, part=part: f"{part}: {text}")


@pytest.mark.parametrize("name", ["timm", "torchvision", "effective", "eca", "monai-2d", "monai-3d"])
def test_shapes_that_are_not_a_batch_of_maps(name):
    """For inputs that are not a batch of maps, the result or the type of error is that of the original."""
    layer = LAYERS[name][0]()
    fused = se_fused.convert(copy.deepcopy(layer))
    for shape in ((16, 4, 4), (2, 16, 4), (2, 16, 2, 4, 4), (2, 16)):
        x = torch.randn(shape)
        try:
            wanted = layer(x)
        except Exception as error:
            with pytest.raises(type(error)):
                fused(x)
        else:
            torch.testing.assert_close(fused(x), wanted)


@pytest.mark.parametrize("name", ["timm", "legacy"])
def test_mixed_dtypes_end_as_before(name):
    """The result dtype is unchanged if, under autocast, a float32 shortcut meets a bfloat16 branch.

    timm's ResNet adds into the branch, its legacy ResNet promotes.
    """
    build = {
        "timm": lambda: timm.models.resnet.BasicBlock(16, 16, attn_layer="se"),
        "legacy": lambda: senet.SEResNetBottleneck(16, 4, 1, 4),
    }
    block = build[name]().eval()
    randomise(block)
    x = batch(2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = block(x)
        ours = se_fused.convert(block)(x)
    assert ours.dtype == theirs.dtype == {"timm": torch.bfloat16, "legacy": torch.float32}[name]
    torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("build", [SEModule, EffectiveSEModule])
def test_maxpool_switched_on_later(build):
    layer = se_fused.convert(build(16))
    layer.add_maxpool = True
    x = batch(2, 16)
    wanted = copy.deepcopy(layer)
    torch.testing.assert_close(layer(x), se_fused.revert(wanted)(x))


def test_torchvision_keeps_its_argument_name():
    layer = se_fused.convert(SqueezeExcitation(16, 4))
    assert layer(input=batch(2, 16)).shape == batch(2, 16).shape


def test_monai_with_another_norm_keeps_its_block():
    block = monai("SEBlock", 2, 16, 4, 4, 16, conv_param_3={"kernel_size": 1, "norm": "instance", "act": None})
    report = se_fused.conversion_report(se_fused.convert(block))
    assert [(name, reason) for name, _, reason in report.left] == [
        ("", "conv3.adn is InstanceNorm2d, not a batch norm")
    ]
    assert [name for name, _, _ in report.converted] == ["se_layer"]


def test_report_says_what_a_tail_is():
    def described(**options):
        block = timm.models.resnet.BasicBlock(16, 16, **options)
        return se_fused.conversion_report(se_fused.convert(block)).converted[0][2]

    assert described(attn_layer="se", act_layer=nn.ELU) == "BN + SE + add + [ELU]"
    assert described(attn_layer="gc") == "BN, [GlobalContext] + act"
    assert described(attn_layer="eca", act_layer=nn.SiLU) == "BN, gate + add + act"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [n for n, (_, _, dims) in BLOCKS.items() if dims == 2])
def test_blocks_keep_the_memory_format(name, training):
    """Strides are the plain block's for both memory orders of x, so that a view of the map works or fails as before."""
    plain = BLOCKS[name][0]().train(training)
    fused = se_fused.convert(copy.deepcopy(plain))
    for order in (torch.contiguous_format, torch.channels_last):
        x = batch(3, 16).contiguous(memory_format=order)
        for wanted in (True, False):
            with torch.set_grad_enabled(wanted):
                ours, theirs = fused(x), plain(x)
            assert ours.stride() == theirs.stride()
            assert ours.is_contiguous(memory_format=order)
