"""`linmu serve` as people start and stop it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from linmu.cli import main
from linmu.serving.api.server import bound_socket
from linmu.serving.prefix_cache import PrefixCache
from tests.paths import ROOT
from tests.serving.api.servers import conversation, served


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM), ids=("Ctrl-C", "SIGTERM"))
def test_a_server_of_all_interfaces_from_its_first_line_to_its_last(bundle_of, tmp_path, number):
    command = [sys.executable, "-m", "linmu", "serve", str(bundle_of("llama")), "--host", "0.0.0.0", "--port", "0"]
    command += ["--name", "tiny", "--threads", "1", "--verbose", "--max-sessions", "3", "--queue", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert "warning: 0.0.0.0 can be reached from other machines" in process.stderr.readline()
        line = process.stderr.readline()
        assert "model tiny, backend onnxruntime, context " in line and "3 sessions" in line
        url = re.search(r"http://0\.0\.0\.0:(\d+)", line)
        assert url is not None
        with httpx.Client(base_url=f"http://127.0.0.1:{url[1]}", timeout=60) as client:
            assert client.get("/health").json()["sessions"]["most_queued"] == 5
            with client.stream(
                "POST", "/v1/chat/completions", json=conversation(max_tokens=40, stream=True, user="ann")
            ) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(number)
                assert [line for line in lines if line][-1] == "data: [DONE]"  # what was begun is finished
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "/v1/chat/completions user=ann" in rest and rest.strip().splitlines()[-1] == "stopped"
    assert "Traceback" not in rest


def test_what_cannot_be_served(bundle_of, tmp_path, capsys):
    bundle = str(bundle_of("llama"))

    def refused(*options: str) -> str:
        assert main(["serve", bundle, *options]) == 2
        return capsys.readouterr().err

    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        assert "cannot listen on 127.0.0.1" in refused("--port", str(taken.getsockname()[1]))
    assert "cannot listen on" in refused("--host", "no.such.host.invalid", "--port", "0")
    assert "key file" in refused("--api-key-file", str(tmp_path / "none"))
    assert "no such folder" in refused("--allow-local-media", str(tmp_path / "none"))
    assert "backend" in refused("--backend", "abacus", "--port", "0")


def test_turns_of_a_conversation_are_read_from_kept_states(bundle_of):
    """The second turn needs its own tokens only, and its answer is the one that a server without states gives."""
    messages = [{"role": "user", "content": "hello " * 40}, {"role": "assistant", "content": "a" * 90}]
    messages += [{"role": "user", "content": "and then? " * 10}]
    bundle = bundle_of("llama")
    with PrefixCache(2**24) as cache, served(bundle, cache=cache) as kept, served(bundle) as plain:
        first = kept.chat(messages=messages[:1])
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        second, again = kept.chat(messages=messages), plain.chat(messages=messages)
        assert second.usage.prompt_tokens_details.cached_tokens > 100
        assert second.usage.prompt_tokens == again.usage.prompt_tokens
        assert second.choices[0].message.content == again.choices[0].message.content
