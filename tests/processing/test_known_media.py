"""Media told apart by what was sent, and prepared when their pixels are asked for."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.processing.known_media import KnownMedia, media_digest
from linmu.processing.sources import MediaSource
from tests.processing.support import picture, pixels_of, tiny_pair, user
from tests.tiny import tiny_video


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_digest_is_of_content_and_sampling(tmp_path):
    image, array = picture(40, 30), np.asarray(picture(40, 30))
    other = array.copy()
    other[7, 5, 1] ^= 1  # one pixel
    data = png(image)
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [image, array, other, data, url, png(picture(40, 30, 1)), array.reshape(30, 20, 6), array[:, ::-1]]
    digests = [media_digest(MediaSource("image", source)) for source in sources]
    assert len(set(digests)) == len(sources)
    same = [tmp_path / "a.png", str(tmp_path / "b.png"), bytearray(data)]
    assert {media_digest(MediaSource("image", source)) for source in same} == {digests[3]}
    assert media_digest(MediaSource("image", image.copy())) == digests[0]
    options = [{}, {"fps": 2.0}, {"min_pixels": 100}, {"max_pixels": 100}]
    made = [media_digest(MediaSource("video", array, **option)) for option in options]
    assert len({*made, digests[1]}) == 5
    for bad in (tmp_path / "none.png", tmp_path, 5):
        with pytest.raises(InputError):
            media_digest(MediaSource("image", bad))


@pytest.mark.parametrize("family", ("smolvlm", "qwen2_5_vl"))
def test_known_media_give_the_same_inputs_without_decoding(family, tmp_path, monkeypatch):
    plain = tiny_pair(family, tmp_path)[1]
    known = replace(plain, known=KnownMedia())
    talk = [user([picture(90, 70), picture(50, 120, 1)], "Two?")]
    wanted, first = plain.encode(talk), known.encode(talk)
    assert not wanted.digests and len(first.digests) == 2
    with monkeypatch.context() as patch:
        patch.setattr("linmu.processing.media.prepare_image", lambda *_: pytest.fail("decoded"))
        again = known.encode(talk)
    for inputs in (first, again):
        assert inputs.digests == first.digests and inputs.media == wanted.media
        assert np.array_equal(inputs.input_ids, wanted.input_ids)
        assert np.array_equal(pixels_of(inputs), pixels_of(wanted))
        assert len(inputs.vision_calls) == len(wanted.vision_calls)


def test_a_picture_that_its_owner_changes_stays_what_it_was(tmp_path):
    known = replace(tiny_pair("llava", tmp_path)[1], known=KnownMedia())
    array = np.asarray(picture(60, 60)).copy()
    first = known.encode([user([array], "?")])
    again = known.encode([user([array], "?")])
    array[:] = 0
    assert np.array_equal(pixels_of(again), pixels_of(first))
    assert known.encode([user([array], "?")]).digests != first.digests


def test_a_file_that_changes_before_it_is_decoded_is_refused(tmp_path):
    known = replace(tiny_pair("llava", tmp_path)[1], known=KnownMedia())
    path = tmp_path / "picture.png"
    picture(60, 60).save(path)
    known.encode([user([path], "?")])
    again = known.encode([user([str(path)], "?")])
    picture(60, 61, 3).save(path)
    with pytest.raises(InputError, match="changed while it was read"):
        pixels_of(again)
    with pytest.raises(InputError, match="cannot read"):
        known.encode([user([tmp_path / "none.png"], "?")])


def test_only_the_last_media_are_remembered(tmp_path):
    plain = tiny_pair("llava", tmp_path)[1]
    known, pictures = KnownMedia(most=2), [MediaSource("image", picture(50, 50, seed)) for seed in range(3)]
    for source in (*pictures, pictures[0]):
        made, wanted = known.prepare(source, plain.settings), plain.encode([user([source.source], "?")])
        assert np.array_equal(made.calls[0]["pixel_values"], pixels_of(wanted))
    assert len(known._facts) == 2


def test_clips_are_told_apart_too(tmp_path):
    known = replace(tiny_pair("qwen2_5_vl", tmp_path)[1], known=KnownMedia())
    frames = tiny_video()
    first, again = (known.encode("?", video=frames, video_fps=2.0) for _ in range(2))
    assert first.digests == again.digests != known.encode("?", video=frames, video_fps=1.0).digests
    assert np.array_equal(pixels_of(again), pixels_of(first)) and len(again.vision_calls) == len(first.vision_calls)
