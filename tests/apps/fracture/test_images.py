"""Tests of loading radiographs, with files that the tests write."""

import sys

import numpy as np
import pytest
import torch

from se_fused.apps.fracture.images import load_folder, load_radiograph

pytestmark = pytest.mark.quick

Image = pytest.importorskip("PIL.Image")


def ramp(height: int = 40, width: int = 60) -> np.ndarray:
    """An 8-bit image without symmetry, from black to white."""
    y, x = np.mgrid[0:height, 0:width]
    return np.round(255 * (0.75 * x / (width - 1) + 0.25 * (y / (height - 1)) ** 2)).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_load_as_their_8_bit_twin(tmp_path, suffix):
    eight = ramp()
    narrow = load_radiograph(save(tmp_path / f"8.{suffix}", eight), 60)
    wide = load_radiograph(save(tmp_path / f"16.{suffix}", eight.astype(np.uint16) * 257), 60)
    assert wide.dtype == torch.float32 and wide.shape == (1, 60, 60)
    torch.testing.assert_close(wide, narrow, atol=1e-6, rtol=0)
    np.testing.assert_allclose(narrow[0, 10:50].numpy(), eight / 255, atol=1e-6)


def test_sixteen_bits_keep_their_fine_steps(tmp_path):
    fine = np.arange(60000, 60000 + 1600, dtype=np.uint16).reshape(40, 40)
    loaded = load_radiograph(save(tmp_path / "fine.png", fine), 40)
    assert len(loaded.unique()) == 1600
    np.testing.assert_allclose(loaded[0].numpy() * 65535, fine, atol=0.05)


def test_32_bit_integers_and_floats(tmp_path):
    eight = ramp()
    expected = torch.from_numpy(eight / np.float32(255))
    for name, array in {
        "wide": eight.astype(np.int32) * 1000000,
        "narrow": eight.astype(np.int32),
        "signed": eight.astype(np.int32) * 100 - 12000,
        "unit": eight.astype(np.float32) / 255,
        "large": eight.astype(np.float32) * 37 - 5,
    }.items():
        loaded = load_radiograph(save(tmp_path / f"{name}.tif", array), 60)[0, 10:50]
        torch.testing.assert_close(loaded, expected, atol=1e-6, rtol=0, msg=name)
    dim = load_radiograph(save(tmp_path / "dim.tif", eight.astype(np.float32) / 510), 60)[0, 10:50]
    torch.testing.assert_close(dim, expected / 2, atol=1e-6, rtol=0)  # floats in [0, 1] are not scaled
    holes = eight.astype(np.float32)
    holes[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"holes\.tif.*NaN"):
        load_radiograph(save(tmp_path / "holes.tif", holes))


def test_deep_white_is_zero_tiffs_are_turned_positive(tmp_path):
    """TIFFs where zero is white are inverted; Pillow inverts those with 8 bits, but not those with 16."""
    for array in (ramp(), ramp().astype(np.uint16) * 257):
        path = save(tmp_path / f"{array.dtype}.tif", array)
        expected = 1 - load_radiograph(path, 60)[0, 10:50]
        entry, zero = (b"\x06\x01\x03\x00\x01\x00\x00\x00" + bytes((k, 0, 0, 0)) for k in (1, 0))
        content = path.read_bytes()
        assert content.count(entry) == 1
        path.write_bytes(content.replace(entry, zero))
        torch.testing.assert_close(load_radiograph(path, 60)[0, 10:50], expected, atol=1e-6, rtol=0)


def test_12_bit_tiffs_are_white_at_4095(tmp_path):
    twelve = ramp().astype(np.uint16) * 16 + 15
    path = save(tmp_path / "12.tif", twelve)
    content = path.read_bytes()
    high, low = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1).astype(np.uint8).tobytes()
    entry, pixels = b"\x02\x01\x03\x00\x01\x00\x00\x00", twelve.astype("<u2").tobytes()
    assert content.count(entry + b"\x10") == 1 and content.count(pixels) == 1
    path.write_bytes(content.replace(entry + b"\x10", entry + b"\x0c").replace(pixels, packed.ljust(len(pixels))))
    np.testing.assert_allclose(load_radiograph(path, 60)[0, 10:50].numpy() * 4095, twelve, atol=0.01)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_other_modes_are_the_same_grey_picture(tmp_path, mode):
    grey = Image.fromarray(ramp() if mode != "1" else (ramp() > 99).astype(np.uint8) * 255)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    grey.convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    loaded = load_radiograph(path, 60)[0, 10:50]
    torch.testing.assert_close(loaded, torch.from_numpy(np.asarray(grey) / np.float32(255)), atol=2e-3, rtol=0)


