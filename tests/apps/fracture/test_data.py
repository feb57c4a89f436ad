"""Tests of decoding with a cache, augmentation, order and loaders."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import no_evaluation, small_config, write_phantoms  # noqa: F401

from se_fused._errors import InputError
from se_fused.apps.fracture.data import Augmentation, Batches, Loader, RadiographDataset, cache, decode_all
from se_fused.apps.fracture.data.dataset import collate
from se_fused.apps.fracture.images import load_radiograph
from se_fused.apps.fracture.manifest import Manifest, Record
from se_fused.apps.fracture.training.sources import check_splits, read_sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 12).parent


@pytest.fixture
def manifest(folder):
    return Manifest.load(folder / "manifest.csv")


# ---- decoding
@pytest.mark.parametrize("kind", ["disk", "memory", "none"])
def test_decoded_images_are_the_files(manifest, tmp_path, kind):
    found = decode_all(manifest, 32, cache=kind, folder=tmp_path)
    for record in manifest.records:
        wanted = load_radiograph(record.path, 32)
        # saved with 16 bits: an error of half a step of 65535
        assert (found.image(record.path) - wanted).abs().max() <= (0 if kind == "none" else 0.51 / 65535)
    pixels = torch.stack([load_radiograph(r.path, 32) for r in manifest.records]).double()
    mean, std = found.mean_std([r.path for r in manifest.records])
    assert (mean, std) == pytest.approx((pixels.mean().item(), pixels.std(correction=0).item()), rel=1e-9)


def test_16_bit_radiograph_keeps_its_greys(tmp_path):
    """A 16-bit radiograph becomes neither white, as with Pillow's convert, nor rounded to 8 bits."""
    grey = np.arange(20000, 20000 + 32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    manifest = Manifest((Record(tmp_path / "deep.png", "none"),))
    deep = decode_all(manifest, 32).image(tmp_path / "deep.png")
    assert torch.equal((deep * 65535).round()[0].int(), torch.from_numpy(grey.astype(np.int32)))
    assert len(decode_all(manifest, 32, depth=8).image(tmp_path / "deep.png").unique()) == 5


def test_cache_on_disk_is_found_again_and_only_if_nothing_changed(manifest, tmp_path, monkeypatch):
    calls = []
    real = cache.images.load_radiograph
    monkeypatch.setattr(cache.images, "load_radiograph", lambda path, size: calls.append(path) or real(path, size))
    copy = tmp_path / "copy"
    copy.mkdir()
    records = []
    for record in manifest.records[:4]:
        (copy / record.path.name).write_bytes(record.path.read_bytes())
        records.append(Record(copy / record.path.name, record.label))
    mine = Manifest(tuple(records))
    first = decode_all(mine, 32, cache="disk", folder=tmp_path / "kept")
    assert len(calls) == 4
    again = decode_all(Manifest(tuple(reversed(records))), 32, cache="disk", folder=tmp_path / "kept")
    assert len(calls) == 4, "the order of the manifest does not matter"
    assert np.array_equal(first.rows, again.rows) and isinstance(again.rows, np.memmap)
    assert {p.suffix for p in (tmp_path / "kept").iterdir()} == {".npy", ".json", ".lock"}, "nothing half-written"
    decode_all(mine, 48, cache="disk", folder=tmp_path / "kept")
    assert len(calls) == 8, "another size"
    time.sleep(0.01)
    records[0].path.write_bytes(records[1].path.read_bytes())
    changed = decode_all(mine, 32, cache="disk", folder=tmp_path / "kept")
    assert len(calls) == 12 and torch.equal(changed.image(records[0].path), changed.image(records[1].path))
    os.utime(records[0].path, (1, 1))
    decode_all(mine, 32, cache="disk", folder=tmp_path / "kept")
    assert len(calls) == 16, "the same size, but another modification time"


def _decode(arguments):
    manifest, folder = arguments
    seen = []
    found = decode_all(manifest, 32, cache="disk", folder=folder, progress=lambda *_: seen.append(time.sleep(0.3)))
    return float(found.rows.astype(np.float64).sum()), len(seen) > 0


def test_processes_share_one_cache(manifest, tmp_path):
    """Of ranks that start together, one decodes and the other waits, and both get complete images."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(_decode, [(manifest, tmp_path)] * 2, chunksize=1)
    assert sums[0][0] == sums[1][0] > 0 and sorted(worked for _, worked in sums) == [False, True]
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_interrupted_decoding_leaves_no_cache(manifest, tmp_path, monkeypatch):
    def stop(what, share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_all(manifest, 32, cache="disk", folder=tmp_path, progress=stop)
    assert {p.suffix for p in tmp_path.iterdir()} == {".lock"}
    assert decode_all(manifest, 32, cache="disk", folder=tmp_path).image(manifest.records[0].path).max() > 0


def test_full_disk_is_one_line(manifest, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"decoded images .* MB\) cannot be cached: No space left.*data\.cache"):
        decode_all(manifest, 32, cache="disk", folder=tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".lock"}


def test_workers_decode_the_same(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_FEW", 0)
    seen = []
    found = decode_all(manifest, 32, workers=2, progress=lambda what, share: seen.append(share))
    assert np.array_equal(found.rows, decode_all(manifest, 32, workers=0).rows)
    assert seen[-1] == 1 and seen == sorted(seen)


# ---- damaged files
def damaged_set(folder, tmp_path, kinds):
    records = list(Manifest.load(folder / "manifest.csv").records)
    for i, kind in enumerate(kinds):
        path = tmp_path / f"bad{i}.{'dcm' if kind == 'dicom' else 'png'}"
        if kind == "cut":
            path.write_bytes(records[0].path.read_bytes()[:200])
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "dicom":
            path.write_bytes(bytes(128) + b"DICM" + b"\0\1\2\3" * 50)
        records.append(Record(path, "spiral", f"bad{i}", split="train"))
    return Manifest(tuple(records))


@pytest.mark.parametrize("kind", ["disk", "memory", "none"])
def test_damaged_and_missing_files_are_named_and_left_out(folder, tmp_path, kind):
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    kinds = ["cut", "empty", "missing", "dicom"]
    manifest = damaged_set(folder, tmp_path, kinds)
    config = small_config(folder, tmp_path / "run", data__cache=kind, data__max_damaged=0.2).data
    for _ in range(2):  # the second time, the cache is used
        sources = read_sources(manifest, config, 0, tmp_path / "kept")
        assert [record.path.name for record, _ in sources.damaged] == ["bad0.png", "bad1.png", "bad2.png", "bad3.dcm"]
        assert all(reason and "\n" not in reason for _, reason in sources.damaged)
        train = sources.sets["train"]
        assert len(train) == len(manifest.where("train")) - 4 and len(train.damaged) == 4
        assert len([train[i] for i in range(len(train))]) == len(train)
    table = sources.damaged_table().splitlines()
    assert table[0] == "path,split,label,reason" and len(table) == 5 and "bad2.png,train,spiral" in table[3]


def test_too_many_damaged_files_are_an_error(folder, tmp_path):
    manifest = damaged_set(folder, tmp_path, ["cut", "missing"])
    config = small_config(folder, tmp_path / "run").data
    with pytest.raises(InputError) as error:
        read_sources(manifest, config, 0, tmp_path)
    text = str(error.value)
    assert "2 of 26 images cannot be read" in text and "bad0.png" in text and "bad1.png" in text and "\n" not in text


def test_class_of_damaged_images_only(folder, tmp_path):
    manifest = damaged_set(folder, tmp_path, ["cut"])
    records = [
        r if r.path.name != "bad0.png" else Record(r.path, "plastic", "bad", split="train") for r in manifest.records
    ]
    config = small_config(folder, tmp_path / "run", data__max_damaged=0.5).data
    with pytest.raises(InputError, match="'plastic' has damaged images only"):
        read_sources(Manifest(records), config, 0, tmp_path)


# ---- requirements of a manifest
def record(label="none", patient="p", split="train", name="a"):
    from pathlib import Path

    return Record(Path(f"/{name}.png"), label, patient, "", "", split)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(), record("spiral", "q", "valid")], "class 'spiral' has no training images .a.png is in valid"),
        ([record(), record("spiral", name="b")], r"split valid has no images \(1 patient in total; no patient may"),
        ([record(), record("none", "q", "valid")], "only one class"),
        ([record(), record("", "q")], "has split train but no label"),
        (
            [record(), record("spiral"), record("none", "p", "valid", "b")],
            r"one patient is in two splits: a.png in train, b.png in valid",
        ),
    ],
)
def test_splits_that_cannot_be_trained_on(records, message):
    with pytest.raises(InputError, match=message) as error:
        check_splits(Manifest(tuple(records)))
    assert "\n" not in str(error.value)


def test_label_outside_the_classes(manifest):
    with pytest.raises(InputError, match=r"image\d+.png: its label '\w+' is not one of the classes none, spiral"):
        RadiographDataset(manifest, ("none", "spiral"), 32)


# ---- augmentation
def test_augmentation_goes_by_its_key_alone(manifest):
    data = RadiographDataset(manifest, manifest.classes, 32, augmentation=Augmentation(1.0), seed=3)
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    one = data.__getitems__([(4, 0), (4, 1), (4, 2)])
    assert torch.equal(torch.random.get_rng_state(), state), "the process's own numbers are left alone"
    torch.manual_seed(12)
    assert torch.equal(data[(4, 2)][0], one[2][0]), "neither the batch nor the process's numbers matter"
    assert not torch.equal(data[(5, 2)][0], one[2][0]), "the epoch does"
    other = RadiographDataset(manifest, manifest.classes, 32, augmentation=Augmentation(1.0), seed=4)
    assert not torch.equal(other[(4, 2)][0], one[2][0]), "the seed does"


def test_augmented_images_are_radiographs(manifest):
    data = RadiographDataset(manifest, manifest.classes, 32)
    image = data[0][0]
    made = Augmentation(2.0)([image] * 200, [(0, 0, i) for i in range(200)])
    for picture in made:
        assert picture.shape == (1, 32, 32) and picture.dtype == torch.float32
        assert 0 <= picture.min() and picture.max() <= 1 and picture.isfinite().all()
    means = torch.stack([picture.mean() for picture in made])
    assert 0.5 * image.mean() < means.mean() < 1.5 * image.mean() and means.std() > 0.01
    assert torch.equal(Augmentation(0)([image], [(0, 0, 0)])[0], image)
    flips = Augmentation(1e-6)([image] * 40, [(0, 0, i) for i in range(40)])
    turned = {
        name for name, wanted in {
            "no": image, "across": image.flip(2), "down": image.flip(1), "both": image.flip(1, 2),
        }.items() if any((picture - wanted).abs().max() < 0.02 for picture in flips)
    }  # fmt: skip
    assert turned == {"no", "across", "down", "both"}


# ---- order
def test_batches_depend_on_seed_and_epoch_alone():
    labels = [0] * 20 + [1] * 7
    epoch = [0]
    batches = Batches(labels, 4, 9, lambda: epoch[0])
    first = list(batches)
    assert first == list(batches) and len(first) == len(batches) == 6
    assert len({place for batch in first for _, place in batch}) == 24, "no image twice"
    epoch[0] = 5
    assert [place for batch in batches for _, place in batch] != [place for batch in first for _, place in batch]
    assert {e for batch in batches for e, _ in batch} == {5}
    assert list(Batches(labels, 4, 10, lambda: 0)) != first


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_processes_share_the_batches_of_one(sampling):
    """Two processes with batches of 4 get, step by step, the images of one process with batches of 8."""
    labels = [i % 3 for i in range(43)]
    whole = list(Batches(labels, 8, 1, lambda: 2, sampling))
    parts = [list(Batches(labels, 4, 1, lambda: 2, sampling, rank, 2)) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 5
    for batch, one, other in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(one + other) and not set(one) & set(other)


def test_balanced_batches():
    labels = [0] * 90 + [1] * 9 + [2]
    seen = [labels[place] for batch in Batches(labels, 10, 0, lambda: 0, "balanced") for _, place in batch]
    assert len(seen) == 100 and all(33 <= seen.count(k) <= 34 for k in range(3))


def test_few_images_make_one_batch():
    assert [len(batch) for batch in Batches([0, 1, 0], 32, 0, lambda: 0)] == [3]


# ---- loading
class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        time.sleep(0.05)
        return torch.zeros(1, 2, 2), 0, i


def test_waiting_is_measured():
    loader = Loader(Slow(), batch_size=1, collate_fn=collate)
    for _ in loader:
        time.sleep(0.05)  # the time of a step
    assert 0.2 <= loader.waited < 0.35
    assert json.dumps(loader.waited)


def test_batches_are_channels_last(manifest):
    data = RadiographDataset(manifest, manifest.classes, 32)
    images, labels, places = collate(data.__getitems__([0, 1, 2]))
    assert images.shape == (3, 1, 32, 32) and images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64 and places.tolist() == [0, 1, 2]
