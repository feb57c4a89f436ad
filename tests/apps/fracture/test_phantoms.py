"""Tests of the synthetic phantoms: reproducible, in range, and different between classes by the fracture only."""

import sys

import numpy as np
import pytest
import torch

from se_fused.apps.fracture import synth
from se_fused.apps.fracture.synth import CLASSES, bones, contact_sheet, draw, drawing, fractures, phantoms

BROKEN = CLASSES[1:]


def test_the_classes_are_those_of_the_labels():
    assert CLASSES == ("none", "transverse", "oblique", "spiral", "comminuted", "greenstick")
    for place, name in enumerate(CLASSES):
        image, label = draw(0, 0, 32, name)
        assert type(label) is int and label == place
        assert np.array_equal(image, draw(0, 0, 32, place)[0])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("size", [32, 75, 224])
def test_every_class_is_a_finite_grey_picture(name, size):
    for index in range(2):
        image, _ = draw(5, index, size, name)
        assert image.shape == (size, size) and image.dtype == np.float32 and image.flags.c_contiguous
        assert 0 <= image.min() < 0.1 and 0.7 < image.max() <= 1  # also fails for NaN
        assert image.std() > 0.1


def test_an_image_depends_on_seed_and_index_alone():
    image, label = draw(3, 7, 64)
    draw(4, 8, 48)
    np.random.default_rng().random()
    again, same_label = draw(3, 7, 64)
    assert np.array_equal(image, again) and label == same_label
    for seed, index in ((3, 8), (4, 7)):  # another limb, not only other noise
        assert np.abs(image - draw(seed, index, 64, label)[0]).mean() > 0.08


def test_a_batch_holds_the_single_images():
    images, labels = phantoms(9, size=48, seed=2)
    assert images.shape == (9, 1, 48, 48) and images.dtype == torch.float32 and labels.dtype == torch.int64
    for i in range(9):
        image, label = draw(2, i, 48)
        assert torch.equal(images[i, 0], torch.from_numpy(image)) and labels[i] == label
    assert torch.equal(images[:4], phantoms(4, size=48, seed=2)[0])
    assert not torch.equal(images, phantoms(9, size=48, seed=3)[0])


def test_six_in_a_row_hold_every_class_in_no_fixed_order():
    labels = phantoms(30, size=32)[1].reshape(5, 6)
    assert (labels.sort(1).values == torch.arange(6)).all()
    assert len({tuple(row.tolist()) for row in labels}) > 1


def test_no_images_keep_their_shape():
    images, labels = phantoms(0, size=40)
    assert images.shape == (0, 1, 40, 40) and labels.shape == (0,) and labels.dtype == torch.int64


@pytest.mark.parametrize("name", BROKEN)
def test_a_fracture_shows(name):
    for index in range(5):
        change = np.abs(draw(1, index, 96, name)[0] - draw(1, index, 96, "none")[0])
        middle = change[24:72, 24:72]  # the fracture lies within 0.08 of the centre
        assert (middle > 0.08).sum() >= 15, index


def test_classes_differ_from_each_other():
    for index in range(3):
        pictures = [draw(1, index, 96, name)[0] for name in CLASSES]
        for i, one in enumerate(pictures):
            for other in pictures[:i]:
                assert (np.abs(one - other) > 0.08).sum() >= 15


@pytest.mark.parametrize("name", BROKEN)
def test_nothing_but_the_fracture_knows_the_class(name, monkeypatch):
    """With a fracture that changes nothing, the images of all classes are bit-identical."""
    monkeypatch.setattr(drawing, "fracture", lambda kind, *_: fractures.Fracture(kind))
    for index in range(6):
        assert np.array_equal(draw(1, index, 64, name)[0], draw(1, index, 64, "none")[0])


def test_every_image_has_a_fracture_of_its_own(monkeypatch):
    numbers = []

    def fracture(kind, rng, *_):
        numbers.append(rng.random())
        return fractures.Fracture(kind)

    monkeypatch.setattr(drawing, "fracture", fracture)
    for seed, index in ((0, 0), (0, 1), (1, 0), (0, 0)):
        draw(seed, index, 32, "oblique")
    assert len(set(numbers)) == 3 and numbers[3] == numbers[0]


