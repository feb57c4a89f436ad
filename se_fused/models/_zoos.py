"""Naming schemes of other libraries' checkpoints: detection by the keys, and translation to this library's names.

Sources of the names and of the variants that go with them: timm 1.0 ``models/{resnet,senet,densenet}.py``, torchvision
0.29 ``models/{resnet,densenet}.py``, MONAI 1.6 ``networks/nets/{senet,densenet}.py`` and
``networks/blocks/squeeze_and_excitation.py``, NVIDIA DeepLearningExamples
``PyTorch/Classification/ConvNets/image_classification/models/{resnet,common}.py``, mmpretrain 1.x
``models/backbones/{resnet,seresnet,seresnext}.py``, moskomule/senet.pytorch ``senet/{se_resnet,se_module}.py``.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from .se_resnet import MARK

__all__ = ["ZOOS", "Zoo", "detect", "rename"]


class Zoo(NamedTuple):
    """Naming scheme of one library.

    Attributes:
        title: name of the library for messages.
        variant: the ``variant`` of :class:`SEResNet` that computes what the library's SE-ResNets compute.
        marks: regular expression. A key that it matches identifies this library, and rules out the later ones in
            :data:`ZOOS`. None matches every key.
        renames: regular expressions and replacements, applied in turn. A name that none matches is unchanged.
        never: regular expression. If it matches a key, the file is not of this library in spite of a mark.
    """

    title: str
    variant: str
    marks: str | None
    renames: tuple[tuple[str, str], ...] = ()
    never: str | None = None


_STEM = ((r"^layer0\.(conv1|bn1)\.", r"\1."), (r"^last_linear\.", "fc."))
# Stem of SENet154: three convolutions. The batch norm of the last one is the model's bn1, outside of conv1.
_DEEP_STEM = (
    (r"^layer0\.conv1\.", "conv1.0."),
    (r"^layer0\.bn1\.", "conv1.1."),
    (r"^layer0\.conv2\.", "conv1.3."),
    (r"^layer0\.bn2\.", "conv1.4."),
    (r"^layer0\.conv3\.", "conv1.6."),
    (r"^layer0\.bn3\.", "bn1."),
)

# In the order of detection. MONAI comes before Cadene, because its SE-ResNets have Cadene's stem and classifier.
ZOOS: dict[str, Zoo] = {
    "se_fused": Zoo("se_fused with variant='caffe'", "caffe", rf"^{MARK}$"),
    "mmpretrain": Zoo(
        "mmpretrain", "timm", r"^backbone\.|\.se_layer\.conv[12]\.conv\.",
        ((r"^backbone\.", ""), (r"^head\.fc\.", "fc."), (r"\.se_layer\.conv([12])\.conv\.", r".se.fc\1.")),
        # Other code uses the attribute name `backbone` too; after that prefix, these are names of other libraries.
        rf"^backbone\.((fc|classifier|last_linear|layer0|layers|features|class_layers|{MARK})\b|.*\.se\.)",
    ),
    "monai": Zoo(
        "MONAI", "caffe",
        r"\.se_layer\.fc\.[02]\.|\.conv[123]\.(conv|adn\.N)\.|\.denselayer\d+\.layers\.|^class_layers\.",
        (
            (r"\.se_layer\.fc\.0\.", ".se.fc1."), (r"\.se_layer\.fc\.2\.", ".se.fc2."),
            (r"^(layer[1-4]\.\d+)\.conv([123])\.conv\.", r"\1.conv\2."),
            (r"^(layer[1-4]\.\d+)\.conv([123])\.adn\.N\.", r"\1.bn\2."),
            (r"\.project\.conv\.", ".downsample.0."), (r"\.project\.adn\.N\.", ".downsample.1."),
            (r"(\.denselayer\d+)\.layers\.", r"\1."), (r"^class_layers\.out\.", "classifier."),
            *_STEM,
        ),
    ),
    "legacy": Zoo(
        "timm legacy_* or Cadene", "caffe", r"^layer0\.|^last_linear\.|\.se_module\.fc[12]\.",
        ((r"\.se_module\.(fc[12])\.", r".se.\1."), *_STEM),
    ),
    "nvidia": Zoo(
        "NVIDIA DeepLearningExamples", "timm", r"^layers\.\d+\.|\.squeeze\.(squeeze|expand)\.",
        (
            *((rf"^layers\.{i}\.", f"layer{i + 1}.") for i in range(4)),
            (r"\.squeeze\.squeeze\.", ".se.fc1."), (r"\.squeeze\.expand\.", ".se.fc2."),
        ),
    ),
    "moskomule": Zoo(
        "moskomule/senet.pytorch", "timm", r"\.se\.fc\.[02]\.weight$",
        ((r"\.se\.fc\.0\.weight$", ".se.fc1.weight"), (r"\.se\.fc\.2\.weight$", ".se.fc2.weight")),
    ),
    # Old DenseNet files of torchvision have dots in module names, which PyTorch no longer allows.
    "torchvision": Zoo(
        "torchvision or timm", "timm", r"^features\.denseblock",
        ((r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
    ),
    "timm": Zoo("timm, torchvision or se_fused", "timm", None),
}  # fmt: skip


def detect(keys: Iterable[str]) -> tuple[str, str | None]:
    """Name of the first scheme in :data:`ZOOS` with a mark in the keys, and that key; "timm" and None without one."""
    keys = list(keys)
    for name, zoo in ZOOS.items():
        found = None if zoo.marks is None else next((key for key in keys if re.search(zoo.marks, key)), None)
        if found is not None and not (zoo.never and any(re.search(zoo.never, key) for key in keys)):
            return name, found
    return "timm", None


def rename(name: str, keys: Iterable[str]) -> dict[str, str]:
    """The model's name for each key of the naming scheme ``name``."""
    keys = list(keys)
    renames = ZOOS[name].renames
    if any(key.startswith("layer0.conv3.") for key in keys):
        renames = (*_DEEP_STEM, *renames)
    ours = {}
    for key in keys:
        ours[key] = key
        for pattern, replacement in renames:
            ours[key] = re.sub(pattern, replacement, ours[key])
    return ours
