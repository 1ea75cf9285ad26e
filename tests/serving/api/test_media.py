"""Pictures and clips of requests: what is read is what a session reads, and nothing else can be had."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import linmu
from linmu.serving.api.settings import ApiLimits
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.request import Limits
from tests.clips import write_clip
from tests.serving.api.servers import NAME, conversation, data_url, picture_message, png, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    (folder / "in").mkdir()
    (folder / "in" / "a b.png").write_bytes(png())
    (folder / "secret.png").write_bytes(png(1))
    (folder / "in" / "link.png").symlink_to(folder / "secret.png")
    (folder / "in" / "loop").symlink_to(folder / "in" / "loop")
    (folder / "in" / "up").symlink_to(folder)
    write_clip(folder / "in" / "clip.mp4", [np.full((32, 48, 3), value, np.uint8) for value in range(0, 240, 20)])
    return folder


@pytest.fixture(scope="module")
def local(bundle_of, folder):
    limits = ApiLimits(media_bytes=100_000, media=3, picture_pixels=100_000, text_characters=5000)
    engine = Limits(max_sessions=2, max_prompt_tokens=2000)
    with served(bundle_of("smolvlm"), engine, local_media=folder / "in", limits=limits) as server:
        yield server


def content(server, messages):
    return server.chat(messages=messages, max_completion_tokens=6).choices[0].message.content


def clip_message(url, **video):
    part = {"type": "video_url", "video_url": {"url": url, **video}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "what happens?"}]}]


def test_local_files_below_the_folder(local, folder):
    expected = content(local, picture_message(data_url(png())))
    assert content(local, picture_message((folder / "in" / "a b.png").as_uri())) == expected


@pytest.mark.parametrize(
    "name", ("secret.png", "in/link.png", "in/loop", "in/up/secret.png", "in/../secret.png", "in", "in/none.png", "")
)
def test_no_local_file_outside(local, folder, name):
    url = f"file://{folder}/{name}"
    for message in (picture_message(url), clip_message(url)):
        error = local.error({**conversation(), "messages": message})
        assert "a local file" in error["message"] and (error["param"] or "").startswith("messages[0].content[")


@pytest.mark.parametrize(
    "url",
    ("file://host{}/in/a.png", "file:{}/in/a.png?x", "file:///proc/self/environ", "file:///dev/zero", "file:///a%00b"),
)
def test_odd_local_urls(local, folder, url):
    assert local.error({**conversation(), "messages": picture_message(url.format(folder))})["param"]


def test_clips_as_data_and_as_files(local, folder, bundle_of):
    path = folder / "in" / "clip.mp4"
    told = [content(local, clip_message(url)) for url in (data_url(path.read_bytes(), "video/mp4"), path.as_uri())]
    with linmu.load(bundle_of("smolvlm"), "onnxruntime", threads=1) as session:
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what happens?"}]}]
        assert told == [session.generate(messages, video=path, max_new_tokens=6).text] * 2
    few, many = (local.chat(messages=clip_message(path.as_uri(), fps=fps)).usage.prompt_tokens for fps in (2.0, 12.0))
    assert few < many


def test_media_that_are_not_what_they_say(local):
    for url in (
        "data:image/png;base64,AAAA",
        "data:image/png;base64,????",
        "data:image/png,abc",
        "data:text/html;base64,AAAA",
        "data:video/mp4;base64,AAAA",
        "data:",
        "",
        "picture.png",
        "/etc/passwd",
        "ftp://example.org/a.png",
        "javascript:alert(1)",
        data_url(png()[: len(png()) // 2]),
    ):
        error = local.error({**conversation(), "messages": picture_message(url)})
        assert error["param"] == "messages[0].content[1].image_url" or error["param"] == "messages", error
    error = local.error({**conversation(), "messages": clip_message(data_url(b"no clip at all", "video/mp4"))})
    assert "/tmp" not in error["message"]


def test_what_is_too_large(local):
    def refused(messages):
        return local.error({**conversation(), "messages": messages}, status=413)["param"]

    wide = io.BytesIO()
    Image.new("1", (400, 300)).save(wide, "PNG")
    assert refused(picture_message(data_url(wide.getvalue()))) == "messages[0].content[1].image_url"
    assert refused(picture_message(data_url(bytes(100_001)))) == "messages[0].content[1].image_url"
    assert refused(picture_message(data_url(png()))[:1] * 4) == "messages[3].content[1]"
    assert refused([{"role": "user", "content": "x" * 5001}]) == "messages"
    assert refused([{"role": "user", "content": "x y" * 1200}]) == "messages"  # more than 2,000 tokens


def test_low_detail_makes_a_picture_small(vision):
    """Fitted into 512 x 512 beforehand, so that the picture is the small one's."""
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 1024, 3), np.uint8))
    files = []
    for image in (large, large.resize((512, 150), Image.Resampling.BICUBIC, reducing_gap=2.0)):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(data_url(file.getvalue()))
    low = vision.chat(messages=picture_message(files[0], detail="low"))
    assert low.usage.prompt_tokens == vision.chat(messages=picture_message(files[1])).usage.prompt_tokens
    high = vision.chat(messages=picture_message(files[0], detail="high"))
    assert high.choices[0].message.content == content(vision, picture_message(files[0], detail="auto"))


def test_nothing_is_opened_unless_it_is_allowed(vision, folder):
    for url in ((folder / "secret.png").as_uri(), "http://example.org/a.png", "https://127.0.0.1/x"):
        error = vision.error({"model": NAME, "messages": picture_message(url)})
        assert "--allow" in error["message"] and error["param"] == "messages[0].content[1].image_url"


def test_a_clip_that_was_seen_before_is_there_when_its_turn_comes(bundle_of, folder):
    """Its frames are decoded only when no state has read them, and then by the model's thread."""
    url = data_url((folder / "in" / "clip.mp4").read_bytes(), "video/mp4")
    with PrefixCache(0) as nothing_kept, served(bundle_of("smolvlm"), cache=nothing_kept) as server:
        told = [content(server, clip_message(url)) for _ in range(2)]
        damaged = clip_message(data_url(b"no clip at all", "video/mp4"))
        assert told[0] == told[1]
        assert "linmu-request" not in server.error({**conversation(), "messages": damaged})["message"]
