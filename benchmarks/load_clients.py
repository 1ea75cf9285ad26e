"""Many clients at once, some of which hang up: whether every answer belongs to its question, and nothing stays behind.

    python benchmarks/load_clients.py BUNDLE --clients 100 --seconds 120

Two kinds of requests, streamed or not, some with a picture. Echoes have a schema that allows one text, new for every
request: an answer that belongs to another question cannot pass. Greedy ones are compared with the answer that the
question got when nobody else asked; sums of a batch may round otherwise, so these are counted as equal or not, and an
unequal one that is another question's answer counts as mixed up. A share of the clients hangs up at a random moment.
The last line is a JSON document; the exit code is 1 when something was lost, mixed up or left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.served import NAME, Curve, Process, picture, server

PATH = "/v1/chat/completions"
QUESTIONS = [f"Question {number}: how many circles are there, and what is above them?" for number in range(20)]
HANG_UP = 0.3  # share of requests
PATIENCE_S = 300


def body(text: str, seen: bool, stream: bool, **fields: Any) -> dict[str, Any]:
    """A request; seen: with a picture."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if seen:
        url = "data:image/png;base64," + base64.b64encode(picture()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"model": NAME, "messages": [{"role": "user", "content": parts}], "stream": stream, **fields}


def echo(secret: str, seen: bool, stream: bool) -> dict[str, Any]:
    """A request that only this secret answers."""
    schema = {"name": "echo", "schema": {"const": secret}}
    response_format = {"type": "json_schema", "json_schema": schema}
    return body("Say it.", seen, stream, max_tokens=200, response_format=response_format)


class Client:
    """One of many: asks one question after the other."""

    def __init__(self, http: httpx.AsyncClient, seed: int, alone: dict[tuple[str, bool], str], found: Counter[str]):
        self._http, self._chance, self._alone, self._found = http, random.Random(seed), alone, found

    async def ask_until(self, end: float) -> None:
        """Ask until it is late."""
        while time.monotonic() < end:
            chance = self._chance
            seen, stream, secret = chance.random() < 0.3, chance.random() < 0.5, uuid.uuid4().hex
            if chance.random() < 0.5:
                document, key = echo(secret, seen, stream), None
            else:
                key = (chance.choice(QUESTIONS), seen)
                document = body(*key, stream, max_tokens=24)
            if chance.random() < HANG_UP:
                await self._hang_up(document)
            else:
                await self._read(document, key, secret)

    async def _hang_up(self, document: dict[str, Any]) -> None:
        """Leave after a random time, wherever the answer is."""
        try:
            async with asyncio.timeout(self._chance.expovariate(2)):
                await self._answer(document)
            self._found["answered before hanging up"] += 1
        except TimeoutError:
            self._found["hung up"] += 1
        except httpx.HTTPError:
            self._found["hung up"] += 1

    async def _read(self, document: dict[str, Any], key: tuple[str, bool] | None, secret: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, text = await self._answer(document)
        except (TimeoutError, httpx.HTTPError) as error:
            self._found[f"lost: {type(error).__name__}"] += 1
            return
        if status == 429:
            self._found["told to wait"] += 1
            await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        elif status != 200:
            self._found[f"lost: status {status}"] += 1
        elif key is None:
            self._found["echoes" if text.strip() == json.dumps(secret) else "mixed up: an echo"] += 1
        elif text == self._alone[key]:
            self._found["greedy, equal"] += 1
        else:
            others = {answer for other, answer in self._alone.items() if other != key}
            self._found["mixed up: an answer" if text in others else "greedy, rounded otherwise"] += 1

    async def _answer(self, document: dict[str, Any]) -> tuple[int, str]:
        if not document["stream"]:
            response = await self._http.post(PATH, json=document)
            if response.status_code != 200:
                return response.status_code, response.text
            return 200, response.json()["choices"][0]["message"]["content"]
        parts, done = [], False
        async with self._http.stream("POST", PATH, json=document) as response:
            if response.status_code != 200:
                return response.status_code, ""
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    parts += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        return 200 if done else 0, "".join(parts)


async def load(process: Process, clients: int, seconds: float) -> dict[str, Any]:
    """All clients at once -> what became of their requests, and what the server says afterwards."""
    found: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{process.port}", timeout=PATIENCE_S, limits=limits
    ) as http:
        alone = {}
        first = Client(http, 0, {}, found)
        for question in QUESTIONS:
            for seen in (False, True):
                alone[question, seen] = (await first._answer(body(question, seen, False, max_tokens=24)))[1]
        start_mib, files = process.resident_mib(), process.open_files()
        curve, end = Curve(process), time.monotonic() + seconds
        everyone = [Client(http, seed, alone, found) for seed in range(1, clients + 1)]
        await asyncio.gather(*(client.ask_until(end) for client in everyone))
        for _ in range(100):
            sessions = (await http.get("/health")).json()["sessions"]
            if not (sessions["reading"] or sessions["decoding"] or sessions["queued"]):
                break
            await asyncio.sleep(0.1)
    await asyncio.sleep(6)  # idle connections are closed after five seconds
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port}", timeout=60) as http:
        metrics = (await http.get("/metrics")).text
    outcomes = {
        line.split('"')[1]: float(line.split()[-1]) for line in metrics.splitlines() if "requests_total{" in line
    }
    return {
        "answers": dict(sorted(found.items())),
        "distinct_greedy_answers": len(set(alone.values())),
        "left_behind": {key: sessions[key] for key in ("reading", "decoding", "queued")},
        "engine_requests": outcomes,
        "open_files": [files, process.open_files()],
        "resident_mib": {"start": start_mib, "curve": curve.stop(), "end": process.resident_mib()},
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with server(options.bundle, Path(folder) / "log", "--max-sessions", "16", "--queue", "64") as process:
            result = asyncio.run(load(process, options.clients, options.seconds))
            result |= {"clients": options.clients, "seconds": options.seconds, "alive": process.alive}
        result["log"] = process.log.read_text()[-2000:]
    print(json.dumps(result))
    wrong = [name for name in result["answers"] if name.startswith(("lost", "mixed"))]
    return int(
        bool(wrong or any(result["left_behind"].values()) or "Traceback" in result["log"] or not result["alive"])
    )


if __name__ == "__main__":
    sys.exit(main())
