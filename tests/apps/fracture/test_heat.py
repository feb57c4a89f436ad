"""Tests of a heat map's position: at the centres of its receptive fields, on a map with enough positions."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="se_fused[train] is not installed")
pytest.importorskip("sklearn", reason="se_fused[train] is not installed")
pytest.importorskip("torchvision", reason="se_fused[train] is not installed")

import se_fused
from se_fused.apps.fracture.evaluation import gradcam
from se_fused.apps.fracture.evaluation.gradcam import grad_cam

NARROW = {"channels": (4, 8, 8, 16), "stem_channels": 4}


def model(name, **options):
    torch.manual_seed(0)
    return se_fused.create_model(name, num_classes=3, in_chans=1, **options).eval()


@pytest.mark.parametrize(
    ("name", "options", "layer", "stride", "centre"),
    [
        # 7x7 with padding 3, 3x3 with padding 1: position i of each is centred on pixel 2 i of its input.
        ("seresnet18", NARROW, "", 32, 0.0),
        ("resnet50", NARROW, "layer3", 16, 0.0),
        # Three 2x2 means, centred on 2 i + 1/2: 4 (1/2 + 1 + 2) pixels in total.
        ("densenet121", {"growth_rate": 4, "num_init_features": 8}, "", 32, 14.0),
        ("densenet121", {"growth_rate": 4, "num_init_features": 8}, "features.denseblock3", 16, 6.0),
    ],
)
def test_centres_are_those_of_the_kernels(name, options, layer, stride, centre):
    found = gradcam._first_centre(model(name, **options), layer, stride)
    assert abs(found - centre) < 0.25 * stride  # noise from few channels; an error would be half a stride


@pytest.mark.parametrize(("size", "layer"), [(96, "layer3"), (48, "layer2"), (192, ""), (32, "layer2")])
def test_the_deepest_map_of_six_positions_is_taken(size, layer):
    network = model("seresnet18", **NARROW)
    assert gradcam._chosen_layer(network, torch.randn(1, 1, size, size)) == layer


def test_hooks_are_gone_and_the_model_is_as_it_was():
    network = model("seresnet18", **NARROW).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    grad_cam(network, torch.randn(2, 1, 96, 96))
    assert network.training and not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


class Peak(se_fused.models.SEResNet):
    """A model with one feature: the image blurred by the first block's 7x7, 3x3 and strides, with all weights one."""

    def __init__(self):
        super().__init__(se_fused.models._blocks.BasicBlock, (1, 1, 1, 1), 2, 1, se=False, **NARROW)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.ones_(module.weight)
        nn.init.constant_(self.fc.weight, 1.0)


@pytest.mark.parametrize(("row", "column"), [(64, 128), (160, 32), (96, 96), (128, 192)])
def test_heat_lies_on_what_is_bright(row, column):
    """A network with all weights one responds to brightness only, so its heat lies where the image is bright."""
    image = torch.zeros(1, 1, 224, 224)
    image[..., row - 2 : row + 3, column - 2 : column + 3] = 1
    heat = grad_cam(Peak().eval(), image, [0])[0]
    top = divmod(int(heat.argmax()), 224)
    # A position is 32 pixels, and here the nearest one lies on the spot. An error of half a position would be 16.
    assert abs(top[0] - row) <= 4 and abs(top[1] - column) <= 4, top
