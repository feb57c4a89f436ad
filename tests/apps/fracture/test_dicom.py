"""Tests of DICOM radiographs, with files that the tests write."""

import logging
import sys
import warnings

import numpy as np
import pytest
from support.data_sets import SECRET, lut, write_dicom

from se_fused._errors import InputError
from se_fused.apps.fracture import dicom
from se_fused.apps.fracture.images import decode, load_folder, load_radiograph

pytestmark = pytest.mark.quick

pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')

RLE, J2K, MPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.100"
FRAME = bytes.fromhex("feff00e000000000feff00e00400000061626364feffdde000000000")  # "abcd", encapsulated
FULL12 = {"WindowCenter": 2048, "WindowWidth": 4096}  # LINEAR: 0 is black, 4095 white (PS3.3 C.11.2.1.2.1)


def twelve(height: int = 8, width: int = 6) -> np.ndarray:
    """12-bit values from 0 to 4095, without symmetry."""
    return (np.arange(height * width) ** 2 * 4095 // (height * width - 1) ** 2).astype(np.uint16).reshape(height, width)


def close(path, expected, atol=1e-6):
    found = decode(path)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_every_depth_in_both_value_representations(tmp_path, bits, dtype, syntax):
    values = (twelve().astype(np.int64) * (2**bits - 1) // 4095).astype(dtype)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    close(write_dicom(tmp_path / "x.dcm", values, bits, syntax, **window), values / (2**bits - 1))


def test_the_first_window_cuts_to_black_and_white(tmp_path):
    values = twelve()
    path = write_dicom(tmp_path / "x.dcm", values, 12, WindowCenter=[1000, 3000], WindowWidth=[401, 10])
    close(path, np.clip((values - 999.5) / 400 + 0.5, 0, 1))  # PS3.3 C.11.2.1.2.1: (x - (c - .5)) / (w - 1) + .5


def test_exact_and_sigmoid_windows(tmp_path):
    values, window = twelve(), {"WindowCenter": 1000, "WindowWidth": 400}
    path = write_dicom(tmp_path / "exact.dcm", values, 12, VOILUTFunction="LINEAR_EXACT", **window)
    close(path, np.clip((values - 1000.0) / 400 + 0.5, 0, 1))
    path = write_dicom(tmp_path / "sigmoid.dcm", values, 12, VOILUTFunction="SIGMOID", **window)
    close(path, 1 / (1 + np.exp(-4 * (values - 1000.0) / 400)))
    path = write_dicom(tmp_path / "other.dcm", values, 12, VOILUTFunction="CUBIC", **window)
    with pytest.raises(InputError, match=r"other\.dcm: its DICOM grey scale .* cannot be applied"):
        decode(path)


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -300), (-1, 4095)])
def test_rescale_comes_before_the_window(tmp_path, slope, intercept):
    values = twelve()
    scale = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": 900, "WindowWidth": 1201}
    path = write_dicom(tmp_path / "x.dcm", values, 12, **scale)
    close(path, np.clip((values.astype(float) * slope + intercept - 899.5) / 1200 + 0.5, 0, 1))


def test_signed_values(tmp_path):
    values = twelve().astype(np.int16) - 2048
    close(write_dicom(tmp_path / "x.dcm", values, 12, WindowCenter=0, WindowWidth=4096), twelve() / 4095)


