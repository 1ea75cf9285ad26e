"""Hostile requests as bytes: what benchmarks/hostile_requests.py sends, by kind."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.served import NAME, picture

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
Chance = random.Random
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53, 2**63 - 1, -(2**63), 0.5, -0.0, 1e308, 5e-324),
    *("", "x", "\0", "\u202e", "\ufeff", "\ufdd0", "\uffff", "<|im_end|>", "<image>", "x" * 10_000, "🙂" * 100),
    *([], {}, [[]], [None], {"": None}, {"type": "text"}, {"url": "x"}, ["x", 1], "../../etc/passwd"),
)
FIELDS = (
    "messages model prompt stream stream_options temperature top_p top_k min_p seed n stop logit_bias logprobs tools "
    "top_logprobs max_tokens max_completion_tokens response_format tool_choice presence_penalty user echo suffix "
    "best_of frequency_penalty repetition_penalty functions audio __proto__ constructor self request"
).split()


def http(body: bytes, path: str = CHAT, method: str = "POST", head: str = "", length: int | None = None) -> bytes:
    """A request of its own connection."""
    size = len(body) if length is None else length
    kind = "" if "content-type" in head.lower() else "Content-Type: application/json\r\n"
    start = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{kind}{head}"
    return start.encode("latin-1", "replace") + f"Content-Length: {size}\r\n\r\n".encode() + body


def valid(chance: Chance) -> tuple[str, dict[str, Any]]:
    """A path and a body that it takes."""
    if chance.random() < 0.2:
        return COMPLETION, {"model": NAME, "prompt": "Once", "max_tokens": 2}
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": parts}]
    document: dict[str, Any] = {"model": NAME, "messages": messages, "max_tokens": 2}
    if chance.random() < 0.3:
        document |= {"stream": True, "stream_options": {"include_usage": True}}
    return CHAT, document


def damaged_json(chance: Chance) -> bytes:
    """A body with bytes changed, cut out or put in."""
    path, document = valid(chance)
    body = bytearray(json.dumps(document).encode())
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(body))
        piece = bytes(chance.choice(b'{}[]",:\\\0\xff\xc0e9-nN') for _ in range(chance.randint(0, 3)))
        body[place : place + chance.randint(0, 5)] = piece
    return http(bytes(body), path)


def deep(chance: Chance) -> bytes:
    """Nested, whole or not, in a field or as the body."""
    depth, start, end = chance.choice((70, 1000, 10**5, 10**6)), *chance.choice((("[", "]"), ('{"a":', "}")))
    inner = start * depth + "1" + (end * depth if chance.random() < 0.5 else "")
    field = chance.choice(FIELDS)
    return http((inner if chance.random() < 0.3 else f'{{"model":"{NAME}","{field}":{inner}}}').encode())


def numbers(chance: Chance) -> bytes:
    """Numbers that JSON does not have, or that no field takes."""
    number = chance.choice(
        ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1e-999", "0x1", "01", "+1", "1.")
    )
    path, document = valid(chance)
    name = chance.choice(("temperature", "seed", "n", "max_tokens", "top_p"))
    return http(json.dumps({**document, name: "@@"}).replace('"@@"', number).encode(), path)


def texts(chance: Chance) -> bytes:
    """Half characters, control characters, bytes that are no UTF-8."""
    text = chance.choice((r"\ud800", r"\udfff\ud800", r"\u0000", "\x00", "\x1f", r"\ufdd0", "\\", r"\x", r"\u12"))
    body = json.dumps({"model": NAME, "max_tokens": 2, "messages": [{"role": "user", "content": "@@"}]})
    data = body.replace("@@", text * chance.choice((1, 50))).encode()
    return http(data.replace(b"max", chance.choice((b"max", b"\xff\xfe", b"\xed\xa0\x80"))))


def values(chance: Chance) -> bytes:
    """One value somewhere replaced by one that nobody expects there, or a field that nobody knows."""
    path, document = valid(chance)
    for _ in range(chance.randint(1, 3)):
        place: Any = document
        while True:
            key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.3:
                break
            place = place[key]
        place[key] = chance.choice(VALUES)
    if chance.random() < 0.5:
        document[chance.choice(FIELDS)] = chance.choice(VALUES)
    if isinstance(document.get("max_tokens"), int) and document["max_tokens"] > 8:
        document["max_tokens"] = 8
    return http(json.dumps(document).encode(), path)


def schema(chance: Chance, depth: int = 0) -> Any:
    """A random schema, often wrong."""
    if depth > chance.choice((2, 4, 40)):
        return chance.choice(VALUES)
    kind = chance.randrange(9)
    if kind == 0:
        return {"type": chance.choice(("object", "array", "string", "number", "nothing", ["null", "integer"]))}
    if kind == 1:
        return {"properties": {chance.choice("abc\0"): schema(chance, depth + 1) for _ in range(3)}}
    if kind == 2:
        return {chance.choice(("anyOf", "allOf", "oneOf", "not")): [schema(chance, depth + 1) for _ in range(3)]}
    if kind == 3:
        return {"$ref": chance.choice(("#", "#/$defs/a", "http://169.254.169.254/x", "file:///etc/passwd"))}
    if kind == 4:
        return {
            "type": "string",
            "pattern": chance.choice(("(a+)+$", "(", "a{1,99999}", "(?=x)", ".*" * 200, "[^\\x00]")),
        }
    if kind == 5:
        return {"enum": [chance.choice(VALUES) for _ in range(chance.choice((1, 50)))]}
    if kind == 6:
        return {"type": "array", "items": schema(chance, depth + 1), "minItems": chance.choice((0, 10**9, -1))}
    if kind == 7:
        return {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(chance.choice((9, 3000)))}}
    return {
        "type": "string",
        "maxLength": chance.choice((0, 10**12, -5)),
        "format": chance.choice(("date", "x", "uri")),
    }


def schemas(chance: Chance) -> bytes:
    """Forms of answers that are deep, endless, wrong, or hard to look at."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(chance)}}
    document = {"model": NAME, "max_tokens": 8, "messages": [{"role": "user", "content": "x"}]}
    return http(json.dumps({**document, "response_format": wanted}).encode())


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def media_body(url: Any, kind: str = "image") -> bytes:
    """A chat with one medium."""
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
    return json.dumps({"model": NAME, "max_tokens": 2, "messages": [{"role": "user", "content": [part]}]}).encode()


