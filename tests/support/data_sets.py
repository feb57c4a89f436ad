"""Tiny data sets in their publishers' layouts, and DICOM files, all written by the tests."""

from pathlib import Path

import numpy as np

SECRET = "DOE^JOHN"
"""The patient's name in every DICOM file; it must not appear in any output."""


def picture(path: Path, seed: int = 0, bits: int = 8, size: tuple[int, int] = (12, 9)) -> Path:
    """Write a noisy grey PNG or JPEG of a few pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 2**bits, size)
    Image.fromarray(values.astype(np.uint16 if bits == 16 else np.uint8)).save(path)
    return path


def text(path: Path, content: str, bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8-sig" if bom else "utf-8")
    return path


def write_dicom(path: Path, pixels: np.ndarray | None, bits: int = 0, syntax: str = "", compress: str = "", **elements):
    """Write a DX image with the given stored values ((H, W), (frames, H, W) or (H, W, 3)), or a file without an image.

    Args:
        bits: bits stored, of 8 or 16 allocated; by default those of the array's type.
        syntax, compress: UIDs of the transfer syntax to write, or to compress with (RLE and JPEG 2000 have encoders).
        elements: DICOM elements by keyword; None removes one.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientName, data.PatientID, data.Modality = SECRET, "SECRET-ID-77", "DX"
    data.ViewPosition, data.ImageLaterality, data.BodyPartExamined = "AP", "L", "FOREARM"
    if pixels is not None:
        allocated = 8 * pixels.dtype.itemsize
        data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
        data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
        if data.SamplesPerPixel == 3:
            data.PlanarConfiguration, (data.Rows, data.Columns) = 0, pixels.shape[:2]
        else:
            data.Rows, data.Columns = pixels.shape[-2:]
            if pixels.ndim == 3:
                data.NumberOfFrames = len(pixels)
        data.BitsAllocated, data.BitsStored = allocated, bits or allocated
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        data["PixelData"].VR = "OB" if allocated == 8 else "OW"
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if compress:
        data.compress(compress)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def lut(entries, first: int, bits: int, words: bool = False):
    """The sequence of a modality or VOI LUT; `words`: stored as OW bytes instead of US numbers."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    table = np.asarray(entries, np.uint16)
    item.add_new(0x00283006, "OW" if words else "US", table.tobytes() if words else table.tolist())
    return Sequence([item])


def pictures(root: Path, *names: str, bits: int = 8) -> Path:
    """Write different pictures under these names below a folder."""
    for seed, name in enumerate(names):
        picture(root / name, seed, bits)
    return root


def fracatlas(root: Path) -> Path:
    """Write two fractured images, two others, one without a file and one in the wrong folder; there are no patients."""
    names = "image_id,hand,leg,hip,shoulder,mixed,hardware,multiscan,fractured,fracture_count,frontal,lateral,oblique"
    rows = [
        "IMG0000001.jpg,1,0,0,0,0,0,0,1,1,1,0,0",
        "IMG0000002.jpg,0,1,0,0,0,0,1,1,2,1,1,0",
        "IMG0000010.jpg,0,1,0,0,0,0,0,0,0,0,1,0",
        "IMG0000011.jpg,0,1,0,0,0,0,0,0,0,0,0,1",
        "IMG0000012.jpg,0,1,0,0,0,0,0,0,0,0,0,1",
        "IMG0000013.jpg,0,1,0,0,0,0,0,0,0,0,0,1",
    ]
    text(root / "dataset.csv", "\n".join([names, *rows]) + "\n", bom=True)
    pictures(root / "images" / "Fractured", "IMG0000001.jpg", "IMG0000002.jpg", "IMG0000013.jpg")
    pictures(root / "images" / "Non_fractured", "IMG0000010.jpg", "IMG0000011.jpg", "._IMG0000010.jpg")
    for name, image in (("train", "IMG0000001.jpg"), ("valid", "IMG0000002.jpg"), ("test", "IMG0000099.jpg")):
        text(root / "Utilities" / "Fracture Split" / f"{name}.csv", f"image_id\n{image}\n", bom=True)
    return root


def mura(root: Path) -> Path:
    """Write two regions, three patients (one in both), four studies of one or two images, and one without a folder."""
    studies = {
        "train/XR_HUMERUS/patient00001/study1_positive": 2,
        "train/XR_HUMERUS/patient00002/study1_negative": 1,
        "train/XR_WRIST/patient00001/study1_negative": 1,
        "valid/XR_HUMERUS/patient00003/study1_negative": 1,
    }
    for split in ("train", "valid"):
        rows = [f"MURA-v1.1/{name}/,{int('positive' in name)}" for name in studies if name.startswith(split)]
        if split == "valid":
            rows.append("MURA-v1.1/valid/XR_WRIST/patient00009/study1_positive/,1")
        text(root / f"{split}_labeled_studies.csv", "\n".join(rows) + "\n")
        text(root / f"{split}_image_paths.csv", "")
    for name, count in studies.items():
        pictures(root / name, *(f"image{k + 1}.png" for k in range(count)))
    text(root / "train/XR_HUMERUS/patient00001/study1_positive/._image1.png", "Mac")
    return root


GRAZ_CODES = {
    "0001_0000000001_01_WRI-L1_M010": ("1", "", ""),
    "0001_0000000001_02_WRI-L2_M010": ("1", "", ""),
    "0002_0000000002_01_WRI-R1_F008": ("1", "23r-M/3.1; 23u-E/7", "1"),
    "0003_0000000003_01_WRI-R2_F008": ("3", "23-M/2.1", "1"),
    "0004_0000000004_01_WRI-R1_F012": ("2", "23r-E/2.1", "1"),
    "0005_0000000005_01_WRI-R1_F012": ("1", "23r-M/3.1; 23u-M/2.1", "1"),
    "0006_0000000006_01_WRI-R1_F012": ("1", "23u-E/7", "1"),
    "0007_0000000007_01_WRI-R1_F012": ("1", "", "1"),
    "0008_0000000008_01_WRI-R1_F012": ("1", "22-D/4.1", ""),
    "0009_0000000009_01_WRI-R1_F012": ("2", "", "1"),
}
"""{filestem: (projection, AO codes, fracture_visible)}; the last one has no file."""


def grazpedwri(root: Path) -> Path:
    """Write 16-bit images in two folders, and the table with a byte order mark and empty flags."""
    names = (
        "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,cast,"
        "diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,device_manufacturer"
    )
    rows = []
    for k, (stem, (projection, codes, visible)) in enumerate(GRAZ_CODES.items()):
        patient = int(stem.split("_")[0])
        uncertain = "1" if k == 2 else ""
        rows.append(f"{stem},{patient},1,ab,M,9.8,L,{projection},1,{codes},,{uncertain},,{visible},,0.144,Siemens")
        if k < 9:
            picture(root / f"images_part{1 + k % 2}" / f"{stem}.png", k, bits=16)
    text(root / "dataset.csv", "\n".join([names, *rows]) + "\n", bom=True)
    return root


def hbfmid(root: Path) -> Path:
    """Write YOLO boxes of three classes and Healthy, and one image for each reason to skip an image."""
    text(root / "data.yaml", "train: ../train/images\nnc: 3\nnames: ['Comminuted', 'Healthy', 'Oblique Displaced']\n")
    images = {
        "train/a1_jpg.rf.0001": "0 .5 .5 .1 .1",
        "train/a1_jpg.rf.0002": "0 .5 .5 .1 .1\n0 .2 .2 .1 .1\n",
        "train/b_mri7_jpg.rf.0003": "2 .5 .5 .1 .1",
        "train/c1_jpg.rf.0004": "0 .5 .5 .1 .1\n2 .5 .5 .1 .1",
        "valid/d1_png.rf.0005": "1 .5 .5 .1 .1",
        "valid/d2_jpg.rf.0006": "",
        "test/e1_jpg.rf.0007": "2 .5 .5 .1 .1",
        "test/e2_jpg.rf.0008": None,
    }
    for seed, (name, boxes) in enumerate(images.items()):
        split, stem = name.split("/")
        picture(root / split / "images" / f"{stem}.jpg", seed)
        (root / split / "labels").mkdir(exist_ok=True)
        if boxes is not None:
            text(root / split / "labels" / f"{stem}.txt", boxes)
    return root


def dicoms(root: Path) -> Path:
    """Write two classes, three patients and four studies, and a report, a multi-frame film and a damaged file."""
    pixels = (np.arange(48, dtype=np.uint16) * 80).reshape(8, 6)
    for name, patient, study, view in (
        ("fracture/IM2", "HOSPITAL-A", "1.2.1", "AP"),
        ("fracture/IM10", "HOSPITAL-A", "1.2.1", "LL"),
        ("fracture/x.dcm", "HOSPITAL-B", "1.2.2", ""),
        ("none/1.2.840.77", "HOSPITAL-A", "1.2.3", "PA"),
        ("none/IM1", "", "1.2.4", "AP"),
    ):
        values = {"PatientID": patient, "StudyInstanceUID": study, "SOPInstanceUID": f"{study}.{len(name)}"}
        write_dicom(root / name, pixels, 12, ViewPosition=view, **values)
    write_dicom(root / "none" / "report.dcm", None)
    write_dicom(root / "none" / "film.dcm", np.stack([pixels, pixels]), 12)
    text(root / "none" / "damaged.dcm", "no DICOM")
    text(root / "none" / "notes.txt", "no DICOM")
    return root
