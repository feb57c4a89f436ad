"""Tests of each data set's layout: a tiny copy becomes the right manifest."""

import numpy as np
import pytest
from support.data_sets import (
    GRAZ_CODES,
    dicoms,
    fracatlas,
    grazpedwri,
    hbfmid,
    mura,
    picture,
    pictures,
    text,
    write_dicom,
)

from se_fused._errors import InputError
from se_fused.apps.fracture import layouts
from se_fused.apps.fracture.layouts import grazpedwri as graz
from se_fused.apps.fracture.manifest import Manifest

pytestmark = pytest.mark.quick

pytest.importorskip("PIL", reason='images need Pillow: pip install "se_fused[train]"')


def table(manifest, *columns):
    return [tuple(getattr(record, name) for name in columns) for record in manifest.records]


def named(manifest, *columns):
    """{file name: (columns...)}, after a check that every path exists."""
    assert all(record.path.is_absolute() and record.path.is_file() for record in manifest.records)
    rows = table(manifest, *columns)
    return {r.path.name: row[0] if len(columns) == 1 else row for r, row in zip(manifest.records, rows, strict=True)}


def refused(match, *arguments, **options):
    with pytest.raises(InputError, match=match) as caught:
        layouts.read(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_folders_without_splits(tmp_path):
    root = pictures(
        tmp_path / "set", "none/2.png", "none/10.jpg", "oblique/deep/1.tif", "oblique/._1.png", "beside.png"
    )
    text(root / "oblique" / "notes.txt", "no picture")
    found = layouts.read(root)
    assert table(found, "label", "patient", "study", "view", "split", "source") == [
        ("none", "", "", "", "", "set"),
        ("none", "", "", "", "", "set"),
        ("oblique", "", "", "", "", "set"),
    ]
    assert [record.path.relative_to(root).as_posix() for record in found.records] == [
        "none/2.png",
        "none/10.jpg",
        "oblique/deep/1.tif",
    ]
    assert found.notes == (f"layout folders of {root}", "1 left out, outside the class folders: beside.png")
    assert layouts.read(str(root), "folders") == found


def test_folders_with_splits(tmp_path):
    """Folders with splits are read as in the multi-region set: val, a space in a name, and here two spellings."""
    root = pictures(tmp_path, "train/fractured/1.png", "train/not fractured/2.png", "val/Fractured/3.png")
    pictures(root, "test/fractured/4.jpg", "extra/5.png", "train/6.png")
    (root / "val" / "not fractured").mkdir()
    found = layouts.read(root)
    assert named(found, "label", "split") == {
        "1.png": ("fractured", "train"),
        "2.png": ("not fractured", "train"),
        "3.png": ("fractured", "valid"),
        "4.jpg": ("fractured", "test"),
    }
    assert found.classes == ("not fractured", "fractured")
    assert found.notes[1:] == (
        "val/not fractured has no images",
        "class 'Fractured' is read as 'fractured'",
        "1 left out, outside the split folders: extra/5.png",
        "1 left out, outside the class folders: train/6.png",
    )


def test_archives_in_folders_of_their_own_name(tmp_path):
    inner = pictures(tmp_path / "Set" / "Set", "a/1.png", "b/2.png")
    for layout in ("auto", "folders"):
        found = layouts.read(tmp_path / "Set", layout)
        assert found.classes == ("a", "b") and found.notes[0] == f"layout folders of {inner}"
    deep = pictures(tmp_path / "download" / "some set", "train/a/1.png", "train/b/2.png")
    for layout in ("auto", "folders"):
        assert layouts.read(tmp_path / "download", layout).notes[0] == f"layout folders of {deep}"


def test_one_class_with_a_folder_for_each_patient_is_not_two_classes(tmp_path):
    pictures(tmp_path, "none/p1/1.png", "none/p2/2.png")
    refused(rf"contains one folder, so one class; if that contains the classes, give {tmp_path}/none", tmp_path)
    refused("all 2 images are of one class, 'none'; two or more are needed", tmp_path, "folders")


def test_class_first(tmp_path):
    root = pictures(
        tmp_path / "Bone Break Classification",
        "Hairline Fracture/Train/1.jpg",
        "Hairline Fracture/Test/2.jpg",
        "Greenstick fracture/Train/3.jpg",
        "Greenstick fracture/Extra/4.jpg",
        "Greenstick fracture/5.jpg",
    )
    (root / "Greenstick fracture" / "Test").mkdir()
    found = layouts.read(root, "class-first")
    assert named(found, "label", "split") == {
        "3.jpg": ("Greenstick fracture", "train"),
        "1.jpg": ("Hairline fracture", "train"),
        "2.jpg": ("Hairline fracture", "test"),
    }
    assert found.notes[1:] == (
        "Greenstick fracture/Test has no images",
        "1 left out, outside Train and Test: Greenstick fracture/Extra/4.jpg",
        "1 left out, outside the class folders: Greenstick fracture/5.jpg",
    )
    (root / "Greenstick fracture" / "Extra" / "4.jpg").unlink()
    (root / "Greenstick fracture" / "Extra").rmdir()
    assert layouts.read(tmp_path).notes[0] == f"layout class-first of {root}"
    (root / "Spiral").mkdir()
    refused("Spiral: the class has no images in Train or Test", root, "class-first")


def test_csv_by_the_names_of_its_columns(tmp_path):
    pictures(tmp_path, "a.png", "images/b.png", "images/c.jpg", "d.png", "e.png")
    rows = [
        "File Name;Diagnosis;Patient-ID;Study;View;Set;more",
        "a.png;None;7;s1;AP;Training;x",
        "b;oblique;8;;lateral;val;x",
        "images/c.jpg;Oblique;8;s2;;;",
        "gone.png;oblique;9;;;;",
        "d.png;;9;;;;",
        "",
        "a.png;None;7;s1;AP;test;x",
    ]
    text(tmp_path / "any.csv", "\n".join(rows) + "\n", bom=True)
    found = layouts.read(tmp_path)
    assert table(found, "label", "patient", "study", "view", "split", "source") == [
        ("None", "7", "s1", "AP", "train", tmp_path.name),
        ("oblique", "8", "", "lateral", "valid", tmp_path.name),
        ("oblique", "8", "s2", "", "", tmp_path.name),
    ]
    assert list(named(found, "label")) == ["a.png", "b.png", "c.jpg"]
    assert found.notes == (
        f"layout csv of {tmp_path}",
        "from any.csv",
        "class 'Oblique' is read as 'oblique'",
        "1 left out, the file is missing: gone.png",
        "1 left out, without a label: d.png",
        "1 left out, listed twice: a.png",
    )
    assert layouts.read(tmp_path / "any.csv").records == found.records


def test_csv_with_columns_given(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    text(tmp_path / "x.csv", "Bild\tBefund\tname\n1.png\tgesund\tA\n2.png\tBruch\tB\n")
    found = layouts.read(tmp_path, "csv", columns={"path": "Bild", "label": "Befund", "patient": "name"})
    assert named(found, "label", "patient") == {"1.png": ("gesund", "A"), "2.png": ("Bruch", "B")}
    refused(r"x\.csv: has no column Alter \(for view\); its columns are Bild, Befund, name", tmp_path / "x.csv",
            columns={"path": "Bild", "label": "Befund", "view": "Alter"})  # fmt: skip
    refused("columns: age is not one of path, label", tmp_path, "csv", columns={"age": "Alter"})
    refused("has no CSV with path and label; give the path of one CSV file", tmp_path, "csv")
    refused(r"x\.csv: has no column for the path \(path, image.*rename a column to path", tmp_path / "x.csv")


def test_a_manifest_is_read_back(tmp_path):
    pictures(tmp_path, "images/a.png", "images/b.png", "more/c.png")
    (tmp_path / "cracks.csv").write_text("path,class\nimages/a.png,x\n")
    first = layouts.read(tmp_path, "folders")
    first = first.with_columns(patient=["p1", "p2", "p3"], study=["s", "", ""], view=["", "AP", ""])
    first = first.with_columns(split=["train", "valid", "test"])
    first.save(tmp_path / "manifest.csv")
    found = layouts.read(tmp_path)
    assert found == first == Manifest.load(tmp_path / "manifest.csv")
    assert found.notes == (f"layout csv of {tmp_path}", "from manifest.csv")


def test_many_missing_files_are_counted_and_the_first_named(tmp_path):
    pictures(tmp_path, "0.png", "1.png")
    rows = [f"{k}.png,{'ab'[k % 2]}" for k in range(9)]
    text(tmp_path / "x.csv", "\n".join(["file,label", *rows]))
    found = layouts.read(tmp_path)
    assert len(found) == 2
    assert found.notes[-1] == "7 left out, the file is missing: 2.png, 3.png, 4.png and 4 more"


def test_fracatlas(tmp_path):
    root = fracatlas(tmp_path / "FracAtlas")
    found = layouts.read(tmp_path)
    assert named(found, "label", "patient", "view", "split", "source") == {
        "IMG0000001.jpg": ("fractured", "", "frontal", "", "FracAtlas"),
        "IMG0000002.jpg": ("fractured", "", "", "", "FracAtlas"),
        "IMG0000010.jpg": ("not fractured", "", "lateral", "", "FracAtlas"),
        "IMG0000011.jpg": ("not fractured", "", "oblique", "", "FracAtlas"),
    }
    assert found.classes == ("not fractured", "fractured")
    assert found.notes == (
        f"layout fracatlas of {root}",
        "1 image with several views, or marked as multiscan",
        "Utilities/Fracture Split is not used: it covers the fractured images only",
        "1 left out, the file is missing: IMG0000012.jpg",
        "1 left out, in the other class's folder: IMG0000013.jpg",
    )
    split = layouts.read(root, "fracatlas", source_split=True)
    assert [record.split for record in split.records] == ["train", "valid", "", ""]
    assert "splits from Utilities/Fracture Split, which cover the fractured images only" in split.notes
    content = (root / "dataset.csv").read_text(encoding="utf-8-sig")
    text(root / "dataset.csv", content.replace("0,1,1,1,0,0", "0,yes,1,1,0,0"))
    refused(r"dataset\.csv: line 2: image_id or fractured \(0 or 1\)", root)
    text(root / "dataset.csv", content.replace("frontal", "front"))
    refused(r"dataset\.csv: has no column frontal; its columns are image_id, ", root)


def test_mura(tmp_path):
    root = mura(tmp_path / "MURA-v1.1")
    found = layouts.read(tmp_path)
    assert table(found, "label", "patient", "study", "view", "split", "source") == [
        ("abnormal", "patient00001", "XR_HUMERUS/patient00001/study1", "", "train", "MURA"),
        ("abnormal", "patient00001", "XR_HUMERUS/patient00001/study1", "", "train", "MURA"),
        ("normal", "patient00002", "XR_HUMERUS/patient00002/study1", "", "train", "MURA"),
        ("normal", "patient00001", "XR_WRIST/patient00001/study1", "", "train", "MURA"),
        ("normal", "patient00003", "XR_HUMERUS/patient00003/study1", "", "valid", "MURA"),
    ]
    assert found.notes == (
        f"layout mura of {root}",
        "MURA is published without a test split: train and valid only",
        "1 left out, the folder of a study is missing: valid/XR_WRIST/patient00009/study1_positive",
    )
    assert [r.path.name for r in found.records] == [
        "image1.png",
        "image2.png",
        "image1.png",
        "image1.png",
        "image1.png",
    ]
    some = layouts.read(root, "mura", regions=["humerus"])
    assert {record.study.split("/")[0] for record in some.records} == {"XR_HUMERUS"} and len(some) == 4
    assert len(some.notes) == 2
    refused("regions has XR_FOOT; .* has XR_HUMERUS, XR_WRIST", root, "mura", regions=["foot"])
    (root / "train/XR_HUMERUS/patient00002/study2_unclear").mkdir()
    (root / "train/XR_HUMERUS/patient00002/study3_negative").mkdir()
    assert set(layouts.read(root).notes[2:]) == {
        "1 left out, study neither positive nor negative: train/XR_HUMERUS/patient00002/study2_unclear",
        "1 left out, study without images: train/XR_HUMERUS/patient00002/study3_negative",
        "1 left out, the folder of a study is missing: valid/XR_WRIST/patient00009/study1_positive",
    }
    listed = root / "train_labeled_studies.csv"
    content = listed.read_text()
    text(listed, content.replace("study1_positive/,1", "study1_positive/,0"))
    refused(r"train_labeled_studies\.csv: gives 0 for a positive study", root)
    text(listed, content + "no study\n")
    refused(r"train_labeled_studies\.csv: line 4: needs the path of a study and 0 or 1", root)


def test_grazpedwri_fractures(tmp_path):
    root = grazpedwri(tmp_path / "GRAZ")
    found = layouts.read(tmp_path)
    stems = list(GRAZ_CODES)
    assert table(found, "label", "patient", "study", "view", "split", "source")[:5] == [
        ("none", "1", "1/1", "AP", "", "GRAZPEDWRI-DX"),
        ("none", "1", "1/1", "AP", "", "GRAZPEDWRI-DX"),
        ("fracture", "2", "2/1", "AP", "", "GRAZPEDWRI-DX"),
        ("fracture", "3", "3/1", "oblique", "", "GRAZPEDWRI-DX"),
        ("fracture", "4", "4/1", "lateral", "", "GRAZPEDWRI-DX"),
    ]
    assert [record.path.stem for record in found.records] == stems[:9]
    assert [record.label for record in found.records][5:] == ["fracture", "fracture", "fracture", "none"]
    assert found.notes == (
        f"layout grazpedwri of {root}",
        "task fracture",
        "1 image marked diagnosis_uncertain included",
        f"1 left out, the file is missing: {stems[9]}",
    )


def test_grazpedwri_types(tmp_path):
    root, stems = grazpedwri(tmp_path), list(GRAZ_CODES)
    found = layouts.read(root, "grazpedwri", task="type")
    expected = dict(zip(stems, ["none", "none", "complete", "incomplete", "physeal"], strict=False))
    assert {record.path.stem: record.label for record in found.records} == expected
    assert found.classes == ("none", "complete", "incomplete", "physeal")
    assert found.notes[1:] == (
        "task type",
        "1 image marked diagnosis_uncertain included",
        f"1 left out, fractures of several types: {stems[5]}",
        f"1 left out, AO codes without a type (avulsion, flake, other): {stems[6]}",
        f"1 left out, a visible fracture without an AO code: {stems[7]}",
        f"1 left out, an AO code, but no visible fracture: {stems[8]}",
        f"1 left out, the file is missing: {stems[9]}",
    )
    refused("task must be fracture or type for GRAZPEDWRI-DX; got 'age'", root, "grazpedwri", task="age")
    picture(root / "copies" / f"{stems[3]}.png")
    refused(f"images_part2 also has an image of this name|{stems[3]}.png: copies also has", root)


@pytest.mark.parametrize(
    ("codes", "label"),
    [
        ("23-M/2.1", "incomplete"),
        ("22-D/1.1", "incomplete"),
        ("22r-D/2.1;22u-D/1.1", "incomplete"),
        ("23r-M/3.2", "complete"),
        ("22-D/4.1, 22u-d/5.1", "complete"),
        ("23r-E/1; 23u-E/4.2", "physeal"),
        ("23r-M/3.1; 23u-E/7; 77.2.1C", "complete"),
        ("23r-M/2; 23u-M/3", ""),
        ("23r-E/2; 23u-M/2", ""),
        ("23u-E/7", ""),
        ("23u-M/7", ""),
        ("22-D/6.1", ""),
        ("72B(c)", ""),
    ],
)
def test_ao_codes_to_types(codes, label):
    found, reason = graz.fracture_type(True, codes)
    assert found == label and bool(reason) == (not label)


def test_hbfmid(tmp_path):
    pytest.importorskip("yaml", reason='data.yaml needs PyYAML: pip install "se_fused[train]"')
    root = hbfmid(tmp_path / "HBFMID" / "Bone Fractures Detection")
    found = layouts.read(tmp_path)
    assert named(found, "label", "patient", "study", "split", "source") == {
        "a1_jpg.rf.0001.jpg": ("Comminuted", "", "a1", "train", "HBFMID"),
        "a1_jpg.rf.0002.jpg": ("Comminuted", "", "a1", "train", "HBFMID"),
        "d1_png.rf.0005.jpg": ("Healthy", "", "d1", "valid", "HBFMID"),
        "d2_jpg.rf.0006.jpg": ("Healthy", "", "d2", "valid", "HBFMID"),
        "e1_jpg.rf.0007.jpg": ("Oblique Displaced", "", "e1", "test", "HBFMID"),
    }
    assert found.classes == ("Healthy", "Comminuted", "Oblique Displaced")
    assert set(found.notes) == {
        f"layout hbfmid of {root}",
        "1 left out, MRI: train/images/b_mri7_jpg.rf.0003.jpg",
        "1 left out, boxes of several classes: train/images/c1_jpg.rf.0004.jpg",
        "1 left out, without a label file: test/images/e2_jpg.rf.0008.jpg",
    }
    text(root / "data.yaml", "names: {0: Comminuted, 1: Spiral, 2: Oblique}\n")
    other = layouts.read(root)  # no class stands for no fracture
    assert "1 left out, without a box: valid/images/d2_jpg.rf.0006.jpg" in other.notes
    label = text(root / "train" / "labels" / "a1_jpg.rf.0001.txt", "3 .5 .5 .1 .1")
    refused(r"a1_jpg\.rf\.0001\.txt: line 1: class must be 0 to 2; got '3'", root)
    label.unlink()
    for content in ("names: 7\n", "- a\n", "names: {1: a}\n"):
        text(root / "data.yaml", content)
        refused(r"data\.yaml: has no list of class names", root)
    text(root / "data.yaml", "names: [a\n")
    refused(r"data\.yaml: cannot be read: .*; restore the file", root)


def test_dicom_folders(tmp_path):
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    root = dicoms(tmp_path / "clinic")
    found = layouts.read(root)
    assert named(found, "label", "patient", "study", "view", "split", "source") == {
        "IM2": ("fracture", "p0001", "s0001", "AP", "", "clinic"),
        "IM10": ("fracture", "p0001", "s0001", "lateral", "", "clinic"),
        "x.dcm": ("fracture", "p0002", "s0002", "", "", "clinic"),
        "1.2.840.77": ("none", "p0001", "s0003", "PA", "", "clinic"),
        "IM1": ("none", "p0003", "s0004", "AP", "", "clinic"),
    }
    assert found.notes == (
        f"layout dicom of {root}",
        "1 left out, not a readable DICOM file: none/damaged.dcm",
        "1 left out, several frames: none/film.dcm",
        "1 left out, contains no image: none/report.dcm",
    )
    assert not any(word in str(found) for word in ("HOSPITAL", "SECRET", "DOE", "1.2.1"))
    picture(root / "none" / "x.png")
    refused("the class has no images", root, "folders")  # fracture/ has no such file
    picture(root / "fracture" / "y.png")
    refused("matches the layouts folders and dicom; choose one with --layout", root)
    assert layouts.read(root, "dicom").notes[-1] == "2 images of other formats left out; --layout folders reads them"
    assert layouts.read(root, "folders").notes[-1] == "8 DICOM files left out; --layout dicom reads them"


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("file,label,split\nfracture/IM2,a,train\nIM10,b,val\nx.dcm,b,\n",
         {"IM2": ("a", "train"), "IM10": ("b", "valid"), "x.dcm": ("b", "")}),
        ("StudyInstanceUID,label\n1.2.1,a\n1.2.4,b\n9.9.9,b\n",
         {"IM2": ("a", ""), "IM10": ("a", ""), "IM1": ("b", "")}),
        ("SOP Instance UID,diagnosis\n1.2.1.12,a\n1.2.1.13,b\n", {"IM2": ("a", ""), "IM10": ("b", "")}),
    ],
)  # fmt: skip
def test_dicom_with_a_table(tmp_path, content, labels):
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    root = dicoms(tmp_path / "clinic")
    text(root / "labels.csv", content, bom=True)
    found = layouts.read(root)
    assert named(found, "label", "split") == labels and found.notes[0].startswith("layout dicom")
    left = sum(note.count("without a label in labels.csv") for note in found.notes)
    assert left == 1 and ("1 line of labels.csv without a matching image" in found.notes) == ("9.9.9" in content)
    assert not any(word in str(found) for word in ("HOSPITAL", "SECRET", "9.9.9", "1.2.1.1"))


