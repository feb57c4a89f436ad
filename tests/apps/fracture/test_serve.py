"""Tests of the local page's server: its answers, its refusals, and that it stores nothing."""

import asyncio
import base64
import io
import os
import re
import socket
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paths import ROOT

pytest.importorskip("fastapi")
pytest.importorskip("starlette")
pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
Image = pytest.importorskip("PIL.Image")
# ruff: noqa: E402 (optional packages are checked first)
from starlette.testclient import TestClient
from support.classifier import CLASSES, classifier

from se_fused.apps.fracture.deploy.predictor import Predictor
from se_fused.apps.fracture.deploy.serve import app as serving
from se_fused.apps.fracture.deploy.serve import create_app, upload

HERE = "http://127.0.0.1:8765"
STATIC = Path(serving.__file__).parent / "static"


def png(seed: int = 0, shape: tuple[int, int] = (60, 40)) -> bytes:
    """A 16-bit radiograph of noise, as PNG."""
    values = np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def dicom(values: np.ndarray, **tags: Any) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dataset.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    syntax = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName = "SECRET-ID", "SECRET^NAME"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = values.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(classifier(source="synthetic phantoms", run="/home/somebody/secret"), batch=1)


@pytest.fixture
def client(predictor: Predictor) -> TestClient:
    return TestClient(create_app(predictor, max_bytes=40_000, max_pixels=100_000), base_url=HERE)


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


# ---- answers
def test_a_radiograph_gets_probabilities_a_preview_and_a_heat_map(client: TestClient, predictor: Predictor) -> None:
    content = png()
    answer = client.post("/predict", content=content).json()
    assert answer["notice"] == "Research use only. Not a medical device." and "synthetic" in answer["warning"]
    assert [c["name"] for c in answer["classes"]] == list(CLASSES)
    shares = [c["probability"] for c in answer["classes"]]
    assert sum(shares) == pytest.approx(1) and answer["predicted"] == answer["explained"] == int(np.argmax(shares))
    grey = np.asarray(Image.open(io.BytesIO(content)), np.float64) / 65535
    expected = predictor.probabilities([predictor.squares(grey.astype(np.float32))])[0]
    np.testing.assert_array_equal(shares, expected)
    assert (answer["image"]["height"], answer["image"]["width"]) == (60, 40)
    np.testing.assert_array_equal(opened(answer["image"]["png"]), np.rint(grey * 255))
    heat = opened(answer["heat"]["png"])
    assert heat.shape == (60, 40, 4) and heat[..., 3].max() > 200
    assert set(answer["seconds"]) == {"read", "classify", "explain"} and min(answer["seconds"].values()) > 0


def test_the_heat_map_of_another_class(client: TestClient) -> None:
    answers = [client.post(f"/predict?explain={k}", content=png()).json() for k in range(3)]
    assert [a["explained"] for a in answers] == [0, 1, 2] and len({a["predicted"] for a in answers}) == 1
    assert len({a["heat"]["png"] for a in answers}) > 1
    for wrong in ("3", "-1", "x"):
        assert client.post(f"/predict?explain={wrong}", content=png()).status_code == 422


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "BMP"])
def test_other_formats(kind: str, client: TestClient) -> None:
    out = io.BytesIO()
    Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (60, 1))).save(out, kind)
    answer = client.post("/predict", content=out.getvalue())
    assert answer.status_code == 200 and answer.json()["image"]["height"] == 60


def test_dicom(client: TestClient, capfd: pytest.CaptureFixture[str]) -> None:
    values = np.tile(np.linspace(0, 4095, 40).astype(np.uint16), (60, 1))
    answer = client.post("/predict", content=dicom(values, WindowCenter=2048, WindowWidth=4096))
    assert answer.status_code == 200
    shown = opened(answer.json()["image"]["png"]).astype(int)
    assert shown[0, 0] <= 1 and shown[0, -1] >= 254 and (np.diff(shown[0]) >= 0).all()
    assert "SECRET" not in answer.text + "".join(capfd.readouterr())


def test_about_says_which_network_and_nothing_of_the_machine(client: TestClient) -> None:
    about = client.get("/about").json()
    assert about["model"] == "seresnet18" and about["classes"] == list(CLASSES)
    assert about["training"] == {"source": "synthetic phantoms"} and about["max_bytes"] == 40_000
    assert "secret" not in str(about)
    assert client.get("/healthz").json() == {"status": "ok"}
    for address in ("/docs", "/redoc", "/openapi.json", "/nothing", "/../app.py", "/%2e%2e/app.py"):
        assert client.get(address).status_code == 404