def test_monochrome1_is_turned_once(tmp_path):
    values = twelve()
    for name, elements in {
        "one": {"PhotometricInterpretation": "MONOCHROME1"},
        "shape": {"PresentationLUTShape": "INVERSE"},
        "both": {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    }.items():
        close(write_dicom(tmp_path / f"{name}.dcm", values, 12, **FULL12, **elements), 1 - values / 4095)
    close(write_dicom(tmp_path / "i.dcm", values, 12, **FULL12, PresentationLUTShape="IDENTITY"), values / 4095)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_goes_before_the_window(tmp_path, bits, words):
    """A VOI LUT is applied before the window.

    The table of 8 bits has 4096 entries, for which pydicom's own function wraps the indices.
    """
    values = twelve()
    table = np.sqrt(np.arange(4096) / 4095) * (2**bits - 1)
    sequence = lut(np.rint(table), 0, bits, words)
    path = write_dicom(tmp_path / "x.dcm", values, 12, VOILUTSequence=sequence, WindowCenter=7, WindowWidth=9)
    close(path, np.sqrt(values / 4095), atol=0.5 / (2**bits - 1) + 1e-6)


def test_a_lut_holds_its_ends(tmp_path):
    values = twelve()
    sequence = lut(np.arange(0, 1024), 1000, 10)
    close(
        write_dicom(tmp_path / "x.dcm", values, 12, VOILUTSequence=sequence), np.clip(values - 1000.0, 0, 1023) / 1023
    )
    signed = values.astype(np.int16) - 2048
    for first in (-2048, 65536 - 2048):  # as SS, and as files store it in US
        path = write_dicom(tmp_path / "y.dcm", signed, 12, VOILUTSequence=lut(np.arange(4096), first, 12))
        close(path, values / 4095)


def test_a_modality_lut_comes_before_the_window(tmp_path):
    values = twelve()
    sequence = lut(np.arange(4096)[::-1] // 2, 0, 16)
    path = write_dicom(
        tmp_path / "x.dcm", values, 12, ModalityLUTSequence=sequence, WindowCenter=1024, WindowWidth=2048
    )
    close(path, (4095 - values.astype(float)) // 2 / 2047)


def test_without_a_window_the_percentiles_are_black_and_white(tmp_path):
    values = np.arange(10000, dtype=np.uint16).reshape(100, 100)
    values[0, 0], values[-1, -1] = 0, 60000  # a hot pixel must not darken the image
    path = write_dicom(tmp_path / "x.dcm", values)
    black, white = np.percentile(values, (0.1, 99.9))
    close(path, np.clip((values - black) / (white - black), 0, 1))
    flat = np.full((4, 4), 7, np.uint8)
    assert decode(write_dicom(tmp_path / "flat.dcm", flat)).max() == 0
    close(write_dicom(tmp_path / "w.dcm", values, WindowCenter=5, WindowWidth=0), decode(path))  # no width: no window


def test_padding_is_black_and_counts_for_nothing(tmp_path):
    values = np.full((40, 40), 65535, np.uint16)
    values[5:35, 5:35] = 1000 + np.arange(900).reshape(30, 30)
    inside = values[5:35, 5:35].astype(float)
    black, white = np.percentile(inside, (0.1, 99.9))
    expected = np.zeros((40, 40))
    expected[5:35, 5:35] = np.clip((inside - black) / (white - black), 0, 1)
    close(write_dicom(tmp_path / "x.dcm", values, PixelPaddingValue=65535), expected)
    values[values == 65535] = 65000 + np.arange((values == 65535).sum()) % 400
    limits = {"PixelPaddingValue": 64000, "PixelPaddingRangeLimit": 65500}
    turned = {"PhotometricInterpretation": "MONOCHROME1"}
    expected[5:35, 5:35] = 1 - expected[5:35, 5:35]
    close(write_dicom(tmp_path / "y.dcm", values, **limits, **turned), expected)


def test_bits_above_those_stored_are_not_the_image(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", twelve() | 0xA000, 12, **FULL12)  # older files store overlays there
    close(path, twelve() / 4095)


@pytest.mark.parametrize("compress", [RLE, J2K])
def test_lossless_compression(tmp_path, compress):
    if compress == J2K:
        pytest.importorskip("openjpeg", reason='JPEG 2000 needs pylibjpeg-openjpeg: pip install "se_fused[train]"')
    values = np.tile(twelve(), (8, 8))
    close(write_dicom(tmp_path / "x.dcm", values, 12, compress=compress, **FULL12), values / 4095)


def test_baseline_jpeg(tmp_path):
    import io

    from PIL import Image
    from pydicom.encaps import encapsulate

    pytest.importorskip("libjpeg", reason='JPEG needs pylibjpeg-libjpeg: pip install "se_fused[train]"')
    values = np.add.outer(np.arange(64), 2 * np.arange(48)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=98)
    window = {"WindowCenter": 128, "WindowWidth": 256}
    packed = encapsulate([stream.getvalue()])
    path = write_dicom(tmp_path / "x.dcm", values, syntax="1.2.840.10008.1.2.4.50", PixelData=packed, **window)
    close(path, values / 255, atol=3 / 255)


def test_colours_become_luma(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    luma = colours / 255 @ (0.299, 0.587, 0.114)
    close(write_dicom(tmp_path / "rgb.dcm", colours), luma)
    red, green, blue = (colours[..., k].astype(float) for k in range(3))
    ybr = np.stack([
        0.299 * red + 0.587 * green + 0.114 * blue,
        -0.168736 * red - 0.331264 * green + 0.5 * blue + 128,
        0.5 * red - 0.418688 * green - 0.081312 * blue + 128,
    ], -1).round().clip(0, 255).astype(np.uint8)  # fmt: skip
    close(write_dicom(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL"), luma, atol=2 / 255)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "frames",
            lambda p: write_dicom(p, np.zeros((3, 8, 6), np.uint8)),
            "3 frames; a radiograph is one image",
        ),
        ("report", lambda p: write_dicom(p, None, Modality="SR"), "contains no image"),
        ("empty", lambda p: write_dicom(p, twelve(), PixelData=None), "contains no image"),
        ("palette", lambda p: write_dicom(p, twelve(), PhotometricInterpretation="PALETTE COLOR"), "palette colour"),
        ("text", lambda p: p.write_text("no picture"), "not a DICOM file, or its start is damaged"),
        ("nothing", lambda p: p.write_bytes(b""), "not a DICOM file, or its start is damaged"),
        ("film", lambda p: write_dicom(p, twelve(), syntax=MPEG, PixelData=FRAME), "compressed with MPEG2"),
    ],
)
def test_what_is_refused(tmp_path, name, make, message):
    path = tmp_path / f"{name}.dcm"
    make(path)
    with pytest.raises(InputError, match=rf"{name}\.dcm: .*({message})") as caught:
        load_radiograph(path, 32)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize("compress", ["", RLE])
def test_a_file_cut_off_anywhere_is_one_clear_line(tmp_path, compress):
    whole = write_dicom(tmp_path / "whole.dcm", np.tile(twelve(), (4, 4)), 12, compress=compress).read_bytes()
    for share in (0.02, 0.2, 0.4, 0.6, 0.9, 0.99):
        path = tmp_path / "half.dcm"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=r"half\.dcm: .*; ") as caught:
            decode(path)
        assert "\n" not in str(caught.value) and "SECRET" not in str(caught.value) and caught.value.__cause__ is None


def test_no_decoder_is_said_with_the_remedy(tmp_path, monkeypatch):
    from pydicom.pixels import get_decoder

    path = write_dicom(tmp_path / "x.dcm", np.tile(twelve(), (8, 8)), 12, compress=RLE)
    monkeypatch.setattr(type(get_decoder(RLE)), "is_available", property(lambda self: False))
    with pytest.raises(InputError, match=r"x\.dcm: .*RLE Lossless.*no installed library decodes.*se_fused\[train\]"):
        decode(path)


def test_missing_pydicom_names_the_extra(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "x.dcm", twelve())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'pip install "se_fused\[train\]"'):
        decode(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        decode(tmp_path / "nothing.dcm")


def test_dicom_is_known_by_name_or_content(tmp_path):
    expected = twelve() / 4095
    for name in ("x.DCM", "x.dicom", "IM000001", "1.2.840.113619.2"):
        close(write_dicom(tmp_path / "a" / name, twelve(), 12, **FULL12), expected)
    (tmp_path / "a" / "notes").write_text("no picture")
    assert not dicom.is_dicom(tmp_path / "a" / "notes") and dicom.is_dicom(tmp_path / "a" / "IM000001")
    write_dicom(tmp_path / "b" / "y.dcm", twelve())
    images, _, names, skipped = load_folder(tmp_path, 8)
    assert len(images) == 3 and names == ["a", "b"] and skipped == []


def test_the_header(tmp_path):
    header = dicom.read_header(write_dicom(tmp_path / "x.dcm", twelve()))
    assert (header.view, header.laterality, header.body_part, header.frames) == ("AP", "L", "FOREARM", 1)
    assert "SECRET" not in repr(header) and header.study not in repr(header)
    read = dicom.read(tmp_path / "x.dcm")[1]
    assert read == header
    for given, view in (("LL", "lateral"), ("LAT", "lateral"), ("PA", "PA"), ("", ""), (None, "")):
        assert dicom.read_header(write_dicom(tmp_path / "y.dcm", twelve(), ViewPosition=given)).view == view
    same = dicom.read_header(write_dicom(tmp_path / "z.dcm", twelve()))
    assert same.patient == header.patient and same.study != header.study
    other = dicom.read_header(write_dicom(tmp_path / "z.dcm", twelve(), IssuerOfPatientID="another hospital"))
    assert other.patient != header.patient
    without = write_dicom(tmp_path / "w.dcm", twelve(), PatientID="", StudyInstanceUID="1.2.3")
    assert dicom.read_header(without).patient == "study\x001.2.3"
    assert dicom.read_header(write_dicom(tmp_path / "r.dcm", None)).frames == 0
    (tmp_path / "t.dcm").write_text("no picture")
    with pytest.raises(InputError, match=r"t\.dcm: named \.dcm but not a DICOM file"):
        dicom.read_header(tmp_path / "t.dcm")


def test_a_header_s_values_are_neither_warned_of_nor_logged_nor_raised(tmp_path, caplog, capfd):
    """Invalid header values appear in no warning, log or error.

    pydicom warns of an invalid UID, date or number with its value.
    """
    good = write_dicom(tmp_path / "x.dcm", twelve(), 12, StudyInstanceUID="1.2.3.4.5.6", WindowCenter="1.5E+1")
    content = good.read_bytes()
    # 1.5E+1 cannot be part of a UID; the file also contains random UIDs.
    bad = {"uid": (b"1.2.3.4.5.6\0", b"SECRET^NAME\0"), "number": (b"1.5E+1", b"SECRET")}
    expected = {"uid": None, "number": "damaged|cannot be applied"}
    caplog.set_level(logging.WARNING)
    for name, (old, new) in bad.items():
        path = tmp_path / f"{name}.dcm"
        if name == "number":
            content = write_dicom(path, twelve(), 12, WindowCenter="1.5E+1", WindowWidth="99").read_bytes()
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if expected[name] is None:
                decode(path)
            else:
                with pytest.raises(InputError, match=expected[name]) as caught:
                    decode(path)
                assert "SECR" not in str(caught.value) and caught.value.__suppress_context__
    assert not caplog.records and capfd.readouterr() == ("", "")
