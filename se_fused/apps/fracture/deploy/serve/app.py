"""The application: four addresses and the page's files."""

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
_UPLOAD_SECONDS = 60.0  # that a file may take to arrive


def _picture(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _answer(predictor: Predictor, body: bytearray, chosen: int | None, max_pixels: int) -> dict[str, Any]:
    """Everything the page shows of one upload. Raises ValueError if it cannot be read."""
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
        "heat": {"png": _picture(png(heat_colours(heat, opaque=1.0)))},  # the page has a slider
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
    """The application, with its network loaded.

    ``POST /predict`` takes a file's bytes as its body (``curl --data-binary @image.png``) and gives JSON: the classes'
    probabilities, the picture and the heat map as PNG in base64, the seconds it took; ``?explain=K`` asks for the heat
    map of class number K. 413: too many bytes; 422: no readable radiograph, with the reason; 408: too slow; 503: too
    many are waiting. ``GET /about`` says which network answers, ``GET /healthz`` that it does.

    Args:
        classifier: a :class:`.Predictor`, a :class:`Classifier`, a run's folder or a ``model.pt``.
        device: where it runs, unless it is a Predictor.
        max_bytes: of an upload.
        max_pixels: of a picture, told from its header.
        max_waiting: uploads at once; one is computed, the others wait.
        hosts: names beside this machine's own under which the page may be asked for.

    Raises:
        InputError: the file cannot be loaded.
    """
    predictor = classifier if isinstance(classifier, Predictor) else Predictor(classifier, device=device, batch=1)
    first = predictor.classifiers[0]
    app = FastAPI(openapi_url=None)  # its pages of documentation would load scripts from elsewhere
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
            raise HTTPException(422, f"explain must be 0 to {len(predictor.classes) - 1}; got {explain}")
        if waiting >= max_waiting:
            raise HTTPException(503, "too many files at once; try again in a moment", {"Retry-After": "2"})
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
    app.add_middleware(Guard)  # the outermost: its headers are on refusals too
    return app
