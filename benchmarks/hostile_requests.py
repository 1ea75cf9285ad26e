"""Thousands of hostile requests: what each is answered with, by kind; and whether the server is as it was.

    python benchmarks/hostile_requests.py BUNDLE --requests 10000 --seed 1

The server may fetch URLs and read one folder, so that there is something to get at. Kinds are in
benchmarks/hostile_inputs.py; besides them some clients send a byte now and then, and some go away in the midst. After
every hundredth request a usual one has to get the answer that it got at first. What must not happen: a status of 500, a
traceback, an error in another form than OpenAI's (a head that is no HTTP is answered in plain text), no answer, a
connection to a port of this machine, the bytes of a file outside the folder, memory beyond --memory, an end of the
server. The last line is a JSON document; the exit code is 1 when any of these happened.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hostile_inputs import CHAT, KINDS, NAME, addresses, http, large
from benchmarks.served import Curve, Process, picture, server

PATIENCE_S = 120
AT_ONCE = 16
RARE = 0.01  # share of requests of tens of megabytes, and of clients that take half a minute
USUAL = {"model": NAME, "max_tokens": 12, "messages": [{"role": "user", "content": "How many squares are there?"}]}


async def exchange(port: int, data: bytes, slow: bool = False) -> bytes:
    """What a connection gives back; slow: the last bytes of a request come one a second, or never."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        try:
            if slow:
                writer.write(data[:-3])
                for byte in data[-3:-1]:
                    await asyncio.sleep(1)
                    writer.write(bytes([byte]))
            else:
                writer.write(data)
            await writer.drain()
        except ConnectionError:
            pass  # it answered before it had read all, and that answer may still be here
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def judged(answer: bytes, kind: str) -> str:
    """What became of a request: its status, or what is wrong with it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"Traceback" in answer or b'File "' in answer:
        return "WRONG: a traceback"
    if b"SECRET" in answer:
        return "WRONG: a secret"
    if not head.startswith(b"HTTP/1.1 "):
        return "closed" if kind in ("headers", "large", "slow") and not answer else "WRONG: no answer"
    status = int(head[9:12])
    if status == 500:
        return "WRONG: 500"
    if status >= 400 and b"application/json" not in head:
        plain = b"Invalid HTTP request received." in body and kind in ("headers", "paths")
        return f"{status} plain" if plain else "WRONG: not JSON"
    if status >= 400 and b'"error"' not in body and b"HEAD" not in body and body:
        return "WRONG: form"
    return str(status)


class Attack:
    """One run: chance, counts, and a port of this machine that nobody may connect to."""

    def __init__(self, process: Process, folder: Path, seed: int):
        self._process, self._folder = process, folder
        self._chance = random.Random(seed)
        self.found: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: list[str] = []
        self.connected = 0
        self._usual = b""

    async def run(self, count: int, seconds: float) -> int:
        """Send up to `count` requests -> how many there were."""
        trap = await asyncio.start_server(self._trapped, "127.0.0.1", 0)
        port = trap.sockets[0].getsockname()[1]
        self._usual = _answered(await exchange(self._process.port, http(json.dumps(USUAL).encode())))
        places, end, sent = asyncio.Semaphore(AT_ONCE), time.monotonic() + seconds, 0
        async with asyncio.TaskGroup() as group:
            while sent < count and time.monotonic() < end and self._process.alive:
                await places.acquire()
                kind, data = self._next(port)
                group.create_task(self._one(places, kind, data))
                sent += 1
                if sent % 100 == 0:
                    await places.acquire()
                    group.create_task(self._one(places, "usual", http(json.dumps(USUAL).encode())))
        trap.close()
        return sent

    def _next(self, port: int) -> tuple[str, bytes]:
        chance = self._chance
        if chance.random() < RARE:
            return "large", large(chance)
        if chance.random() < RARE:
            return "slow", KINDS["values"](chance)
        kind = chance.choice((*KINDS, "addresses", "left"))
        if kind == "addresses":
            return kind, addresses(chance, port, self._folder)
        return kind, KINDS.get(kind, KINDS["values"])(chance)

    async def _one(self, places: asyncio.Semaphore, kind: str, data: bytes) -> None:
        try:
            if kind == "left":
                await self._leave(data)
                self.found[kind]["left"] += 1
                return
            try:
                async with asyncio.timeout(PATIENCE_S):
                    answer = await exchange(self._process.port, data, kind == "slow")
            except (TimeoutError, OSError) as error:
                self.found[kind][f"WRONG: {type(error).__name__}"] += 1
                self.examples.append(f"{kind}: {data[:600]!r}")
                return
            result = judged(answer, kind)
            if kind == "usual" and result == "200" and _answered(answer) != self._usual:
                result = "WRONG: another answer"
            self.found[kind][result] += 1
            if result.startswith("WRONG") and len(self.examples) < 10:
                self.examples.append(f"{kind}: {data[:600]!r} -> {answer[:300]!r}")
        finally:
            places.release()

    async def _leave(self, data: bytes) -> None:
        """Go away at some place of the request, or right behind it."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._process.port)
            writer.write(data[: self._chance.randint(0, len(data))])
            await asyncio.sleep(self._chance.random() / 10)
            writer.transport.abort()
        except OSError:
            pass

    async def _trapped(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        writer.close()


def _answered(answer: bytes) -> bytes:
    try:
        return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"].encode()
    except (ValueError, KeyError):
        return b""


def attacked(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The run and what came of it."""
    folder = root / "media"
    folder.mkdir()
    (root / "secret.png").write_bytes(picture() + b"SECRET")
    (folder / "link.png").symlink_to(root / "secret.png")
    places = ["--max-sessions", "4", "--queue", "16", "--allow-urls", "--allow-local-media", str(folder)]
    with server(options.bundle, root / "log", *places) as process:
        attack, curve, start = Attack(process, folder, options.seed), Curve(process), time.monotonic()
        sent = asyncio.run(attack.run(options.requests, options.seconds))
        result: dict[str, Any] = {"requests": sent, "seconds": round(time.monotonic() - start, 1)}
        resident = curve.stop()
        time.sleep(1)
        result |= {"alive": process.alive, "exit_code": process.popen.poll(), "usual_afterwards": False}
        if process.alive:
            after = _answered(asyncio.run(exchange(process.port, http(json.dumps(USUAL).encode(), CHAT))))
            result["usual_afterwards"] = after == attack._usual != b""
    kinds = {kind: dict(sorted(counts.items())) for kind, counts in sorted(attack.found.items())}
    result |= {"kinds": kinds, "connected": attack.connected, "examples": attack.examples[:20]}
    return result | {"resident_mib": {"start": resident[0], "most": max(resident), "end": resident[-1]}}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3600, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", type=float, default=2000, help="MiB that the server may hold")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = attacked(options, Path(folder))
        log = (Path(folder) / "log").read_text()
    result["log"] = {"tracebacks": log.count("Traceback"), "end": log[-1500:]}
    print(json.dumps(result))
    wrong = [name for counts in result["kinds"].values() for name in counts if name.startswith("WRONG")]
    fine = (
        result["alive"] and result["usual_afterwards"] and not result["connected"] and not result["log"]["tracebacks"]
    )
    return int(bool(wrong) or not fine or result["resident_mib"]["most"] > options.memory)


if __name__ == "__main__":
    sys.exit(main())
