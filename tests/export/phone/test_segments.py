"""A file in which named data lie within the constants: the same results, and the same parts to ExecuTorch's reader."""

from __future__ import annotations

import pytest

pytest.importorskip("executorch")

import torch  # noqa: E402
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program  # noqa: E402
from executorch.exir._serialize._program import _get_extended_header, deserialize_pte_binary  # noqa: E402
from executorch.runtime import Runtime, Verification  # noqa: E402
from torch import nn  # noqa: E402

from linmu.export.phone.lowering import lower  # noqa: E402
from linmu.export.phone.methods import Method  # noqa: E402
from linmu.export.phone.segments import LEAST_BYTES, share_segments  # noqa: E402
from linmu.runtimes.et_runner import open_program  # noqa: E402
from linmu.specs import GraphSpec, TensorSpec  # noqa: E402

ROWS, SIZE = (71, 131), 24  # of two tables of float32


class Tied(nn.Module):
    """ids [S] -> rows of two tables (portable lookups), multiplied by the tables and a third matrix (XNNPACK)."""

    def __init__(self, heads: tuple[str, ...] = ("large", "small", "matrix")):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        small, large = (torch.randn(rows, SIZE, generator=generator) for rows in ROWS)
        self.register_buffer("small", small)
        self.register_buffer("large", large)
        self.register_buffer("matrix", torch.randn(97, SIZE, generator=generator))
        self.heads = heads

    def forward(self, ids):
        x = self.small[ids] + self.large[ids]
        return x, *(nn.functional.linear(x, getattr(self, head)) for head in self.heads)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(file as ExecuTorch writes it, the same with shared segments, bytes saved)."""
    folder = tmp_path_factory.mktemp("files")
    plain, short = folder / "plain.pte", folder / "short.pte"
    plain.write_bytes(_lowered(Tied()))
    short.write_bytes(plain.read_bytes())
    return plain, short, share_segments(short)


def _lowered(module: Tied) -> bytes:
    outputs = tuple(TensorSpec(name, "float32", ("tokens", 1)) for name in ("rows", *module.heads))
    spec = GraphSpec("", (TensorSpec("ids", "int64", ("tokens",)),), outputs)
    program, _ = lower({"forward": Method(module, spec)}, {"forward": {"tokens": 9}})
    return program.buffer


def _layout(path):
    data = path.read_bytes()
    header = _get_extended_header(data[:64])
    return header, _flatbuffer_to_program(data[: header.program_size]), len(data)


def test_every_table_is_there_once(files):
    plain, short, saved = files
    assert saved == plain.stat().st_size - short.stat().st_size
    tables = [4 * rows * SIZE for rows in ROWS]
    assert min(tables) > LEAST_BYTES and abs(saved - sum(tables)) < 1024  # but for what aligns segments
    assert [path.name for path in sorted(short.parent.iterdir())] == ["plain.pte", "short.pte"]
    held = short.read_bytes()
    for table in (Tied().small, Tied().large):
        assert held.count(table.numpy().tobytes()) == 1 and plain.read_bytes().count(table.numpy().tobytes()) == 2


def test_results_are_the_same_to_the_bit(files):
    methods = [open_program(path).load_method("forward") for path in files[:2]]
    for ids in ([3, 70, 11], [0], list(range(9))):
        before, after = (method.execute([torch.tensor(ids)]) for method in methods)
        assert len(after) == 4
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
        assert torch.allclose(after[1], Tied()(torch.tensor(ids))[1], atol=1e-4)


def test_its_own_verification_accepts_it(files):
    for path in files[:2]:
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        assert program.load_method("forward").metadata.num_inputs() == 1


def test_executorchs_reader_finds_the_same_parts(files):
    before, after = (deserialize_pte_binary(path.read_bytes()) for path in files[:2])
    assert before.program.execution_plan == after.program.execution_plan
    assert before.program.backend_delegate_data == after.program.backend_delegate_data
    assert [x.storage for x in before.program.constant_buffer] == [x.storage for x in after.program.constant_buffer]

    def named(file):
        return {key: file.named_data.buffers[entry.buffer_index] for key, entry in file.named_data.pte_data.items()}

    assert named(before) == named(after) and len(named(after)) == 3


def test_segments_are_sorted_aligned_and_within_the_file(files):
    header, program, size = _layout(files[1])
    offsets = [segment.offset for segment in program.segments]
    constants = program.segments[program.constant_segment.segment_index]
    own = [s for s in program.segments if s is constants or not constants.offset <= s.offset < constants.size]
    assert offsets == sorted(offsets) and len(program.segments) - len(own) == 2
    assert all(segment.offset % 128 == 0 for segment in own)
    assert all(earlier.offset + earlier.size <= later.offset for earlier, later in zip(own, own[1:], strict=False))
    assert header.segment_base_offset % 128 == 0 and header.segment_base_offset >= header.program_size
    assert header.segment_data_size == max(s.offset + s.size for s in own) == size - header.segment_base_offset


@pytest.mark.parametrize("heads", (("matrix",), ()), ids=("nothing equal", "nothing named"))
def test_a_file_without_equal_data_is_left_alone(heads, tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(data := _lowered(Tied(heads)))
    assert share_segments(path) == 0 and path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_sharing_twice_changes_nothing(files):
    before = files[1].read_bytes()
    assert share_segments(files[1]) == 0 and files[1].read_bytes() == before