def pictures(chance: Chance) -> bytes:
    """Data URIs that are damaged, enormous, or something else."""
    data = bytearray(picture())
    for _ in range(chance.randint(0, 5)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    sizes = ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 0), (8000, 8000))
    found = chance.choice(
        (bytes(data), bytes(data[: chance.randrange(len(data))]), bomb(*chance.choice(sizes)), b"GIF89a")
    )
    kind = chance.choice(("image", "image", "video"))
    form = chance.choice((f"{kind}/png", "image/svg+xml", "text/html", "", "image/png;charset=utf-8"))
    text = base64.b64encode(found).decode()
    return http(media_body(f"data:{form};base64,{chance.choice((text, text, text[::-1], '@' * 50, ''))}", kind))


def addresses(chance: Chance, port: int, folder: Path) -> bytes:
    """URLs and paths that lead where nobody may look; `port`: something of this machine that listens."""
    host = chance.choice(
        "127.0.0.1 localhost 127.1 0 0.0.0.0 [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] 2130706433 0x7f000001 "
        "017700000001 169.254.169.254 10.0.0.1 192.168.0.1 [fd00:ec2::254] [fe80::1] [64:ff9b::7f00:1] LOCALHOST "
        "localhost. a@127.0.0.1 127.0.0.1%00.example.org 127.0.0.1\\@example.org ①②⑦.0.0.1".split()
    )
    secret = folder.parent / "secret.png"
    url = chance.choice(
        (
            f"http://{host}:{port}/a.png",
            f"HTTP://{host}:{port}/",
            f"https://{host}:{port}/",
            f"file://{secret}",
            f"file://{folder}/../secret.png",
            f"file://{folder}/%2e%2e/secret.png",
            f"file://{folder}/link.png",
            f"file://{folder}//..//secret.png",
            f"file://localhost{secret}",
            f"file://{host}/{secret}",
            "file:///proc/self/environ",
            "file:///dev/zero",
            f"{secret}",
            f"ftp://{host}/",
            f"gopher://{host}:{port}/_x",
            f"jar:http://{host}:{port}/!/",
            "concat:/etc/passwd",
            "\\\\host\\share",
        )
    )
    return http(media_body(url, chance.choice(("image", "video"))))


