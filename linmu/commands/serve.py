"""`linmu serve`: a bundle behind OpenAI's paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linmu.commands.options import BackendOption, BundleArgument, ThreadsOption
from linmu.commands.output import require_modules, say
from linmu.errors import InputError

if TYPE_CHECKING:
    from linmu.serving.api.settings import ApiSettings
    from linmu.serving.engine import Engine

EXAMPLES = (
    "Example: linmu serve bundle --port 8000, then openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='-')"
)


def command(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="The model's name for clients (default: its own).")] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Keys that open the server, one a line.")
    ] = None,
    max_sessions: Annotated[int, typer.Option("--max-sessions", min=1, help="Answers at one time.")] = 8,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Requests that may wait for a place.")] = 32,
    max_prompt_tokens: Annotated[
        int, typer.Option("--max-prompt-tokens", min=1, help="Tokens of a prompt, pictures included.")
    ] = 131_072,
    cache_bytes: Annotated[
        int, typer.Option("--cache-bytes", min=0, help="Bytes of kept states in memory, and in --cache-dir; 0: none.")
    ] = 256 << 20,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="Keep states as files, too: they survive restarts.")
    ] = None,
    allow_local_media: Annotated[
        Path | None, typer.Option("--allow-local-media", help="A folder whose files requests may name as file:// URLs.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures and clips from public http(s) addresses.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="A line per request on stderr.")] = False,
) -> None:
    """Serve a bundle over HTTP to OpenAI's clients; Ctrl-C finishes what is being answered."""
    require_modules("linmu serve", "serve", "fastapi", "uvicorn", "sse_starlette", "prometheus_client")
    import logging
    from contextlib import ExitStack

    from linmu.formats.bundle import open_bundle
    from linmu.processing.known_media import KnownMedia
    from linmu.serving.api.gate import read_keys
    from linmu.serving.api.server import bound_socket, only_loopback, serve, url_of
    from linmu.serving.api.settings import ApiSettings
    from linmu.serving.engine import Engine
    from linmu.serving.kept_reader import kept_reader
    from linmu.serving.prefix_cache import PrefixCache
    from linmu.serving.request import Limits
    from linmu.serving.state_folder import StateFolder

    if allow_local_media is not None and not allow_local_media.is_dir():
        raise InputError(f"--allow-local-media {allow_local_media}", got="no such folder", expected="a folder")
    keys = () if api_key_file is None else read_keys(api_key_file)
    if verbose:
        logging.basicConfig(format="%(asctime)s %(message)s")
        logging.getLogger("linmu.serving").setLevel(logging.INFO)
    limits = Limits(max_sessions, queue, max_prompt_tokens=max_prompt_tokens)
    opened = open_bundle(bundle)
    if cache_dir is not None and not cache_bytes:
        raise InputError("--cache-dir", got="--cache-bytes 0", expected="room for states")
    with ExitStack() as stack:
        listening = stack.enter_context(bound_socket(host, port))
        cache = None
        if cache_bytes:
            folder = None if cache_dir is None else StateFolder(cache_dir, opened, cache_bytes)
            cache = stack.enter_context(PrefixCache(cache_bytes, folder))
        known = None if cache is None else KnownMedia()
        engine = stack.enter_context(Engine(opened, backend, threads, limits, kept_reader(cache, threads), known))
        loopback = only_loopback(listening)
        settings = ApiSettings(
            name=name or engine.bundle.manifest.model.name,
            keys=keys,
            local_media=allow_local_media,
            allow_urls=allow_urls,
            loopback_only=loopback,
        )
        if not loopback and not keys:
            say(f"warning: {host} can be reached from other machines, and there is no --api-key-file: anybody may ask")
        serve(engine, settings, listening, lambda: say(_started(engine, settings, url_of(listening))))
    say("stopped")


def _started(engine: Engine, settings: ApiSettings, url: str) -> str:
    """The line that says that requests are taken."""
    from linmu.system.units import size

    manifest = engine.bundle.manifest
    positions = manifest.generation.get("max_position_embeddings")
    context = "any context" if positions is None else f"context {positions} tokens"
    return (
        f"listening on {url}: model {settings.name}, backend {engine.backend}, {context}, "
        f"{engine.limits.max_sessions} sessions of {size(manifest.state_bytes)} each"
    )