def test_colours_become_luma_and_transparency_black(tmp_path):
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[:4, :, 0], colours[4:, :, 1] = 255, 255
    colours[:, 4:, 3] = 255
    loaded = load_radiograph(save(tmp_path / "colours.png", colours), 8)[0]
    assert loaded[:, :4].max() == 0
    np.testing.assert_allclose(loaded[:4, 4:], 0.299, atol=1e-5)
    np.testing.assert_allclose(loaded[4:, 4:], 0.587, atol=1e-5)
    palette = Image.fromarray(colours[:, :, 3]).convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((7, 7)))  # white is the transparent colour
    assert load_radiograph(tmp_path / "palette.png", 8).max() == 0


def test_jpeg_is_close(tmp_path):
    loaded = load_radiograph(save(tmp_path / "picture.JPG", ramp(), quality=95), 60)[0, 10:50]
    np.testing.assert_allclose(loaded.numpy(), ramp() / 255, atol=0.02)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation, suffix):
    upright = ramp(40, 60)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    if suffix == "png":
        stored = stored.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / f"turned.{suffix}", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_allclose(load_radiograph(path, 60)[0, 10:50].numpy(), upright / 255, atol=0.03)


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (41, 100), (7, 5), (300, 3), (64, 64)])
def test_letterbox_keeps_the_proportions(tmp_path, height, width):
    path = save(tmp_path / "white.png", np.full((height, width), 255, np.uint8))
    loaded = load_radiograph(path, 50)[0]
    tall, broad = max(1, round(height * 50 / max(height, width))), max(1, round(width * 50 / max(height, width)))
    top, left = (50 - tall) // 2, (50 - broad) // 2  # centred
    expected = torch.zeros(50, 50)
    expected[top : top + tall, left : left + broad] = 1
    torch.testing.assert_close(loaded, expected, atol=1e-6, rtol=0)
    assert 0 <= loaded.min() and loaded.max() <= 1


def test_resizing_averages_and_stays_in_float(tmp_path):
    snow = np.random.default_rng(0).integers(0, 2, (200, 200), np.uint8) * 255
    grey = load_radiograph(save(tmp_path / "snow.png", snow), 20)
    assert abs(grey.mean() - 0.5) < 0.02 and grey.std() < 0.08  # 0.25 if it used four pixels of each hundred
    faint = np.tile(np.linspace(30000, 30100, 200).round().astype(np.uint16), (200, 1))
    assert len(load_radiograph(save(tmp_path / "faint.png", faint), 50)[0, 25].unique()) > 40