def paths(chance: Chance) -> bytes:
    """Paths and methods that nobody serves."""
    path = chance.choice(
        "/../../etc/passwd /%2e%2e/%2e%2e/etc/passwd //etc/passwd /v1//models /v1/models/../../x /v1/models/%00 "
        "/V1/MODELS * /v1/models/%ff%fe /static/../x /?%00 /health/ /metrics/x /.git/config "
        "/v1/chat/completions/../../health http://x/ /\xe9 /v1/models/{{7*7}}".split()
        + ["/" + "a" * 20_000, "/" + "../" * 500]
    )
    method = chance.choice("GET POST PUT DELETE PATCH OPTIONS TRACE CONNECT HEAD BREW get".split())
    return http(b"{}", path, method)


def headers(chance: Chance) -> bytes:
    """Heads that contradict themselves, are huge, or are no HTTP."""
    path, document = valid(chance)
    body = json.dumps(document).encode()
    head = chance.choice(
        (
            "Content-Length: 1\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Content-Encoding: gzip\r\n",
            "Content-Type: text/plain\r\n",
            "Content-Type: multipart/form-data; boundary=x\r\n",
            "Expect: 100-continue\r\n",
            "Upgrade: websocket\r\n",
            "Host: evil.example\r\n",
            "X: " + "a" * 100_000 + "\r\n",
            "".join(f"X{i}: y\r\n" for i in range(1000)),
            "Authorization: Bearer \xe9\xff\r\n",
            ": empty\r\n",
            "Bad Name: x\r\n",
            "X: a\r\n b\r\n",
            "X: a\0b\r\n",
        )
    )
    whole = http(body, path, head=head)
    return chance.choice(
        (whole, whole, whole.replace(b"HTTP/1.1", b"HTTP/9.9"), whole.replace(b"\r\n", b"\n"), body[:200])
    )


def large(chance: Chance) -> bytes:
    """Bodies, texts and lists beyond every limit, or lengths that promise them."""
    document: dict[str, Any] = {"model": NAME, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    kind = chance.randrange(6)
    if kind == 0:
        return http(b"{", length=10**15)
    if kind == 1:
        return http(json.dumps({**document, "stop": ["x"] * 100_000}).encode())
    if kind == 2:
        return http(b'{"a":[' + b"{}," * 2**20 + b"{}]}")
    if kind == 3:
        return http(json.dumps({**document, "messages": document["messages"] * 5000}).encode())
    if kind == 4:
        return http(json.dumps({**document, "messages": [{"role": "user", "content": "x" * 2_100_000}]}).encode())
    return http(media_body("data:image/png;base64," + "A" * (33 * 2**20)))


KINDS: dict[str, Callable[[Chance], bytes]] = {
    "damaged JSON": damaged_json,
    "nesting": deep,
    "numbers": numbers,
    "texts": texts,
    "values": values,
    "schemas": schemas,
    "pictures": pictures,
    "paths": paths,
    "headers": headers,
}