@pytest.mark.parametrize("name", BROKEN)
def test_surroundings_do_not_depend_on_the_class(name):
    """Outside the moved bone, collimator, soft tissue, noise and marker are bit-identical; the border hardly moves."""
    border = []
    for index in range(8):
        same = draw(1, index, 96, name)[0] == draw(1, index, 96, "none")[0]
        assert same.mean() > 0.5, index
        corners = same[:6, :6], same[:6, -6:], same[-6:, :6], same[-6:, -6:]
        assert sum(corner.all() for corner in corners) >= 3, index  # an inclined bone may reach one corner
        border.append(np.concatenate([same[:, :4].ravel(), same[:, -4:].ravel()]).mean())
    assert np.mean(border) > 0.9


def test_the_anatomy_is_the_same_at_every_size():
    for name in ("none", "oblique"):
        large, small = draw(6, 2, 192, name)[0], draw(6, 2, 96, name)[0]
        reduced = large.reshape(96, 2, 96, 2).mean((1, 3))
        assert np.corrcoef(reduced.ravel(), small.ravel())[0, 1] > 0.97


def test_bone_is_bright():
    mean = phantoms(24, size=64)[0].mean((0, 1))
    assert mean[24:40, 28:36].mean() > mean[24:40, :8].mean() + 0.3


def test_segments_are_filled_as_by_a_fine_sum():
    rng = np.random.default_rng(0)
    nodes = rng.normal(0, 2, (5, 40)).astype(np.float32)
    nodes[1, :5] = nodes[0, :5] + 1e-4  # nearly flat segments
    t = (np.arange(2000) + 0.5) / 2000
    for k in range(4):
        line = nodes[k, :, None] + (nodes[k + 1] - nodes[k])[:, None] * t
        expected = np.clip(line + 0.5, 0, 1).mean(1)
        np.testing.assert_allclose(bones.filled(nodes)[k], expected, atol=2e-4)


@pytest.mark.parametrize("kind", ["plane", "helix"])
def test_two_closed_halves_make_the_whole_bone(kind):
    """A cut removes nothing: the path lengths of both halves add up to those of the uncut tube."""
    rng = np.random.default_rng(4)
    radius = 12.0
    bone = bones.Bone(radius, 0.3, 1.05, (2.0, 1.0), 64.0, 90.0, 0.6, np.array([0.1, 2.0, 4.0]))
    y, x = (np.mgrid[0:128, 0:128] - 63.5).astype(np.float32)
    make = fractures.plane if kind == "plane" else fractures.helix
    cut = make(rng, radius, 0.8 if kind == "plane" else 4 * radius, 0.5)
    for turn in (0.0, 0.7, np.pi / 2):
        whole = np.stack(bones.project(bone, turn, x, y)[:2])
        below, above = (
            np.stack(bones.project(bone, turn, x, y, [bones.Fragment(half)], 60.0)[:2])
            for half in (lambda p, q, s: -cut(p, q, s), cut)
        )
        assert (below[0] > 1).any() and (above[0] > 1).any()
        np.testing.assert_allclose(below + above, whole, atol=2e-3 * radius)
        # Through the middle of a tube of radius r and wall c·r: walls 2cr, marrow 2(1-c)r, up to the outline's waves.
        np.testing.assert_allclose(whole[:, 40, 64], [0.6 * radius, 1.4 * radius], rtol=0.12)


