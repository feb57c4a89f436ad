"""Runs the web application on a socket."""

import os
import socket
import sys

import uvicorn

from ....._errors import InputError
from .app import LOCAL, create_app

__all__ = ["run"]


def run(
    model: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    device: str = "cpu",
    max_bytes: int = 25_000_000,
    hosts: tuple[str, ...] = (),
) -> None:
    """Serve the page until interrupted; prints the address at the start and the number of files read at the end.

    Raises:
        InputError: the model cannot be loaded, or the address and port are not available.
    """
    # Other machines address this one by its name or its address; a wildcard address such as 0.0.0.0 is neither.
    own = () if host in LOCAL else (socket.gethostname(), host)
    app = create_app(model, device=device, max_bytes=max_bytes, hosts=(*own, *hosts))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port}: {error.strerror}; choose another --port or --host") from None
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{port}  (stop with Ctrl+C)", file=sys.stderr, flush=True)
        # No access log, for privacy.
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=5,
            timeout_graceful_shutdown=5, limit_concurrency=64,
        )  # fmt: skip
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises it again after its regular shutdown
            pass
    counts = app.state.counts
    print(f"{counts['predicted']} files predicted, {counts['unreadable']} could not be read", file=sys.stderr)
