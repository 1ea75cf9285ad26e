"""A bundle on disk: written with hashes, opened only when every path, size and hash is what the manifest says."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from linmu.errors import BundleError, InputError
from linmu.files.atomic import write_bytes
from linmu.files.regular import inside
from linmu.files.strict_json import read_json
from linmu.formats.manifest import (
    FileEntry,
    Manifest,
    check_graph_weights,
    check_own_hash,
    check_profiles,
    check_state,
    model_hash,
)
from linmu.formats.manifest_facts import check_facts
from linmu.formats.manifest_object import MANIFEST_NAME
from linmu.specs import GraphSpec, TensorSpec

ENGINES = "engines"  # made on the device by `linmu build`: neither hashed nor expected


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of a file the manifest lists; raises BundleError for any other name."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no file {name}", expected="a file its manifest lists")
        return self.folder / name

    @property
    def model_hash(self) -> str:
        """What a state file of this bundle carries (`linmu.formats.manifest.model_hash`)."""
        return model_hash(self.manifest)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of `folder`, write manifest.json and return the manifest with its `files` filled in.

    Raises BundleError when a link leaves the folder or the manifest contradicts itself or the files.
    """
    folder = Path(folder)
    entries = {}
    for name in sorted(_files_of(folder)):
        path = _inside(folder, name)
        entries[name] = FileEntry(file_sha256(path), path.stat().st_size)
    complete = replace(manifest, files=entries)
    check_state(complete)
    check_profiles(complete)
    check_graph_weights(complete)
    _check_members(complete)
    check_facts(complete)
    Manifest.from_json(json.loads(json.dumps(complete.to_json())))  # what we write, we can read
    text = json.dumps(complete.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(folder / MANIFEST_NAME, text.encode())
    return complete


def open_bundle(folder: Path, verify_hashes: bool = True) -> Bundle:
    """Open and check a bundle; raises BundleError naming the file of the first problem found.

    Checked: manifest format, version, facts and own hash, every path, missing and surplus files, sizes and
    (`verify_hashes`) sha256. No file is opened that is no regular file inside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}", expected="a folder made by `linmu export`")
    path = folder / MANIFEST_NAME
    if path.is_symlink():
        raise BundleError(f"{path} is a link", expected="the file itself")
    if not path.exists():
        raise BundleError(f"no {path}", expected="a folder made by `linmu export`")
    content = read_json(path, "the manifest", BundleError)
    manifest = Manifest.from_json(content)
    for name in manifest.files:
        if problem := path_problem(name):
            raise BundleError(f"{MANIFEST_NAME}: file name {name!r}", got=problem, expected="a path inside the bundle")
    _check_members(manifest)
    present = set(_files_of(folder))
    if surplus := sorted(present - set(manifest.files)):
        raise BundleError(f"{folder / surplus[0]}: the manifest does not list this file", fix="remove it")
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry, verify_hashes)
    check_own_hash(content)  # last: what is wrong with a part is said of that part
    check_facts(manifest)
    return Bundle(folder.absolute(), manifest)  # files are read later, wherever the process is then


def check_graph_io(spec: GraphSpec, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Compare a graph's own inputs and outputs with the manifest's; raises BundleError naming the first difference.

    Names, dtypes, ranks and static dimensions must agree. An input that the manifest calls dynamic must be dynamic.
    """
    for side, wanted, actual_specs in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        actual = {item.name: item for item in actual_specs}
        expected = {item.name: item for item in wanted}
        if surplus := sorted(set(actual) - set(expected)):
            raise BundleError(f"{spec.file}: {side} {surplus[0]!r} is not in the manifest", fix="export again")
        for name, item in expected.items():
            if name not in actual:
                raise BundleError(f"{spec.file}: {side} {name!r} is missing in the graph", fix="export again")
            if not _agree(item, actual[name], strict=side == "input"):
                raise BundleError(
                    f"{spec.file}: {side} {name!r}", got=_show(actual[name]), expected=_show(item), fix="export again"
                )


def path_problem(name: str) -> str | None:
    """Why a manifest may not list a file of this name, or None: it must stay inside the folder on every system."""
    if not name or any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "an empty name or control characters"
    if name.startswith(("/", "~")) or "\\" in name or ":" in name:
        return "an absolute path, a drive or a backslash"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "an empty, '.' or '..' part"
    if name == MANIFEST_NAME or name.split("/")[0] == ENGINES:
        return "a file that is never listed"
    return None


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces; raises BundleError when it cannot be read."""
    digest = sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise BundleError(f"cannot read {path}", got=error.strerror) from error
    return digest.hexdigest()


def _files_of(folder: Path) -> list[str]:
    """Relative names of all files but manifest.json and engines/; links to folders are refused."""
    names = []
    for root, folders, files in os.walk(folder):
        relative = PurePosixPath(Path(root).relative_to(folder).as_posix())
        for name in folders:
            if Path(root, name).is_symlink():
                raise BundleError(f"{Path(root, name)} is a link to a folder", expected="a bundle without such links")
        if relative == PurePosixPath("."):
            folders[:] = [name for name in folders if name != ENGINES]
        names += [str(relative / name) for name in files]
    return [name for name in names if name != MANIFEST_NAME]


def _check_members(manifest: Manifest) -> None:
    named = [graph.file for graph in manifest.graphs.values()] + list(manifest.golden)
    for name in named:
        if name not in manifest.files:
            raise BundleError(f"{MANIFEST_NAME}: {name} is named by a graph or golden entry but not listed in files")


def _inside(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name, "the file")
    except InputError as error:
        raise BundleError(
            f"{folder / name} is a link that leaves the bundle", fix="put the file itself there"
        ) from error


def _check_file(folder: Path, name: str, entry: FileEntry, verify_hashes: bool) -> None:
    path = _inside(folder, name)
    if not path.exists():
        raise BundleError(f"{path} is missing", expected="a file the manifest lists", fix="copy the bundle again")
    if not path.is_file():
        raise BundleError(f"{path} is no regular file", got="a folder, FIFO, socket or device", fix="copy it again")
    if (size := path.stat().st_size) != entry.bytes:
        raise BundleError(f"{path}", got=f"{size} bytes", expected=f"{entry.bytes} bytes", fix="copy the bundle again")
    if verify_hashes and (digest := file_sha256(path)) != entry.sha256:
        raise BundleError(f"{path} was changed", got=f"sha256 {digest}", expected=entry.sha256, fix="copy it again")


def _agree(expected: TensorSpec, actual: TensorSpec, strict: bool) -> bool:
    if expected.dtype != actual.dtype or len(expected.shape) != len(actual.shape):
        return False
    for wanted, actual_dim in zip(expected.shape, actual.shape, strict=True):
        if isinstance(actual_dim, int) and (wanted != actual_dim if isinstance(wanted, int) else strict):
            return False
    return True


def _show(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