@pytest.mark.parametrize("name", BROKEN)
def test_lengths_are_those_of_a_fine_sum_along_the_rays(name):
    """Path lengths agree with fine sums along the rays.

    The shortcut for rays that a fragment's centre line seems to settle, and five nodes per wall, miss no surface.
    """
    radius, turn = 12.0, 0.6
    bone = bones.Bone(radius, 0.3, 1.0, (0.0, 0.0), 64.0, 400.0, 0.6, np.array([0.1, 2.0, 4.0]))
    y, x = (np.mgrid[0:96, 0:64] - [[[47.5]], [[31.5]]]).astype(np.float32)
    steps = ((np.arange(600) + 0.5) / 300 - 1).astype(np.float32)[:, None]
    broken = fractures.fracture(name, np.random.default_rng(5), radius, 0.9, 0.0)
    u, s = x.ravel(), y.ravel()
    half = np.sqrt(np.maximum(bone.walls(u, s)[0] ** 2 - u * u, 0))
    p, q = u * np.cos(turn) - steps * half * np.sin(turn), u * np.sin(turn) + steps * half * np.cos(turn)
    for part in broken.fragments:
        found = bones.project(bone, turn, x, y, [bones.Fragment(part.solid)], broken.zone)
        expected = (np.clip(part.solid(p, q, s + 0 * p) + 0.5, 0, 1).mean(0) * 2 * half).reshape(x.shape)
        error = np.abs(found.compact + found.marrow - expected)
        # Nodes are at most 0.15 radii apart (0.7·2/10); at each of two ends, a bump may hide between two of them.
        assert error.max() < 0.3 * radius and error.mean() < 0.004 * radius, (error.max(), error.mean())


@pytest.mark.parametrize(
    ("call", "name", "kind"),
    [
        (lambda: draw(0, 0, 31), "size", ValueError),
        (lambda: draw(0, 0, 64.0), "size", TypeError),
        (lambda: draw(-1, 0), "seed", ValueError),
        (lambda: draw(0, -1), "index", ValueError),
        (lambda: draw(0, 0, 64, "broken"), "label", ValueError),
        (lambda: draw(0, 0, 64, 6), "label", ValueError),
        (lambda: draw(0, 0, 64, -1), "label", ValueError),
        (lambda: draw(0, 0, 64, 1.5), "label", TypeError),
        (lambda: phantoms(-1), "count", ValueError),
        (lambda: phantoms(1, size=8), "size", ValueError),
        (lambda: phantoms(1, size=32, seed=-3), "seed", ValueError),
        (lambda: phantoms("6"), "count", TypeError),
    ],
)
def test_errors_name_the_argument(call, name, kind):
    with pytest.raises(kind, match=f"^{name} must be"):
        call()


def test_contact_sheet_is_written_whole(tmp_path, monkeypatch):
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    images, labels = phantoms(7, size=32)
    contact_sheet(images, labels, tmp_path / "sheet.png")
    contact_sheet(images[:, 0].numpy(), labels.tolist(), str(tmp_path / "sheet.png"))
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    with image_module.open(tmp_path / "sheet.png") as sheet:
        grey = np.asarray(sheet.convert("L"))
    assert grey.shape[1] > 1000 and grey.std() > 20
    with pytest.raises(ValueError, match="xyz"):
        contact_sheet(images, labels, tmp_path / "sheet.xyz")
    before = (tmp_path / "sheet.png").read_bytes()
    with pytest.raises(FileNotFoundError):
        contact_sheet(images, labels, tmp_path / "nowhere" / "sheet.png")

    def full_disk(canvas, filename, **options):
        filename.write_bytes(before[:100])
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_figure", full_disk)
    with pytest.raises(OSError, match="no space"):
        contact_sheet(images, labels, tmp_path / "sheet.png")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    assert (tmp_path / "sheet.png").read_bytes() == before


def test_contact_sheet_refuses_what_is_no_set_of_phantoms(tmp_path, monkeypatch):
    images, labels = phantoms(2, size=32)
    for wrong_images, wrong_labels, message in (
        (images[:0], labels[:0], "images must be"),
        (images.expand(2, 3, 32, 32), labels, "images must be"),
        (images, labels[:1], "labels must be"),
        (images, [0, 9], "label must be"),
    ):
        with pytest.raises(ValueError, match=message):
            contact_sheet(wrong_images, wrong_labels, tmp_path / "sheet.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "se_fused\[train\]"'):
        contact_sheet(images, labels, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


PUBLIC = [
    synth,
    draw,
    phantoms,
    contact_sheet,
    synth.draw_patient,
    synth.draw_sheet,
    synth.load_cracks,
    synth.write_set,
]


@pytest.mark.parametrize("public", PUBLIC)
def test_docs_say_what_a_phantom_is_not(public):
    text = " ".join(public.__doc__.split())
    assert "synthetic phantom" in text and "no clinical meaning" in text
