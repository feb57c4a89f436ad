"""Small attention layers and blocks that convert recognises, and their comparison with the converted ones."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from timm.layers import CecaModule, EcaModule, EffectiveSEModule, SEModule
from timm.models import _efficientnet_blocks, regnet, senet, tresnet
from torch import Tensor, nn

import se_fused
from support.modules import EPS, SPACES, assert_as_close, batch, randomise, rms, spy_on_blocks, spy_on_functional

SqueezeExcitation = torchvision.ops.SqueezeExcitation


def monai(name, *arguments, **options):
    module = pytest.importorskip("monai.networks.blocks.squeeze_and_excitation")
    return getattr(module, name)(*arguments, **options)


# layer with C = 16, the function that replaces it, dimensions of x
LAYERS = {
    "timm": (partial(SEModule, 16), "squeeze_excite", 2),
    "timm-no-bias": (partial(SEModule, 16, bias=False, rd_channels=3), "squeeze_excite", 2),
    "timm-hard": (partial(SEModule, 16, act_layer="silu", gate_layer="hard_sigmoid"), "squeeze_excite", 2),
    "timm-slope": (partial(SEModule, 16, act_layer=partial(nn.LeakyReLU, 0.2)), "channel_gate", 2),
    "timm-elu": (partial(SEModule, 16, act_layer=nn.ELU), "channel_gate", 2),
    "timm-tanh-gate": (partial(SEModule, 16, gate_layer="tanh"), "channel_gate", 2),
    "timm-norm": (partial(SEModule, 16, norm_layer=nn.BatchNorm2d), "channel_gate", 2),
    "timm-maxpool": (partial(SEModule, 16, add_maxpool=True), None, 2),
    "legacy": (partial(senet.SEModule, 16, 4), "squeeze_excite", 2),
    "efficientnet": (partial(_efficientnet_blocks.SqueezeExcite, 16, act_layer=nn.SiLU), "squeeze_excite", 2),
    "mobilenet": (partial(_efficientnet_blocks.SqueezeExcite, 16, gate_layer=nn.Hardsigmoid), "squeeze_excite", 2),
    "torchvision": (partial(SqueezeExcitation, 16, 4, activation=nn.SiLU), "squeeze_excite", 2),
    "torchvision-hard": (partial(SqueezeExcitation, 16, 4, scale_activation=nn.Hardsigmoid), "squeeze_excite", 2),
    "torchvision-elu": (partial(SqueezeExcitation, 16, 4, activation=nn.ELU), "channel_gate", 2),
    "effective": (partial(EffectiveSEModule, 16), "channel_gate", 2),
    "effective-sigmoid": (partial(EffectiveSEModule, 16, gate_layer="sigmoid"), "channel_gate", 2),
    "effective-maxpool": (partial(EffectiveSEModule, 16, add_maxpool=True), None, 2),
    "eca": (partial(EcaModule, 16), "channel_gate", 2),
    "eca-mlp": (partial(EcaModule, 16, use_mlp=True), "channel_gate", 2),
    "circular": (partial(CecaModule, 16), "channel_gate", 2),
    **{f"monai-{d}d": (partial(monai, "ChannelSELayer", d, 16), "squeeze_excite", d) for d in SPACES},
    **{f"monai-residual-{d}d": (partial(monai, "ResidualSELayer", d, 16), "channel_gate", d) for d in SPACES},
    "monai-residual-sigmoid": (
        partial(monai, "ChannelSELayer", 2, 16, add_residual=True),
        "channel_gate",
        2,
    ),
    "monai-swish": (partial(monai, "ChannelSELayer", 2, 16, acti_type_1="swish"), "channel_gate", 2),
}


def _downsample():
    return nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))


def _torchvision_regnet(**options):
    block = torchvision.models.regnet.ResBottleneckBlock
    return block(16, 32, 2, nn.BatchNorm2d, nn.ReLU, group_width=8, **options)


TAIL, PLAIN, SE = "batch_norm_squeeze_excite", "batch_norm_act", "squeeze_excite"
MIDDLE = ["batch_norm_act_squeeze", "gated_conv1x1"]
# block with 16 input channels, and the functions that replace it, in the order of their calls
BLOCKS = {
    "legacy": (lambda: senet.SEResNetBottleneck(16, 8, 1, 4, 2, _downsample()), [PLAIN, PLAIN, TAIL], 2),
    "legacy-next": (lambda: senet.SEResNeXtBottleneck(16, 8, 2, 4, 2, _downsample(), 16), [PLAIN, PLAIN, TAIL], 2),
    "legacy-154": (lambda: senet.SEBottleneck(16, 8, 2, 4, 2, _downsample()), [PLAIN, PLAIN, TAIL], 2),
    "legacy-18": (lambda: senet.SEResNetBlock(16, 32, 1, 4, 2, _downsample()), [PLAIN, PLAIN, SE], 2),
    "regnet": (partial(regnet.Bottleneck, 16, 32, 2, drop_path_rate=0.4), [PLAIN, *MIDDLE, PLAIN], 2),
    "regnet-linear": (partial(regnet.Bottleneck, 16, 32, 2, linear_out=True), [PLAIN, *MIDDLE, PLAIN], 2),
    "regnet-no-sum": (
        partial(regnet.Bottleneck, 16, 32, 2, downsample="", drop_path_rate=0.4), [PLAIN, *MIDDLE, PLAIN], 2,
    ),
    "regnet-same": (partial(regnet.Bottleneck, 16, 16, act_layer=nn.SiLU), [PLAIN, *MIDDLE, PLAIN], 2),
    "tresnet": (partial(tresnet.Bottleneck, 16, 4, drop_path_rate=0.4), [SE, PLAIN], 2),
    "tresnet-basic": (partial(tresnet.BasicBlock, 16, 16, drop_path_rate=0.4), [TAIL], 2),
    "torchvision-regnet": (partial(_torchvision_regnet, se_ratio=0.25), [PLAIN, *MIDDLE, PLAIN], 2),
    "torchvision-regnet-x": (_torchvision_regnet, [PLAIN, PLAIN, PLAIN], 2),
    "torchvision-bottleneck": (partial(torchvision.models.resnet.Bottleneck, 16, 4), [PLAIN] * 3, 2),
    **{
        f"monai-{name}-{d}d": (partial(monai, name, d, 16, 4, 2, 4), [PLAIN, PLAIN, TAIL], d)
        for name, d in (("SEBottleneck", 1), ("SEResNetBottleneck", 2))
    },
    "monai-SEResNeXtBottleneck-3d": (
        partial(monai, "SEResNeXtBottleneck", 3, 16, 32, 2, 4), [PLAIN, PLAIN, TAIL], 3,
    ),
    "monai-no-act": (
        partial(monai, "SEBlock", 2, 16, 4, 4, 16, acti_type_final=None), [PLAIN, PLAIN, TAIL], 2,
    ),
    "monai-last-act": (
        partial(monai, "SEBlock", 2, 16, 4, 4, 16,
                conv_param_3={"kernel_size": 1, "norm": "batch", "act": "relu"}), None, 2,
    ),
}  # fmt: skip


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    y = module(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    gradients = torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])
    return [y.detach(), *gradients, *(b.clone() for b in module.buffers() if b.is_floating_point())]


WHOLE = {
    "legacy", "legacy-next", "legacy-154", "torchvision-regnet-x", "torchvision-bottleneck", "monai-SEBottleneck-1d",
    "monai-SEResNetBottleneck-2d", "monai-no-act",
}  # fmt: skip
"""The blocks that are computed in one call. The others have another order, or a shortcut without batch norm."""


def compare(build, calls, dims, monkeypatch, training=True, whole=False):
    """Compare a converted module with its original, and check the calls that it makes. A ``whole`` block is compared as
    one call, and by its modules.

    In float64 they agree to the last digits; in float32 the error is compared with the original's own.
    """
    plain = build().train(training)
    randomise(plain)
    fused, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
    for module in (*plain.modules(), *fused.modules(), *truth.modules()):
        if hasattr(module, "inplace"):  # after a batch norm, PyTorch refuses in-place gradients
            module.inplace = False
    se_fused.convert(fused)
    x = batch(4, 16, dims)
    wide = copy.deepcopy(fused).double()
    exact = run(truth, x.double())
    for a, b in zip(run(wide, x.double()), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    theirs = run(plain, x)
    one_by_one = copy.deepcopy(fused)
    blocks = spy_on_blocks(monkeypatch)
    ours = run(fused, x)
    assert len(blocks) == 1 or not whole  # parts of other blocks may be calls too
    seen = spy_on_functional(monkeypatch)
    by_modules = run(one_by_one, x)
    if calls is not None:
        assert seen == calls
    largest = max(map(rms, exact))
    for a, b, c, d in zip(ours, theirs, exact, by_modules, strict=True):
        for found in (a, d):
            if rms(c) < 1e-12:  # the gradient of a bias before a batch norm cancels to rounding errors
                assert rms(found) <= EPS * x.numel() ** 0.5 * largest
            else:
                assert_as_close(found, b, c)