def test_the_page_holds_the_notice_without_its_script_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert re.search(r"Research use only\.</strong> Not a medical device\.", page.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(set(loaded)) == ["app.js", "icon.svg", "style.css"]
    for name in loaded:
        assert client.get(f"/{name}").status_code == 200
    for file in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\"' ]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page.text), "nothing inline: the policy forbids it"


def test_the_page_s_files_are_in_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"apps/fracture/deploy/serve/static/*"' in text
    assert {path.name for path in STATIC.iterdir()} == {"app.js", "icon.svg", "index.html", "style.css"}


# ---- refusals
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"some text", "not a supported image file; send a PNG, JPEG, TIFF, BMP or DICOM file"),
        (b"GIF89a" + bytes(50), "not a supported image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a supported image file"),
        (png()[:300], "truncated"),
        (bytes(128) + b"DICM" + bytes(50), "contains no image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "cannot be read"),
    ],
)
def test_what_is_unreadable_is_refused_with_the_reason(content: bytes, said: str, client: TestClient) -> None:
    answer = client.post("/predict", content=content)
    assert answer.status_code == 422 and said in answer.json()["detail"], answer.text
    assert "/" not in answer.json()["detail"].replace("BMP or", ""), "no path of this machine"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_too_many_pixels_are_refused_before_they_are_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "decode", lambda path: pytest.fail("decoded"))
    # A PNG of 30000 x 30000 zeros in a few bytes: the header and the start of its data.
    header = b"IHDR" + (30000).to_bytes(4) + (30000).to_bytes(4) + bytes([8, 0, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [len(c[4:]).to_bytes(4) + c + zlib.crc32(c).to_bytes(4) for c in (header, data, b"IEND")]
    bomb = client.post("/predict", content=b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert bomb.status_code == 422
    # for much larger images, Pillow's own limit applies first
    assert re.search(r"900 million pixels|decompression bomb", bomb.json()["detail"])
    large = client.post("/predict", content=png(shape=(1, 100_001))[:5000])
    assert "million pixels; the limit is 0.1 million" in large.json()["detail"]
    frames = client.post("/predict", content=dicom(np.zeros((10, 10)), NumberOfFrames=2000))
    assert "million pixels" in frames.json()["detail"]


def test_deflated_dicom_is_refused_before_it_is_inflated(client: TestClient) -> None:
    deflated = dicom(np.zeros((10, 10)), syntax="1.2.840.10008.1.2.1.99")
    answer = client.post("/predict", content=deflated)
    assert answer.status_code == 422 and "deflated DICOM is not supported" in answer.json()["detail"]


def test_too_large_is_refused_by_what_is_announced_and_while_it_arrives(client: TestClient) -> None:
    announced = client.post("/predict", content=bytes(40_001))
    assert announced.status_code == 413 and "larger than the limit of 0.04 MB" in announced.json()["detail"]
    sent = []

    def parts():
        for _ in range(100):
            sent.append(1)
            yield bytes(10_000)

    assert client.post("/predict", content=parts()).status_code == 413
    assert client.post("/predict", content=bytes(40_000)).status_code == 422, "the limit itself is not above the limit"


class _Stream:
    """A request that counts the parts that were read."""

    def __init__(self, parts: int, pause: float = 0.0) -> None:
        self.headers: dict[str, str] = {}
        self.parts, self.taken, self.pause = parts, 0, pause

    async def stream(self):
        for _ in range(self.parts):
            await asyncio.sleep(self.pause)
            self.taken += 1
            yield bytes(1000)


def test_who_asks_before_sending_too_much_is_told_at_once() -> None:
    for expect, taken in (("100-Continue", 0), ("", 11)):
        request = _Stream(100)
        request.headers = {"content-length": "100000", "expect": expect}
        with pytest.raises(upload.HTTPException) as error:
            asyncio.run(upload.read_body(request, 5000, 10))  # type: ignore[arg-type]
        assert error.value.status_code == 413 and request.taken == taken


@pytest.fixture
def address(predictor: Predictor) -> Iterator[str]:
    """The address of the application on a real socket, with a limit of 60 kB."""
    app = create_app(predictor, max_bytes=60_000)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("size", [60_001, 119_999])
def test_the_refusal_arrives_at_a_client_that_sends_before_it_listens(size: int, address: str) -> None:
    """A client that sends everything before it reads, as browsers do, receives the refusal.

    If the connection were closed too early it would be reset, and the page could not show the reason.
    """
    host, port = address.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {size}\r\n\r\n"
            connection.sendall(head.encode())
            sent = bytes(size)
            for start in range(0, size, 4096):
                connection.sendall(sent[start : start + 4096])
                time.sleep(0.0005)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than the limit of 0.06 MB" in answer


def test_slots_of_failed_uploads_are_free_again(predictor: Predictor) -> None:
    client = TestClient(create_app(predictor, max_bytes=40_000, max_waiting=1), base_url=HERE)
    for content, status in ((bytes(40_001), 413), (b"text", 422), (png(), 200), (png(), 200)):
        assert client.post("/predict", content=content).status_code == status


def test_an_upload_is_cut_off_at_the_limit_and_not_read_to_its_end() -> None:
    request = _Stream(100)
    with pytest.raises(upload.HTTPException) as error:
        asyncio.run(upload.read_body(request, 5000, 10))  # type: ignore[arg-type]
    assert error.value.status_code == 413 and request.taken == 11, "as much again as the limit is read and discarded"
    with pytest.raises(upload.HTTPException) as error:
        asyncio.run(upload.read_body(_Stream(100, 0.02), 500_000, 0.1))  # type: ignore[arg-type]
    assert error.value.status_code == 408
    assert len(asyncio.run(upload.read_body(_Stream(5), 5000, 10))) == 5000  # type: ignore[arg-type]


def test_an_upload_that_breaks_off_is_no_error_of_the_server() -> None:
    class Broken(_Stream):
        async def stream(self):
            yield b"x"
            raise upload.ClientDisconnect

    with pytest.raises(upload.HTTPException) as error:
        asyncio.run(upload.read_body(Broken(1), 5000, 10))  # type: ignore[arg-type]
    assert error.value.status_code == 400


def test_a_failure_is_guarded_and_tells_nothing_of_itself(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("/a/secret/path")

    monkeypatch.setattr(serving, "_answer", broken)
    client = TestClient(create_app(predictor), base_url=HERE, raise_server_exceptions=False)
    answer = client.post("/predict", content=png())
    assert answer.status_code == 500 and "secret" not in answer.text and "detail" in answer.json()
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": HERE, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),
        ({"Host": "localhost:8765", "Origin": "http://localhost:8765"}, 200),
        ({"Host": "127.0.0.1.evil.example"}, 400),
    ],
)
def test_only_the_page_itself_may_send(headers: dict[str, str], status: int, client: TestClient) -> None:
    answer = client.post("/predict", content=png(), headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-frame-options"] == "DENY"


def test_names_that_are_allowed(predictor: Predictor) -> None:
    app = create_app(predictor, hosts=("radiology-7",))
    for host, status in (("radiology-7:80", 200), ("[::1]:8765", 200), ("localhost", 200), ("radiology-8", 400)):
        assert TestClient(app, base_url=HERE).get("/healthz", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("address", ["/", "/about", "/app.js", "/nothing", "/predict"])
def test_every_answer_is_guarded(address: str, client: TestClient) -> None:
    headers = client.get(address).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"https?:|\*|unsafe|data:|blob:", policy)
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


# ---- nothing is stored
@pytest.mark.parametrize("in_memory", [True, False])
def test_no_file_is_left_and_only_this_user_could_read_it(
    in_memory: bool, client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def spy(path: Path) -> np.ndarray:
        seen.append((path, path.read_bytes(), stat.S_IMODE(os.stat(path).st_mode), os.stat(path).st_nlink))
        raise RuntimeError("anything") if len(seen) == 2 else ValueError("unreadable")

    if in_memory and not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memfd_create")
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(upload, "decode", spy)
    monkeypatch.setattr(upload.tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        assert client.post("/predict", content=png()).status_code == 422
    for path, content, mode, links in seen:
        assert content == png() and not path.exists()
        assert links == 0 if in_memory else mode == 0o600
    assert list(tmp_path.iterdir()) == []


def test_one_computes_and_the_others_wait(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five requests at once, four are computed one after another, and the fifth is refused; max_waiting is 4."""
    inside, most, gate = [0], [0], threading.Lock()
    go, full = threading.Event(), threading.Barrier(5)
    answer = serving._answer

    def slow(*arguments: Any) -> dict[str, Any]:
        with gate:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        go.wait(5)
        result = answer(*arguments)
        with gate:
            inside[0] -= 1
        return result

    monkeypatch.setattr(serving, "_answer", slow)
    statuses: list[int] = []
    with TestClient(create_app(predictor, max_waiting=4), base_url=HERE) as client:

        def send() -> None:
            full.wait(20)
            statuses.append(client.post("/predict", content=png()).status_code)
            go.set()  # the refusal comes first, because the other requests wait

        senders = [threading.Thread(target=send) for _ in range(5)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
    assert sorted(statuses) == [200, 200, 200, 200, 503] and most[0] == 1


def test_counts_alone_are_kept(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    client.post("/predict", content=png())
    client.post("/predict", content=b"text")
    assert client.app.state.counts == {"predicted": 1, "unreadable": 1}  # type: ignore[attr-defined]
