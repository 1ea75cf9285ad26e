"""Data folders: `data.jsonl`, a sample a line, with pictures and videos beside it; every line is checked first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linmu.errors import InputError, MissingComponentError
from linmu.files.atomic import atomic_folder
from linmu.files.regular import regular_file
from linmu.formats.data_line import DATA_FILE, LineError, Sample, decoded, file_inside, parse, shortened
from linmu.formats.picture_file import opened_picture
from linmu.formats.video_file import opened_video

HASHED_WHOLE = 2**20  # bytes; of a larger file the two ends are hashed
HASHED_ENDS = 2**16
VIDEO_CODECS = {".mov": ("png", "rgb24"), ".mp4": ("png", "rgb24"), ".mkv": ("ffv1", "bgr0"), ".avi": ("ffv1", "bgr0")}


@dataclass(frozen=True)
class DataFolder:
    """A folder whose every line was found right; make it with `open`."""

    folder: Path
    samples: tuple[Sample, ...]
    answered_by: str = ""  # what identifies answers that are not in `data.jsonl`

    @classmethod
    def open(cls, path: Path | str, need_answers: bool = True) -> DataFolder:
        """Read `data.jsonl` and check every line and every file it names (pictures: whole headers; no pixels).

        With `need_answers`, every line needs a non-empty "answer"; only a line without pictures and video may say
        `"answer": ""`, which makes it plain text. Raises InputError with file and line of the first wrong line and
        the number of further ones.
        """
        folder = Path(path)
        file = folder / DATA_FILE
        content = _lines(folder, file)
        samples = _check_lines(content, folder, need_answers)
        if not samples:
            raise InputError(f"no samples in {file}", expected="a JSON object a line")
        return cls(folder, tuple(samples))

    def __len__(self) -> int:
        """Samples."""
        return len(self.samples)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of `data.jsonl` and of the names, sizes and contents of all files it names.

        Of a file of more than a mebibyte only the first and last 64 KiB are read. `answered_by` counts where it is set.
        """
        content = (self.folder / DATA_FILE).read_bytes()
        digest = hashlib.sha256(hashlib.sha256(content).digest())
        files = {file for sample in self.samples for file in (*sample.images, sample.video) if file is not None}
        for name, file in sorted((file.relative_to(self.folder).as_posix(), file) for file in files):
            entry = json.dumps([name, file.stat().st_size, _content_hash(file)])
            digest.update(entry.encode() + b"\n")
        digest.update(self.answered_by.encode())
        return digest.hexdigest()


def _lines(folder: Path, file: Path) -> bytes:
    """What `data.jsonl` holds; InputError unless it is a regular file that lies in the folder."""
    try:
        if not folder.is_dir():
            raise InputError("not a data folder", got=folder, expected=f"a folder with {DATA_FILE}")
        if not file.exists() and not file.is_symlink():
            raise InputError("not a data folder", got=f"no {DATA_FILE} in {folder}")
        if not regular_file(file, "the data").resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{file} is a link that leaves the folder", fix="put the file itself there")
        size = file.stat().st_size
        with file.open("rb") as stream:
            return stream.read(size)  # what says it is empty may be endless (/proc)
    except (OSError, RuntimeError, ValueError) as error:  # names too long, links in circles, NUL
        raise InputError(f"cannot read {file!s:.300}", got=getattr(error, "strerror", None) or error) from error


def _check_lines(content: bytes, folder: Path, need_answers: bool) -> list[Sample]:
    """All samples; InputError for the first wrong line with the number of further ones."""
    checked: dict[Path, LineError | None] = {}
    root = folder.resolve()
    lines_of: dict[str, int] = {}
    samples: list[Sample] = []
    wrong: list[tuple[int, LineError]] = []
    for line, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            sample = parse(decoded(raw), line, folder, need_answers)
            if sample.id in lines_of:
                raise LineError(f'"id" {sample.id!r} is taken', got=f"the same in line {lines_of[sample.id]}")
            lines_of[sample.id] = line
            for file in sample.images:
                _check_file(file, root, checked, _check_image)
            if sample.video is not None:
                _check_file(sample.video, root, checked, _check_video)
            samples.append(sample)
        except LineError as error:
            wrong.append((line, error))
    if wrong:
        line, first = wrong[0]
        raise first.named(folder, line, len(wrong) - 1) from first
    return samples


