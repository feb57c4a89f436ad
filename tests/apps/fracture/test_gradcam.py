"""Tests of Grad-CAM: against its definition on all four systems, boxes on letterboxed images, scores by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.evaluation import NARROW, SIZE, narrow, tables_from, write_images

pytest.importorskip("sklearn", reason="scikit-learn is in the extra se_fused[train]")
pytest.importorskip("torchmetrics", reason="torchmetrics is in the extra se_fused[train]")

from se_fused import use_backend
from se_fused._errors import InputError
from se_fused.apps.fracture.evaluation import grad_cam, localisation, overlay_sheet, read_cracks
from se_fused.apps.fracture.evaluation.gradcam import _chosen_layer, _first_centre, _laid_over
from se_fused.apps.fracture.evaluation.localisation import (
    box_on,
    energy_in_box,
    examples,
    heat_maps,
    pointing_game,
    summary,
)
from se_fused.apps.fracture.images import load_radiograph
from se_fused.models._classifier import ImageClassifier


def by_definition(model, images, classes):
    """Selvaraju's equations 1 and 2, for one image after another, with gradients through the whole network.

    test_heat.py tests the choice of the layer and the position over the image.
    """
    layer, maps = _chosen_layer(model, images), []
    for image, wanted in zip(images, classes, strict=True):
        kept = []
        if layer:
            handle = model.get_submodule(layer).register_forward_hook(lambda *call, kept=kept: kept.append(call[2]))
        else:
            handle = model.global_pool.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
        logits = model(image[None])
        handle.remove()
        (slope,) = torch.autograd.grad(logits[0, wanted], kept[0])
        weights = slope[0].mean((1, 2))
        heat = (weights[:, None, None] * kept[0][0]).sum(0).clamp_min(0)[None, None].detach().float()
        stride = image.shape[2] // heat.shape[3]
        heat = _laid_over(heat, image.shape[2], _first_centre(model, layer, stride) if stride > 1 else 0.0, stride)[0]
        maps.append(heat / heat.max() if heat.max() > 0 else heat)
    return torch.stack(maps)


@pytest.mark.parametrize("name", NARROW)
def test_every_system_as_defined(name):
    model = narrow(name).model.double()
    images = torch.randn(3, 1, 2 * SIZE, 2 * SIZE, dtype=torch.float64)
    found = grad_cam(model, images, [0, 2, 1])
    assert found.shape == (3, 2 * SIZE, 2 * SIZE) and found.dtype == torch.float32
    assert found.min() >= 0 and ((found.amax((1, 2)) == 1) | (found.amax((1, 2)) == 0)).all()
    assert found.amax() == 1
    # The map is enlarged and divided in float32.
    torch.testing.assert_close(found, by_definition(model, images, [0, 2, 1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["seresnet50", "resnet50"])
def test_fused_kernels_give_the_same_maps(name):
    model, images = narrow(name).model, torch.randn(2, 1, SIZE, SIZE)
    fused = grad_cam(model, images, [1, 1])
    with use_backend("reference"):
        plain = grad_cam(model, images, [1, 1])
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-3)
    torch.testing.assert_close(fused, by_definition(model, images, [1, 1]), rtol=0, atol=1e-3)


class Corners(ImageClassifier):
    """Class 0 depends on the image's bright places, class 1 on its dark ones; no place supports class 2."""

    def __init__(self):
        super().__init__(1, 0.0)
        self.num_features = 2
        self._make_head(3, "avg", None, None)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
            self.fc.bias.zero_()

    def forward_features(self, x):
        return F.avg_pool2d(torch.cat([x.clamp_min(0), (-x).clamp_min(0)], 1), 8)


def test_heat_lies_where_the_class_was_seen():
    images = torch.zeros(2, 1, 32, 32)
    images[:, :, :8, :8] = 1.0
    images[:, :, 24:, 16:24] = -0.5
    model = Corners().train()
    found = grad_cam(model, images, [0, 1])
    assert model.training
    assert found[0].argmax() == 0 and found[0, 16:].sum() == 0
    row, column = divmod(int(found[1].argmax()), 32)
    assert row >= 28 and 16 <= column < 24 and found[1, :16].sum() == 0
    # Without `classes`, the predicted class is used. No feature supports class 2, so its map is zero, not NaN.
    assert torch.equal(grad_cam(model, images)[0], found[0])
    assert grad_cam(model, images, [2, 2]).abs().sum() == 0


