"""Bytes that an ExecuTorch file would hold twice: weights of the delegate that a portable kernel reads as well.

A tied table of embeddings is the head's matrix for XNNPACK (named data) and a constant tensor for the lookup. A segment
of a file is no more than an offset and a size, so the named data's may lie within the constants'.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

LEAST_BYTES = 4096  # of what is shared: less than a page is not worth a look


def share_segments(path: Path) -> int:
    """Rewrite the ExecuTorch file `path` so that named data equal to a constant lie within the constants.

    Returns the bytes saved (0: nothing is equal, the file is untouched). Segments stay sorted by offset and aligned.
    """
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    from executorch.exir._serialize._program import _get_extended_header

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header = _get_extended_header(mapped[:64])
        if header is None:
            return 0
        program = _flatbuffer_to_program(mapped[: header.program_size])
        with memoryview(mapped) as whole, whole[header.segment_base_offset :] as data:
            shared = _equal_constants(program, data)
            if not shared:
                return 0
            short = path.with_name(path.name + ".tmp")
            with short.open("wb") as out:
                _write(out, program, data, shared)
    saved = path.stat().st_size - short.stat().st_size
    short.replace(path)
    return saved


def _equal_constants(program: Any, data: memoryview) -> dict[int, int]:
    """{index of a named segment: offset of the same bytes within the constants}."""
    shared = dict[int, int]()
    constants = program.segments[program.constant_segment.segment_index]
    with data[constants.offset : constants.offset + constants.size] as tensors:
        for index in {named.segment_index for named in program.named_data or ()}:
            segment = program.segments[index]
            if segment.size < LEAST_BYTES:
                continue
            with data[segment.offset : segment.offset + segment.size] as content:
                for offset in program.constant_segment.offsets:
                    if tensors[offset : offset + segment.size] == content:
                        shared[index] = offset
                        break
    return shared


def _write(out: Any, program: Any, data: memoryview, shared: dict[int, int]) -> None:
    """The file again: segments of `shared` lie at their offsets within the constants, the others one behind another."""
    from executorch.exir._serialize import _program as pte
    from executorch.exir._serialize._flatbuffer_program import _program_to_flatbuffer
    from executorch.exir.capture._config import ExecutorchBackendConfig
    from executorch.exir.schema import DataSegment

    alignment, end = ExecutorchBackendConfig().segment_alignment, 0
    old, places = program.segments, dict[int, int]()
    for index in (index for index in range(len(old)) if index not in shared):
        places[index] = pte.aligned_size(end, alignment)
        end = places[index] + old[index].size
    unshared = list(places)
    constants = places[program.constant_segment.segment_index]
    places |= {index: constants + offset for index, offset in shared.items()}
    order = sorted(places, key=lambda index: (places[index], index))
    program.segments = [DataSegment(offset=places[index], size=old[index].size) for index in order]
    _renumber(program, {before: now for now, before in enumerate(order)})

    flat = _program_to_flatbuffer(program, constant_tensor_alignment=pte.ALIGNMENT)
    room = pte.aligned_size(pte._ExtendedHeader.EXPECTED_LENGTH, flat.max_alignment)
    base = pte.aligned_size(room + len(flat.data), alignment)
    header = pte._ExtendedHeader(room + len(flat.data), segment_base_offset=base, segment_data_size=end)
    out.write(pte._insert_flatbuffer_header(flat.data, "ET..", pte.pad_to(header.to_bytes(), room)))
    for index in unshared:
        out.write(bytes(base + places[index] - out.tell()))
        with data[old[index].offset : old[index].offset + old[index].size] as bytes_of_it:
            out.write(bytes_of_it)


def _renumber(program: Any, now: dict[int, int]) -> None:
    """Let everything that names a segment by its index name it by its present one."""
    from executorch.exir.schema import DataLocation

    for user in (program.constant_segment, *(program.mutable_data_segments or ()), *program.named_data):
        user.segment_index = now[user.segment_index]
    for plan in program.execution_plan:
        for delegate in plan.delegates:
            if delegate.processed.location == DataLocation.SEGMENT:
                delegate.processed.index = now[delegate.processed.index]
