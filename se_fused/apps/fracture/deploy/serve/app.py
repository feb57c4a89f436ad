"""The web application: its HTTP endpoints and the static files of the page."""

import asyncio
import base64
import os
import time
from collections import Counter
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ....._version import __version__
from ...classifier import Classifier
from .. import RESEARCH_USE_ONLY, warning_of
from ..overlay import heat_colours, heat_on_picture, png, shown
from ..predictor import Predictor
from .guard import Guard
from .upload import read_body, read_picture

__all__ = ["create_app"]

LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
_UPLOAD_SECONDS = 60.0  # maximum duration of an upload


def _picture(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _answer(predictor: Predictor, body: bytearray, chosen: int | None, max_pixels: int) -> dict[str, Any]:
    """JSON response for one upload. Raises ValueError if the upload cannot be read."""
    start = time.perf_counter()
    picture = read_picture(body, max_pixels)
    body.clear()
    preview, squares = shown(picture), predictor.squares(picture)
    decoded = time.perf_counter()
    probabilities = predictor.probabilities([squares])[0]
    predicted = int(probabilities.argmax())
    classified = time.perf_counter()
    explained = predicted if chosen is None else chosen
    heat = heat_on_picture(predictor.heat(squares, explained), (preview.shape[0], preview.shape[1]))
    done = time.perf_counter()
    return {
        "notice": RESEARCH_USE_ONLY,
        "warning": warning_of(predictor.classifiers) or None,
        "predicted": predicted,
        "explained": explained,
        "classes": [
            {"name": name, "probability": float(p)} for name, p in zip(predictor.classes, probabilities, strict=True)
        ],
        "image": {"height": picture.shape[0], "width": picture.shape[1], "png": _picture(png(preview))},
        "heat": {"png": _picture(png(heat_colours(heat, opaque=1.0)))},  # the slider of the page sets the opacity
        "seconds": {"read": decoded - start, "classify": classified - decoded, "explain": done - classified},
    }


def create_app(
    classifier: Predictor | Classifier | str | os.PathLike[str],
    *,
    device: str = "cpu",
    max_bytes: int = 25_000_000,
    max_pixels: int = 50_000_000,
    max_waiting: int = 8,
    hosts: tuple[str, ...] = (),
) -> FastAPI:
    """Create the web application and load its network.

    ``POST /predict`` accepts the bytes of a file as its body (``curl --data-binary @image.png``) and returns JSON: the
    class probabilities, the image and the heat map as base64 PNG, and the time in seconds. ``?explain=K`` requests the
    heat map of class number K. Error codes: 413 too many bytes; 422 not a readable radiograph, with the reason; 408 too
    slow; 503 too many uploads waiting. ``GET /about`` describes the network; ``GET /healthz`` reports the status.

    Args:
        classifier: a :class:`.Predictor`, a :class:`Classifier`, the folder of a run or a ``model.pt``.
        device: device of the network, unless `classifier` is a Predictor.
        max_bytes: maximum bytes of an upload.
        max_pixels: maximum pixels of an image, checked in its header.
        max_waiting: maximum number of simultaneous uploads; one is computed, the others wait.
        hosts: host names accepted in requests, in addition to localhost.

    Raises:
        InputError: the file cannot be loaded.
    """
    predictor = classifier if isinstance(classifier, Predictor) else Predictor(classifier, device=device, batch=1)
    first = predictor.classifiers[0]
    app = FastAPI(openapi_url=None)  # no documentation pages: they would load scripts from other sites
    app.state.counts = Counter()
    one_at_a_time = asyncio.Lock()
    waiting = 0

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/about")
    async def about() -> dict[str, Any]:
        kept = ("seed", "epoch", "parameters", "source")
        return {
            "notice": RESEARCH_USE_ONLY,
            "warning": warning_of(predictor.classifiers) or None,
            "model": first.name,
            "models": len(predictor.classifiers),
            "classes": list(predictor.classes),
            "preprocessing": first.preprocessing.about(),
            "training": {key: first.about[key] for key in kept if key in first.about},
            "max_bytes": max_bytes,
            "max_pixels": max_pixels,
            "version": __version__,
        }

    @app.post("/predict")
    async def predict(request: Request, explain: int | None = Query(None, ge=0)) -> dict[str, Any]:
        nonlocal waiting
        if explain is not None and explain >= len(predictor.classes):
            raise HTTPException(422, f"explain must be from 0 to {len(predictor.classes) - 1}; got {explain}")
        if waiting >= max_waiting:
            raise HTTPException(503, "too many simultaneous uploads; try again in a moment", {"Retry-After": "2"})
        waiting += 1
        try:
            body = await read_body(request, max_bytes, _UPLOAD_SECONDS)
            async with one_at_a_time:
                answer = await run_in_threadpool(_answer, predictor, body, explain, max_pixels)
        except ValueError as error:
            app.state.counts["unreadable"] += 1
            raise HTTPException(422, f"cannot be read: {error}") from None
        finally:
            waiting -= 1
        app.state.counts["predicted"] += 1
        return answer

    app.mount("/", StaticFiles(directory=str(files(__package__) / "static"), html=True))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *hosts], www_redirect=False)
    app.add_middleware(Guard)  # added last, so it is outermost: its headers are also on error responses
    return app