def test_dicom_tables_that_are_refused(tmp_path):
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    root = dicoms(tmp_path / "clinic")
    for content, message in {
        "file,age\nx.dcm,7\n": "needs a column label and one of file, StudyInstanceUID or SOPInstanceUID",
        "StudyInstanceUID,label\n1.2.1,a\n1.2.1,b\n": "line 3 repeats an image or study with another label",
        "file,label,split\nx.dcm,a,some\n": "line 2: split must be train, valid, test or empty: 'some'",
        "file,label\n,a\n": "line 2 names no image",
        "StudyInstanceUID,label\n9.9.9,a\n": r"no images for layout dicom \(.*5 left out, without a label",
    }.items():
        text(root / "labels.csv", content)
        refused(message, root, "dicom")


def test_one_patient_id_for_all_is_said(tmp_path):
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    for k, label in enumerate("aabb"):
        write_dicom(tmp_path / label / f"{k}.dcm", np.zeros((8, 8), np.uint8), PatientID="ANON")
    found = layouts.read(tmp_path)
    assert {record.patient for record in found.records} == {"p0001"}
    assert "all images have the same PatientID" in found.notes[-1]


def test_what_is_wrong_is_one_line(tmp_path):
    refused("nowhere: no such folder or file; give the folder of a data set, or a CSV file", tmp_path / "nowhere")
    refused(
        "layout must be one of auto, folders, class-first, csv, fracatlas, .*; got 'imagenet'", tmp_path, "imagenet"
    )
    refused("no known layout of a data set; expected: a folder of images for each class", tmp_path)
    root = pictures(tmp_path / "set", "a/1.png", "b/2.png")
    refused(r"1\.png: label 'a' is not one of b, c", root, classes=("b", "c"))
    assert len(layouts.read(root, classes=("a", "b", "c"))) == 2
    refused("task is not an option of layout folders; its options are none", root, "folders", task="type")
    refused("age is not an option of layout grazpedwri; its options are task", root, "grazpedwri", age=7)
    refused(r"1\.png: is a file; layout folders needs a folder", root / "a" / "1.png", "folders")
    refused(r"1\.png: is not UTF-8 text; save it as CSV", root / "a" / "1.png")
    (root / "c").mkdir()
    refused("c: the class has no images; add PNG", root)
    refused("c: the class has no images; add PNG", root, "folders")
    for layout in ("fracatlas", "grazpedwri"):
        refused(r"dataset\.csv: cannot be read: No such file", root, layout)
    refused("no images for layout mura; choose another with --layout", root, "mura")
    refused("the class has no images in Train or Test", root, "class-first")
    refused(
        "no images for layout dicom .2 images of other formats left out.*; choose another with --layout", root, "dicom"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; its first line must name the columns"),
        ("path,label,label\n1.png,a,b\n", "has several columns named label"),
        ("path,class,diagnosis\n1.png,a,b\n", "class and diagnosis may both be the label; rename one of them to label"),
        ("path,age\n1.png,3\n", "has no column for the label"),
        ("path,label\n\n,a\n", "line 3 names no image"),
        ("path,label\n1.png,a\n./1.png,b\n", r"line 3: 1\.png has two labels"),
        ("path,label,split\n1.png,a,fold\n", "line 2: split must be train, valid, test or empty: 'fold'"),
        ("path,label\n7.png,a\n", r"no images for layout csv \(1 left out, the file is missing: 7\.png\)"),
        ("path,label\n1.png,a\n2.png,a\n", "all 2 images are of one class, 'a'"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    pictures(tmp_path, "1.png", "2.png")
    text(tmp_path / "x.csv", content)
    refused(message, tmp_path / "x.csv")


def test_a_name_in_several_folders_is_not_guessed(tmp_path):
    pictures(tmp_path, "p/1.png", "q/1.png", "p/2.png", "q/3.png")
    text(tmp_path / "x.csv", "path,label\n1.png,a\n2.png,a\n3.png,b\n")
    found = layouts.read(tmp_path / "x.csv")
    assert len(found) == 2 and found.notes[-1] == "1 left out, several files have this name: 1.png"


def test_what_may_be_two_things_is_asked_for(tmp_path):
    root = pictures(tmp_path / "set", "a/1.png", "b/2.png")
    text(root / "x.csv", "path,label\na/1.png,n\nb/2.png,m\n")
    refused("set: matches the layouts csv and folders; choose one with --layout", root)
    assert layouts.read(root, "csv").classes == ("m", "n") and layouts.read(root, "folders").classes == ("a", "b")
    text(root / "y.csv", "path,label\na/1.png,n\nb/2.png,m\n")
    refused(r"has x\.csv, y\.csv; give the path of one CSV file", root, "csv")
    (root / "x.csv").unlink()
    (root / "y.csv").rename(root / "labels.csv")
    refused("set: matches the layouts csv and folders", root)
    first = fracatlas(tmp_path / "both")
    mura(first)
    refused("both: matches the layouts fracatlas and mura; choose one with --layout", first)
