"""A small classifier of radiographs, not trained, and the options of its network."""

import torch

import se_fused
from se_fused.apps.fracture.classifier import Classifier
from se_fused.apps.fracture.preprocessing import Preprocessing
from support.modules import randomise

CLASSES = ("none", "oblique", "spiral")
OPTIONS = {"channels": (8, 16, 32, 64), "stem_channels": 8}


def classifier(seed: int = 0, size: int = 48, classes: tuple[str, ...] = CLASSES, **about: object) -> Classifier:
    torch.manual_seed(seed)
    model = se_fused.create_model("seresnet18", num_classes=len(classes), in_chans=1, **OPTIONS)
    randomise(model, seed)
    model.eval()
    return Classifier(model, classes, Preprocessing(size, 0.4, 0.2), "seresnet18", OPTIONS, dict(about))
