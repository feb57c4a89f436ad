"""Local web page that shows class probabilities and heat maps of uploaded radiographs. Uploads are not stored.

The server is intended for one user and listens on localhost by default. It checks the Host header (against DNS
rebinding) and the origin of each upload. It limits the bytes of an upload while they arrive, the pixels before they are
decoded, and the number of waiting uploads. With its content security policy, the page loads only its own three files.
"""

from .app import LOCAL, create_app
from .server import run

__all__ = ["LOCAL", "create_app", "run"]