def damaged(path):
    content = save(path, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_damaged_file_is_an_error_with_its_name(tmp_path, suffix):
    path = damaged(tmp_path / f"half.{suffix}")
    with pytest.raises(ValueError, match=rf"half\.{suffix}: "):
        load_radiograph(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"half\.{suffix}: not an image"):
        load_radiograph(path)
    path.write_text("no picture")
    with pytest.raises(ValueError, match=rf"half\.{suffix}: not an image"):
        load_radiograph(path)


def test_load_radiograph_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: no such file"):
        load_radiograph(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_radiograph(tmp_path)
    path = save(tmp_path / "fine.png", ramp())
    with pytest.raises(ValueError, match=r"^size must be"):
        load_radiograph(path, 0)
    with pytest.raises(TypeError, match=r"^size must be"):
        load_radiograph(path, 22.4)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "se_fused\[train\]"'):
        load_radiograph(path)
    with pytest.raises(ImportError, match=r'pip install "se_fused\[train\]"'):
        load_folder(tmp_path)


def flat(level: int) -> np.ndarray:
    return np.full((8, 8), level, np.uint8)


def levels(images: torch.Tensor) -> list[int]:
    return [round(image.max().item() * 255) for image in images]


def test_sub_folders_are_classes_in_natural_order(tmp_path):
    for name, level in (("10/1.png", 100), ("2/10.png", 22), ("2/deep/9.PNG", 23), ("2/2.jpeg", 21)):
        save(tmp_path / f"grade {name}", flat(level))
    save(tmp_path / ".cache" / "1.png", flat(1))
    save(tmp_path / "__MACOSX" / "1.png", flat(1))
    save(tmp_path / "grade 2" / ".thumbs" / "1.png", flat(1))
    for companion in ("._1.png", ".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / "grade 2" / companion).write_bytes(b"not a picture")
    (tmp_path / "labels.csv").write_text("not a picture")
    images, labels, names, skipped = load_folder(tmp_path, 8)
    assert names == ["grade 2", "grade 10"] and skipped == []
    assert levels(images) == [21, 22, 23, 100] and labels.tolist() == [0, 0, 0, 1]
    assert images.shape == (4, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64


def test_a_flat_folder_is_one_class(tmp_path):
    for k in (10, 9, 1):
        save(tmp_path / f"scan{k}.png", flat(k))
    images, labels, names, skipped = load_folder(str(tmp_path), 8)
    assert levels(images) == [1, 9, 10] and labels.tolist() == [0, 0, 0] and names == ["image"] and skipped == []


def test_what_is_skipped_is_named_with_its_reason(tmp_path):
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    save(tmp_path / "a" / "1.png", flat(11))
    broken = [damaged(tmp_path / "a" / "2.png"), damaged(tmp_path / "b" / "1.jpg")]
    save(tmp_path / "b" / "2.png", flat(12))
    loose = save(tmp_path / "loose.png", flat(13))
    scan = tmp_path / "b" / "scan.dcm"
    scan.write_bytes(b"DICM")
    (tmp_path / "empty").mkdir()
    images, labels, names, skipped = load_folder(tmp_path, 8)
    assert levels(images) == [11, 12] and labels.tolist() == [0, 1] and names == ["a", "b"]
    reasons = dict(skipped)
    assert len(skipped) == 5 and set(reasons) == {*broken, loose, scan, tmp_path / "empty"}
    assert all(reasons.values()) and ".dcm" in reasons[scan] and "no images" in reasons[tmp_path / "empty"]
    assert all(reasons[path].startswith(("cannot be read", "not an image")) for path in broken)


def test_a_limit_takes_classes_in_turn_and_does_not_count_damaged_files(tmp_path):
    for name, level in (("a/1", 11), ("a/2", 12), ("a/3", 13), ("b/2", 22), ("b/3", 23), ("c/1", 31)):
        save(tmp_path / f"{name}.png", flat(level))
    broken = damaged(tmp_path / "b" / "1.png")
    images, labels, names, skipped = load_folder(tmp_path, 8, limit=4)
    assert levels(images) == [11, 12, 22, 31] and labels.tolist() == [0, 0, 1, 2] and names == ["a", "b", "c"]
    assert [path for path, _ in skipped] == [broken]
    assert len(load_folder(tmp_path, 8, limit=100)[0]) == 6


def test_load_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; expected: a folder with one sub-folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images found; expected"):
        load_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images found; expected"):
        load_folder(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"notes\.txt: not a folder"):
        load_folder(tmp_path / "notes.txt")
    damaged(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"none of its 1 images could be read; the last was x\.png: "):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"^limit must be"):
        load_folder(tmp_path, limit=0)
    with pytest.raises(ValueError, match=r"^size must be"):
        load_folder(tmp_path, size=0)


def test_a_split_is_not_taken_for_classes(tmp_path):
    for name in ("train", "Valid", "test"):
        save(tmp_path / name / "a" / "1.png", flat(1))
    with pytest.raises(ValueError, match="are a split"):
        load_folder(tmp_path)
    assert load_folder(tmp_path / "train")[2] == ["a"]


def test_nothing_is_printed_or_logged(tmp_path, capfd, caplog):
    save(tmp_path / "DOE^JOHN" / "1.png", flat(1))
    damaged(tmp_path / "DOE^JOHN" / "2.png")
    load_folder(tmp_path, 8)
    assert capfd.readouterr() == ("", "") and not caplog.records
