"""A page on the user's own machine: a radiograph in, class probabilities and a heat map out; nothing is kept.

Local by default, for one person. What guards it: the address it listens on, the Host header (DNS rebinding), the origin
of each upload, limits on bytes while they arrive, on pixels before they are decoded and on uploads that wait, and a
content security policy under which the page loads nothing but its own three files.
"""

from .app import LOCAL, create_app
from .server import run

__all__ = ["LOCAL", "create_app", "run"]
