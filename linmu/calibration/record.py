"""The calibration record: one safetensors file for every target, which names the student and the data it was made of.

Tensors: `<matrix>/<statistic>` (statistics.py) for every matrix product of the decoder (names of linmu.step.form) and
of the vision tower (`vision.<module>`); `states/<state>` the largest |value| by head (recurrent) or channel (conv), and
`states/layers.<i>.log_decay` the lowest by head; `float16_states/<state>` an error curve (error_curve.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from linmu.calibration.error_curve import checked_curve, relative_errors
from linmu.calibration.statistics import InputStatistics
from linmu.errors import InputError
from linmu.files.atomic import atomic_file
from linmu.files.strict_json import parse_json
from linmu.formats.safetensors_file import read_header
from linmu.formats.steady_header import steady_header

FORMAT, FORMAT_VERSION = "linmu-calibration", "4"
DTYPES = {"F32", "F64", "I64", "U64"}  # F64: error curves


@dataclass(frozen=True)
class Origin:
    """What a record was made of: hashes of student and data, samples asked for, tokens after each and after the last.

    data_hash is "random" for made-up data.
    """

    student_hash: str
    data_hash: str
    samples: int
    decode_tokens: int
    long_tokens: int


@dataclass
class CalibrationRecord:
    """Statistics by matrix name, ranges of the states, and how far the pass has come (`done` samples).

    float16_states: what rounding each state would change (error_curve.py, rounded_state.py).
    """

    origin: Origin
    done: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    inputs: dict[str, InputStatistics] = field(default_factory=dict)
    states: dict[str, np.ndarray] = field(default_factory=dict)
    float16_states: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every sample was seen."""
        return self.done == self.origin.samples

    def of(self, matrix: str, channels: int) -> InputStatistics:
        """Statistics of one matrix; raises InputError when the record has none, or of another size."""
        statistics = self.inputs.get(matrix)
        if statistics is None or statistics.channels != channels or not statistics.count:
            got = "nothing" if statistics is None else f"{statistics.count} rows of {statistics.channels} channels"
            raise InputError(
                f"the calibration record on {matrix}",
                got=got,
                expected=f"rows of {channels} channels",
                fix="calibrate this student again, on data that use all of it (pictures too)",
            )
        return statistics

    def summary(self) -> dict[str, object]:
        """Plain JSON values: what it is of, how much it saw, and the largest values."""
        largest = sorted(((float(s.amax.max()), name) for name, s in self.inputs.items()), reverse=True)
        return {
            "origin": asdict(self.origin),
            "tokens": self.tokens,
            "matrices": len(self.inputs),
            "largest_inputs": {name: value for value, name in largest[:5]},
            "largest_states": {
                name: float(value.max())
                for name, value in sorted(self.states.items())
                if not name.endswith("log_decay")
            },
            "float16_states": {name: relative_errors(curve) for name, curve in sorted(self.float16_states.items())},
        }


def write_record(path: Path, record: CalibrationRecord) -> None:
    """Write a record; the file appears whole, and has the same bytes for the same record."""
    tensors = {f"states/{name}": np.ascontiguousarray(value) for name, value in record.states.items()}
    tensors |= {f"float16_states/{name}": np.ascontiguousarray(x) for name, x in record.float16_states.items()}
    for name, statistics in record.inputs.items():
        tensors |= {f"{name}/{kind}": np.ascontiguousarray(x) for kind, x in statistics.tensors().items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "origin": json.dumps(asdict(record.origin)),
        "tokens": json.dumps(record.tokens),
        "done": str(record.done),
    }
    metadata["sha256"] = digest(metadata, tensors)
    with atomic_file(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)
        steady_header(temporary)


def digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal sha256 of everything in a record but itself: it shows damage, not who wrote the file."""
    hashed = {name: value for name, value in metadata.items() if name != "sha256"}
    result = sha256(json.dumps(hashed, sort_keys=True).encode())
    for name in sorted(tensors):
        result.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        result.update(np.ascontiguousarray(tensors[name]).data)
    return result.hexdigest()


def read_record(path: Path) -> CalibrationRecord:
    """Read a record, finished or not; raises InputError for a file that is none, damaged, or of another version."""
    path = Path(path)
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not a calibration record", expected="a file made by `linmu calibrate`")
    if (version := metadata.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"{path} has another version", got=version, expected=FORMAT_VERSION, fix="calibrate again")
    try:
        if unknown := sorted({entry.dtype for entry in header.tensors.values()} - DTYPES):
            raise ValueError(f"values of type {unknown[0]}")
        tensors = load_file(path)
        if metadata.get("sha256") != digest(metadata, tensors):
            raise ValueError("values that were changed after they were written")
        return _parse(metadata, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} is damaged", got=error, fix="calibrate again") from error


def _parse(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> CalibrationRecord:
    origin, counted, done = (parse_json(metadata[name], name) for name in ("origin", "tokens", "done"))
    if set(origin) != {item.name for item in fields(Origin)}:
        raise ValueError(f"unknown origin {sorted(origin)}")
    hashes = [origin.pop(name) for name in ("student_hash", "data_hash")]
    counts = [done, *origin.values(), *counted.values()]
    plausible = all(type(count) is int and 0 <= count < 1 << 62 for count in counts)
    if not plausible or not all(isinstance(text, str) for text in hashes):
        raise ValueError("an origin or counts that are no hashes and counts")
    if set(counted) != {"prefill", "decode"}:
        raise ValueError(f"tokens of {sorted(counted)}")
    grouped: dict[str, dict[str, np.ndarray]] = {}
    states, curves = {}, {}
    for key, value in tensors.items():
        group, _, name = key.rpartition("/")
        if group == "states":
            if value.dtype != np.float32 or value.ndim != 1 or not value.size or not np.isfinite(value).all():
                raise ValueError(f"{key} of {value.dtype}{list(value.shape)}")
            states[name] = np.array(value)
        elif group == "float16_states":
            curves[name] = checked_curve(value)
        else:
            grouped.setdefault(group, {})[name] = value
    inputs = {name: InputStatistics.from_tensors(values) for name, values in sorted(grouped.items())}
    return CalibrationRecord(Origin(*hashes, **origin), done, counted, inputs, states, curves)


def record_of(path: Path, student_hash: str) -> CalibrationRecord:
    """A finished record of this very student, for an export.

    Raises InputError when the record is unfinished or of another student.
    """
    record = read_record(path)
    if not record.complete:
        raise InputError(
            f"{path} is unfinished",
            got=f"{record.done} of {record.origin.samples} samples",
            fix="run `linmu calibrate` to its end",
        )
    if record.origin.student_hash != student_hash:
        raise InputError(
            f"{path} belongs to another student",
            got=f"weights {record.origin.student_hash[:12]}",
            expected=student_hash[:12],
            fix="calibrate this student",
        )
    return record
