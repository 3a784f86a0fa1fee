"""Address of a server in production."""

from __future__ import annotations

from dataclasses import dataclass

PORT = 8000
LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Endpoint:
    """Address of the server.

    Attributes:
        host: Address; None: the format's own, which is this machine only where it can be.
        port: TCP port.
    """

    host: str | None = None
    port: int = PORT
