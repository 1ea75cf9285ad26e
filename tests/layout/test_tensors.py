from __future__ import annotations

import numpy as np
import pytest

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.layout import (
    LAYOUT_SPECS,
    SCHEDULES,
    SHIFTS,
    cut_points,
    layout_tensors,
    pieces,
    scan_order,
    stack_layouts,
    window_pieces,
)
from tests.layout.prompts import BARE, MIXED, TEXT, layout_of

MMATE = MMateConfig(taps=4, window_frames=2, window_rows=2, window_columns=3)
LAYOUTS = {"mixed": MIXED, "text": TEXT, "bare": BARE}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def test_tensors_match_their_specs(layout):
    tensors = layout_tensors(layout, MMATE)
    assert list(tensors) == [spec.name for spec in LAYOUT_SPECS]
    sizes: dict[str, int] = {"tokens": layout.length}
    for spec in LAYOUT_SPECS:
        array = tensors[spec.name]
        assert array.dtype == spec.dtype and array.ndim == len(spec.shape), spec.name
        for dim, size in zip(spec.shape, array.shape, strict=True):
            assert size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim), spec.name


@pytest.mark.parametrize("scan", ["rms", "raster"])
def test_order_permutes_spans_and_leaves_text(layout, scan):
    tensors = layout_tensors(layout, MMateConfig(scan=scan))
    for schedule in range(SCHEDULES):
        expected = list(range(layout.length))
        for span in layout.spans:
            order = scan_order(span.grid, schedule, scan)
            for place, raster in enumerate(order):
                expected[span.positions[place]] = int(span.positions[raster])
        assert tensors["layout.order"][schedule].tolist() == expected
        undone = tensors["layout.order"][schedule][tensors["layout.inverse"][schedule]]
        assert undone.tolist() == list(range(layout.length))


@pytest.mark.parametrize("taps", [2, 4])
def test_backward_visits_each_span_in_reverse(layout, taps):
    tensors = layout_tensors(layout, MMateConfig(taps=taps))
    for schedule in range(SCHEDULES):
        sequence: list[int] = []
        restarts: list[int] = []
        for span in layout.spans:
            if sequence:
                sequence += [layout.length] * (taps - 1)
            restarts.append(len(sequence))
            scan = tensors["layout.order"][schedule][span.positions].tolist()
            sequence += scan[::-1]
        assert tensors["layout.backward"][schedule].tolist() == sequence
        assert np.flatnonzero(tensors["layout.restart"]).tolist() == restarts
        for token in range(layout.length):
            slot = tensors["layout.backward_slot"][schedule][token]
            assert slot == (sequence.index(token) if tensors["layout.vision"][token] else 0)


def test_vision_marks_the_tokens_of_spans(layout):
    vision = layout_tensors(layout, MMATE)["layout.vision"]
    assert set(np.flatnonzero(vision)) == {int(token) for span in layout.spans for token in span.positions}


@pytest.mark.parametrize("shift", range(SHIFTS))
def test_windows_hold_every_vision_token_once(layout, shift):
    tensors = layout_tensors(layout, MMATE)
    index, segment = tensors["layout.windows"][shift], tensors["layout.window_segment"][shift]
    found = {
        tuple(row[marks == number])
        for row, marks in zip(index, segment, strict=True)
        for number in set(marks.tolist()) - {-1}
    }
    expected = {
        tuple(span.positions[piece])
        for span in layout.spans
        for piece in window_pieces(span.grid, MMATE.window, bool(shift))
    }
    assert found == expected
    assert (segment >= 0).sum() == tensors["layout.vision"].sum()
    slots = tensors["layout.window_slot"][shift]
    for token in range(layout.length):
        if tensors["layout.vision"][token]:
            row, column = divmod(int(slots[token]), index.shape[1])
            assert index[row, column] == token and segment[row, column] >= 0
        else:
            assert slots[token] == 0


def test_a_prompt_without_spans_has_empty_axes():
    tensors = layout_tensors(TEXT, MMATE)
    assert tensors["layout.windows"].shape == (2, 0, 1)
    assert tensors["layout.backward"].shape == (4, 0)


def test_a_piece_is_the_layout_of_its_own_tokens():
    whole = layout_of(3, (1, 4, 5), 2)
    part = layout_of(1, (1, 4, 5), 1)
    cut, alone = layout_tensors(whole, MMATE, 2, 24), layout_tensors(part, MMATE)
    for name, array in alone.items():
        np.testing.assert_array_equal(cut[name], array, err_msg=name)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 23), (0, 32), (5, 5), (0, 99)])
def test_a_piece_that_cuts_a_span_is_refused(start, stop):
    assert MIXED.spans[1].positions[5] < 31 < MIXED.spans[1].positions[6]  # 32 lies in the text between two frames
    with pytest.raises(InputError, match="piece"):
        layout_tensors(MIXED, MMATE, start, stop)


def test_cut_points_are_exactly_the_pieces_that_are_accepted():
    def accepted(stop: int) -> bool:
        try:
            layout_tensors(MIXED, MMATE, 0, stop)
        except InputError:
            return False
        return True

    assert cut_points(MIXED) == [stop for stop in range(1, MIXED.length + 1) if accepted(stop)]
    assert cut_points(MIXED, 24) == [cut for cut in cut_points(MIXED) if cut > 24]


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 23, 25, 1000])
def test_pieces_are_consecutive_and_as_long_as_allowed(layout, limit):
    found = pieces(layout, limit)
    legal = [0, *cut_points(layout)]
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == layout.length
    for start, stop in found:
        assert stop in legal
        fitting = [cut for cut in legal if start < cut <= start + limit]
        assert stop == (fitting[-1] if fitting else min(cut for cut in legal if cut > start))


