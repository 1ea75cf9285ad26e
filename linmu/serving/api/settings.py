"""How much a server takes, and of whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class ApiLimits:
    """What one request, and all of them together, may bring.

    body_bytes: of one body; bodies_bytes: of all bodies that are being read or worked on; json_values: in one body;
    body_s: seconds in which a body has to arrive; head_s: the same of a request's head. media_bytes: of one picture or
    clip, decoded from base64; media: pictures and clips of one request; picture_pixels: of one picture;
    text_characters: of all texts of a prompt; answers: `n`; new_tokens: of an answer (default_new_tokens: where a chat
    does not say). workers: requests whose pictures and texts are made ready at one time. fetch_s: seconds for one URL.
    """

    body_bytes: int = 32 * MIB
    bodies_bytes: int = 256 * MIB
    json_values: int = 2**19
    body_s: float = 30.0
    head_s: float = 10.0
    media_bytes: int = 24 * MIB
    media: int = 64
    picture_pixels: int = 50_000_000
    text_characters: int = 2_000_000
    answers: int = 8
    new_tokens: int = 65_536
    default_new_tokens: int = 1024
    workers: int = 2
    fetch_s: float = 15.0


@dataclass(frozen=True)
class ApiSettings:
    """name: the model's, as clients call it; keys: that open the server, none: everybody may ask.

    local_media: the folder whose files may be named in requests; allow_urls: whether URLs are fetched; loopback_only:
    whether the server is bound to loopback, so that pages of other hosts have no business with it.
    """

    name: str
    keys: tuple[str, ...] = ()
    local_media: Path | None = None
    allow_urls: bool = False
    loopback_only: bool = True
    limits: ApiLimits = field(default_factory=ApiLimits)