def _check_file(
    file: Path, root: Path, checked: dict[Path, LineError | None], check: Callable[[Path], LineError | None]
) -> None:
    """Raise what is wrong with a file; each is looked at once."""
    if file not in checked:
        try:
            real = file.resolve()
            if not real.is_relative_to(root):
                checked[file] = LineError("a link leads out of the folder", got=f"{file} -> {real}")
            elif not file.is_file():
                got = "a folder" if file.is_dir() else "none"
                checked[file] = LineError(f"no file {file}", got=got, expected="a file beside data.jsonl")
            else:
                checked[file] = check(file)
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, a ring of links
            reason = getattr(error, "strerror", None) or str(error)[:120]
            checked[file] = LineError(f"cannot look at {shortened(str(file))}", got=reason)
    if (problem := checked[file]) is not None:
        raise problem


def _check_image(file: Path) -> LineError | None:
    try:
        with opened_picture(file, "the picture") as image:
            image.verify()
    except InputError as error:
        return LineError(error.what, got=error.got, expected=error.expected, fix=error.fix)
    return None


def _check_video(file: Path) -> LineError | None:
    """Look for a video stream where PyAV is installed, else for content."""
    try:
        with opened_video(file):
            return None
    except MissingComponentError:
        return None if file.stat().st_size else LineError(f"the video {file} is empty", got="0 bytes")
    except InputError as error:
        return LineError(error.what, got=error.got, expected=error.expected, fix=error.fix)


def _content_hash(file: Path) -> str:
    with file.open("rb") as stream:
        size = file.stat().st_size
        if size <= HASHED_WHOLE:
            return hashlib.sha256(stream.read()).hexdigest()
        digest = hashlib.sha256(stream.read(HASHED_ENDS))
        stream.seek(-HASHED_ENDS, 2)
        digest.update(stream.read())
        return digest.hexdigest()


def write_data_folder(
    folder: Path | str, samples: Iterable[tuple[dict[str, Any], dict[str, Any]]], video_fps: float = 1.0
) -> int:
    """Write a new data folder in one step and check it; returns the number of samples.

    samples: (line, media): `line` as it will stand in `data.jsonl`; `media` maps relative file names to a PIL image
    (written as the name's ending says) or to frames, uint8 [height, width, 3] each (.mov, .mp4: PNG frames; .mkv,
    .avi: FFV1; both without loss, `video_fps` frames a second, so that a model that takes one frame a second or more
    sees every frame). The same input gives the same bytes. Raises InputError when the folder exists, a line is wrong
    or a file is written twice; MissingComponentError for videos without PyAV.
    """
    with atomic_folder(Path(folder)) as temporary:
        with (temporary / DATA_FILE).open("w", encoding="utf-8", newline="\n") as lines:
            for line, media in samples:
                for name, content in media.items():
                    _write_media(temporary, name, content, video_fps)
                lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        return len(DataFolder.open(temporary, need_answers=False))


def _write_media(folder: Path, name: str, content: Any, fps: float) -> None:
    try:
        file = file_inside(name, "media", folder)
    except LineError as error:
        raise InputError(error.what, got=error.got, expected=error.expected) from error
    if file.exists():
        raise InputError("a media file is written twice", got=name, fix="name it in the first sample that has it only")
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        content.save(file)
    else:
        write_video(file, content, fps)


def write_video(file: Path, frames: Sequence[np.ndarray], fps: float = 1.0) -> None:
    """Write uint8 RGB frames [height, width, 3] of one size without loss; .mov, .mp4: PNG; .mkv, .avi: FFV1.

    Raises InputError on other endings or frames, MissingComponentError without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise MissingComponentError("PyAV (av)", needed_for="writing video files", extra="video") from error
    if file.suffix not in VIDEO_CODECS:
        raise InputError("ending of a video's name", got=file.name, expected="one of " + ", ".join(VIDEO_CODECS))
    frames = [np.ascontiguousarray(frame) for frame in frames]
    shapes = {(frame.dtype.name, *frame.shape) for frame in frames}
    if len(shapes) != 1 or frames[0].dtype != np.uint8 or frames[0].ndim != 3 or frames[0].shape[2] != 3:
        raise InputError("frames of a video", got=sorted(shapes), expected="uint8 [height, width, 3] of one size")
    codec, layout = VIDEO_CODECS[file.suffix]
    # bitexact: the file holds no time of writing and no random identity
    with av.open(str(file), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = layout
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