def test_a_batch_of_one_is_the_prompt_itself(layout):
    alone, batch = layout_tensors(layout, MMATE), stack_layouts([layout], [0], layout.length, MMATE)
    batch["backward"], batch["restart"] = batch["backward"][:, 0], batch["restart"][0]
    assert {f"layout.{name}" for name in batch} == set(alone)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, alone[f"layout.{name}"], err_msg=name)


def gathered(tensors: dict[str, np.ndarray], tokens: np.ndarray, schedule: int) -> dict[str, np.ndarray]:
    """What a block reads for `tokens` when each token carries its own number and the zero row -1."""
    names = np.append(np.arange(len(tensors["vision"])), -1)
    backward = np.append(names[tensors["backward"][schedule].reshape(-1)], -2)  # one more, to read without vision
    slots = tensors["backward_slot"][schedule][tokens]
    vision = tensors["vision"][tokens]
    return {
        "order": names[tensors["order"][schedule]][tokens],
        "inverse": names[tensors["inverse"][schedule]][tokens],
        "before": np.where(vision & (slots > 0), backward[slots - 1], -2),
        "itself": np.where(vision, backward[slots], -2),
        "starts": np.where(vision, np.append(tensors["restart"], False)[slots], False),
        "vision": vision,
    }


def test_left_padding_and_batching_move_every_prompt_as_it_is():
    layouts = [BARE, MIXED, TEXT]
    length = MIXED.length + 2
    offsets = [length - layout.length for layout in layouts]
    batch = stack_layouts(layouts, offsets, length, MMATE)
    zero_row = len(layouts) * length
    assert batch["backward"].shape == (4, 3, layout_tensors(MIXED, MMATE)["layout.backward"].shape[1])
    assert np.all(batch["backward"][:, 2] == zero_row) and not batch["restart"][2].any()
    for number, (layout, offset) in enumerate(zip(layouts, offsets, strict=True)):
        first = number * length + offset
        tokens = np.arange(first, first + layout.length)
        pads = np.arange(number * length, first)
        alone = stack_layouts([layout], [0], layout.length, MMATE)
        for schedule in range(SCHEDULES):
            np.testing.assert_array_equal(batch["order"][schedule][pads], pads)
            got = gathered(batch, tokens, schedule)
            expected = gathered(alone, np.arange(layout.length), schedule)
            for key in ("order", "inverse", "itself"):
                moved = np.where(expected[key] >= 0, expected[key] + first, expected[key])
                np.testing.assert_array_equal(got[key], moved, err_msg=key)
            np.testing.assert_array_equal(got["starts"], expected["starts"])
            np.testing.assert_array_equal(got["vision"], expected["vision"])
            inside = expected["vision"] & ~expected["starts"]
            np.testing.assert_array_equal(got["before"][inside], expected["before"][inside] + first)
        assert not batch["vision"][pads].any()


@pytest.mark.parametrize("shift", range(SHIFTS))
def test_a_batch_keeps_every_prompts_windows_apart(shift):
    length = MIXED.length
    batch = stack_layouts([MIXED, MIXED], [0, 0], length, MMATE)
    index, segment = batch["windows"][shift], batch["window_segment"][shift]
    for row, marks in zip(index, segment, strict=True):
        for number in set(marks.tolist()) - {-1}:
            assert len({token // length for token in row[marks == number].tolist()}) == 1
    slots = batch["window_slot"][shift]
    vision = np.flatnonzero(batch["vision"])
    np.testing.assert_array_equal(index.reshape(-1)[slots[vision]], vision)


def test_padding_that_does_not_fill_the_row_is_refused():
    with pytest.raises(InputError, match="pad tokens"):
        stack_layouts([TEXT], [1], TEXT.length, MMATE)


@pytest.mark.parametrize("row", [12, 17, 30])
def test_a_row_length_packs_the_same_windows(layout, row):
    """Rows of any length hold the same sets of tokens, and the slots lead back to every token."""
    wanted = layout_tensors(layout, MMATE, never_empty=True)
    found = layout_tensors(layout, MMATE, never_empty=True, row=row)
    windows = ("layout.windows", "layout.window_segment", "layout.window_slot")
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted if name not in windows)
    assert found["layout.windows"].shape[2] == found["layout.window_segment"].shape[2] == row

    def sets(tensors, shift):
        index, segment = tensors["layout.windows"][shift], tensors["layout.window_segment"][shift]
        keys = [(r, s) for r in range(len(index)) for s in np.unique(segment[r]) if s >= 0]
        return sorted(tuple(index[r][segment[r] == s]) for r, s in keys)

    vision = np.flatnonzero(found["layout.vision"])
    for shift in range(SHIFTS):
        assert sets(found, shift) == sets(wanted, shift)
        flat = found["layout.windows"][shift].reshape(-1)
        assert np.array_equal(flat[found["layout.window_slot"][shift][vision]], vision)


def test_a_row_too_short_for_a_window_is_refused():
    with pytest.raises(InputError, match="does not fit a row of 11"):
        layout_tensors(MIXED, MMATE, row=11)