def test_errors():
    with pytest.raises(TypeError, match="model must be one of"):
        grad_cam(torch.nn.Identity(), torch.zeros(1, 1, 8, 8))
    for classes in ([0], [0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="classes must be 2 numbers from 0 to 2"):
            grad_cam(Corners(), torch.zeros(2, 1, 32, 32), classes)


# ---- boxes
@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (33, 57)])
def test_boxes_lie_where_the_letterbox_puts_them(tmp_path, shape):
    from PIL import Image

    height, width = shape
    box = (width // 4, height // 2, width // 2, height * 3 // 4)
    pixels = np.zeros(shape, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = load_radiograph(tmp_path / "a.png", 64)[0].numpy()
    rows, columns = (np.flatnonzero(picture.max(axis) > 0.5) for axis in (1, 0))
    found = box_on(box, height, width, 64)
    # The image's edges are whole pixels, but those of a box are not.
    assert found == pytest.approx((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), abs=1.01)


def test_pointing_game_and_energy_by_hand():
    heat = np.zeros((4, 8, 8), np.float32)
    heat[0, 2, 3], heat[0, 7, 7] = 1.0, 0.5  # the maximum is in the box
    heat[1, 2, 3], heat[1, 7, 7] = 0.5, 1.0  # the maximum is outside
    heat[2] = 0.7  # no maximum
    boxes = [(3, 2, 5, 4)] * 4
    assert pointing_game(heat, boxes).tolist() == [True, False, False, False]
    energy = energy_in_box(heat, boxes)
    assert energy[:3] == pytest.approx([2 / 3, 1 / 3, 4 / 64]) and np.isnan(energy[3])
    assert pointing_game(heat[2:3], [(0, 0, 8, 8)]).tolist() == [False]
    # A box inside one pixel is that pixel.
    assert pointing_game(heat[:1], [(3.6, 2.6, 3.9, 2.9)]).tolist() == [True]


def write_cracks(folder, manifest, box="8,4,24,8"):
    rows = ["path,label,x0,y0,x1,y1,visible"]
    for i, record in enumerate(manifest.records):
        known = record.label != "none"
        rows.append(
            f"images/{record.path.name},{record.label},{box if known else ',,,'},{'' if not known else i % 4 != 0}"
        )
    (folder / "cracks.csv").write_text("\n".join(rows) + "\n")


def predictions_of(manifest):
    labels = [manifest.classes.index(r.label) for r in manifest.records]
    return tables_from([0] * len(labels), labels, paths=[str(r.path) for r in manifest.records])


def test_localisation_of_a_set_with_boxes(tmp_path):
    manifest = write_images(tmp_path)
    classifier, predictions = narrow(), predictions_of(manifest)
    assert read_cracks(tmp_path / "manifest.csv") == {} and localisation(classifier, predictions, {}) is None
    write_cracks(tmp_path, manifest)
    cracks = read_cracks(tmp_path / "manifest.csv")
    found = localisation(classifier, predictions, cracks)
    seen = [i for i, r in enumerate(manifest.records) if r.label != "none" and i % 4 != 0]
    assert found["images"] == len(seen)
    # 16 by 4 of 32 by 32 pixels.
    assert found["box_share"] == pytest.approx(64 / 1024)
    _, heat = heat_maps(classifier, [predictions.paths[i] for i in seen], predictions.labels[seen].tolist(), batch=3)
    boxes = [(8, 8, 24, 12)] * len(seen)  # 24 rows of 32: 4 black rows above
    assert found["pointing_game"] == pytest.approx(pointing_game(heat.numpy(), boxes).mean())
    assert found["energy_in_box"] == pytest.approx(np.nanmean(energy_in_box(heat.numpy(), boxes)))
    assert found["right"]["images"] == 0 and found["right"]["pointing_game"] is None
    assert localisation(classifier, predictions, cracks, limit=5)["images"] == 5
    assert "6.2 % in both" in summary(found)


def test_a_damaged_table_of_cracks_is_named(tmp_path):
    manifest = write_images(tmp_path, 3)
    write_cracks(tmp_path, manifest, box="a,4,24,8")
    with pytest.raises(InputError, match=r"cracks\.csv: p01_AP\.png: x0, y0, x1, y1 must be numbers"):
        localisation(narrow(), predictions_of(manifest), read_cracks(tmp_path))
    (tmp_path / "cracks.csv").write_text("image\nx\n")
    with pytest.raises(InputError, match="has no column path"):
        read_cracks(tmp_path)


def test_examples_are_right_and_wrong_ones_of_each_class():
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]])
    from support.evaluation import table

    predictions = table([0, 0, 0, 1, 1, 1], scores)
    assert examples(predictions, 4).tolist() == [0, 2, 3, 4]
    assert sorted(examples(predictions, 40).tolist()) == [0, 1, 2, 3, 4, 5]
    assert examples(table([-1] * 6, scores), 2).tolist() == [0, 4]


def test_sheet(tmp_path):
    from PIL import Image

    manifest = write_images(tmp_path, 3)
    write_cracks(tmp_path, manifest)
    overlay_sheet(narrow(), predictions_of(manifest), tmp_path / "sheet.png", read_cracks(tmp_path), remark="drawn")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 300
        assert np.ptp(np.asarray(sheet.convert("L"))) > 100
