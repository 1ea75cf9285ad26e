"""What a message's part names, as what `Processor.encode` takes: bounded before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from linmu.errors import InputError
from linmu.formats.picture_file import opened_picture
from linmu.processing.seen import as_seen
from linmu.processing.sources import data_url_bytes
from linmu.serving.api.errors import ApiError, of_linmu, too_large
from linmu.serving.api.fetch import fetch
from linmu.serving.api.local_files import local_bytes, local_path
from linmu.serving.api.requests import ImageUrl, VideoUrl
from linmu.serving.api.settings import ApiSettings
from linmu.serving.api.taken import Scratch

LONGEST_HEAD = 1024  # bytes in front of a data URI's base64
LOW = (512, 512)  # OpenAI's "low" detail


@dataclass(frozen=True)
class MediaReader:
    """Reads the media of one request; clips that are no files yet are written into `scratch`."""

    settings: ApiSettings
    scratch: Scratch

    def image_part(self, image: ImageUrl, param: str) -> dict[str, Any]:
        """A part with an image; raises ApiError that names `param`."""
        try:
            data = self._bytes(image.url, "image")
            return {"type": "image", "image": self._picture(data, image.detail), **_pixels(image)}
        except InputError as error:
            raise of_linmu(error, param) from error
        except ApiError as error:
            error.param = param
            raise

    def video_part(self, video: VideoUrl, param: str) -> dict[str, Any]:
        """A part with a clip; raises ApiError that names `param`."""
        try:
            part: dict[str, Any] = {"type": "video", "video": self._clip(video.url), **_pixels(video)}
        except InputError as error:
            raise of_linmu(error, param) from error
        except ApiError as error:
            error.param = param
            raise
        return part if video.fps is None else {**part, "fps": video.fps}

    def _picture(self, data: bytes, detail: str | None) -> bytes | Image.Image:
        most = self.settings.limits.picture_pixels
        with opened_picture(data, "the picture") as image:
            width, height = image.size
            if width * height > most:
                raise too_large(f"the picture has {width}x{height} pixels, at most {most:,} are taken")
            if detail != "low":
                return data
            small = as_seen(image)
        small.thumbnail(LOW, Image.Resampling.BICUBIC)
        return small

    def _clip(self, url: str) -> Path:
        if url[:5].lower() == "file:" and self.settings.local_media is not None:
            return local_path(url, self.settings.local_media)
        path = self.scratch.new_file()
        path.write_bytes(self._bytes(url, "video"))
        return path

    def _bytes(self, url: str, kind: str) -> bytes:
        limits, scheme = self.settings.limits, url[:8].lower()
        if scheme.startswith("data:"):
            fits = len(url) // 4 * 3 <= limits.media_bytes + LONGEST_HEAD
            data = data_url_bytes(url, kind) if fits else b""
            if not fits or len(data) > limits.media_bytes:
                raise too_large(f"a {kind} has more than {limits.media_bytes:,} bytes")
            return data
        if scheme.startswith("file:"):
            if self.settings.local_media is None:
                raise InputError("local files are not allowed", fix="start the server with --allow-local-media DIR")
            return local_bytes(local_path(url, self.settings.local_media), limits.media_bytes)
        if scheme.startswith(("http://", "https://")):
            if not self.settings.allow_urls:
                raise InputError("URLs are not fetched", fix="send a data URI, or start the server with --allow-urls")
            return fetch(url, limits.media_bytes, limits.fetch_s)
        raise InputError(f"the url of a {kind}", got=repr(url[:40]), expected=f"data:{kind}/...;base64,...")


def _pixels(medium: ImageUrl | VideoUrl) -> dict[str, int]:
    limits = {"min_pixels": medium.min_pixels, "max_pixels": medium.max_pixels}
    return {name: value for name, value in limits.items() if value is not None}
