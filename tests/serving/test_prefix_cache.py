"""Kept states in memory: by bytes, the longest unused go first; and what a folder adds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.formats.bundle import open_bundle
from linmu.serving.prefix_cache import PrefixCache, state_bytes
from linmu.serving.state_folder import StateFolder
from tests.bundles import tiny_bundle
from tests.serving.test_state_folder import key, same, state

SIZE = state_bytes(state(0))


def keys(*numbers: int) -> list[str]:
    return [key(number) for number in numbers]


def test_the_longest_known_prefix_is_found():
    cache = PrefixCache(10 * SIZE)
    for number in (0, 2):
        cache.put(key(number), state(number))
    index, found = cache.longest(keys(0, 1, 2, 3))
    assert index == 2 and same(found, state(2))
    assert cache.longest(keys(0, 1))[0] == 0 and cache.longest(keys(1, 3)) is None and cache.longest([]) is None
    facts = cache.statistics()
    assert (facts.hits, facts.misses, facts.entries, facts.bytes, facts.evictions) == (2, 1, 2, 2 * SIZE, 0)


def test_the_longest_unused_make_room():
    cache = PrefixCache(3 * SIZE + 5)
    for number in range(3):
        cache.put(key(number), state(number))
    cache.longest(keys(0))
    cache.put(key(1), state(1))  # known: only used
    cache.put(key(3), state(3))
    assert [key(number) in cache for number in range(4)] == [True, True, False, True]
    facts = cache.statistics()
    assert (facts.entries, facts.bytes, facts.evictions) == (3, 3 * SIZE, 1)
    small = PrefixCache(SIZE - 1)
    small.put(key(0), state(0))
    assert small.longest(keys(0)) is None and small.statistics().bytes == 0
    for bad in (-1, 1.5, None):
        with pytest.raises(InputError, match="bytes of kept states"):
            PrefixCache(bad)


def test_what_is_kept_cannot_be_changed():
    cache = PrefixCache(SIZE)
    cache.put(key(0), state(0))
    with pytest.raises(ValueError, match="read-only"):
        cache.longest(keys(0))[1].tensors["past.0.conv"][...] = 0


def test_a_folder_outlives_memory_and_process(tmp_path):
    bundle = open_bundle(tiny_bundle(tmp_path / "bundle"))
    with PrefixCache(SIZE, StateFolder(tmp_path / "states", bundle, 1 << 20)) as cache:
        for number in range(5):
            cache.put(key(number), state(number))
        cache.flush()
        index, found = cache.longest(keys(1, 3, 9))
        assert index == 1 and same(found, state(3)) and key(3) in cache
        facts = cache.statistics()
        assert (facts.folder_hits, facts.evictions, facts.entries) == (1, 5, 1)
    with PrefixCache(SIZE, StateFolder(tmp_path / "states", bundle, 1 << 20)) as cache:
        assert all(same(cache.longest(keys(number))[1], state(number)) for number in range(5))
        assert cache.statistics().folder_hits == 5
    damaged = next((tmp_path / "states").glob(f"*{key(2)}*"))
    damaged.write_bytes(b"no state")
    with PrefixCache(0, StateFolder(tmp_path / "states", bundle, 1 << 20)) as cache:
        assert cache.longest(keys(0, 2))[0] == 0 and cache.statistics().removed == 1
        assert cache.statistics().entries == 0


def test_states_are_written_before_it_closes(tmp_path):
    bundle = open_bundle(tiny_bundle(tmp_path / "bundle"))
    with PrefixCache(1 << 20, StateFolder(tmp_path / "states", bundle, 1 << 20)) as cache:
        for number in range(10):
            cache.put(key(number), state(number))
    folder = StateFolder(tmp_path / "states", bundle, 1 << 20)
    assert all(same(folder.read(key(number)), state(number)) for number in range(10))


def test_many_threads():
    cache = PrefixCache(4 * SIZE)

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 8, 200).tolist():
            found = cache.longest(keys(number))
            assert found is None or same(found[1], state(number))
            cache.put(key(number), state(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    facts = cache.statistics()
    assert facts.bytes == facts.entries * SIZE <= 4 * SIZE and facts.hits + facts.misses == 800
