"""What is done to requests in order: to their JSON, their bytes, their headers, their images."""

import copy
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.hostile_input.requests_sent import LENGTH, Header, Sent, read_sent

INFER, CLASSIFY = b"/v2/models/small/infer", b"/v2/models/small/classify"
SHARES = {"good": 0.05, "json": 0.40, "bytes": 0.20, "headers": 0.20, "head": 0.03, "image": 0.12}
"""Of each kind among all requests."""
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 9, 3, 192, 768, 2**31 - 1, 2**31, 2**53, 2**62, 2**63,
    2**64, 10**30, 0.5, -0.0, 1.0, 1e38, 1e39, 1e308, "", "input", "logits", "FP32", "FP64",
    "BYTES", "1", "x" * 300, "\0", "ü", "\ud800", [], [[]], [1], [1, 3, 8, 8], [2, 3, 8, 8],
    [0.5] * 192,
    {}, {"name": "input"}, {"binary_data_size": 768}, [None], ["1"],
)  # fmt: skip
WORDS = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"1e400", b"NaN", b"Infinity",
    b"null", b"true", b"\xef\xbb\xbf", b"\0", b"\xff", b"\xc3\x28", b"\\ud800", b"\\u0000", b" ",
    b"\n", b"9" * 30, b"1.5", b'"input"', b"/*", b"[" * 50,
)  # fmt: skip
KEYS = (
    "name", "shape", "datatype", "data", "parameters", "binary_data_size", "inputs", "outputs",
    "id", "timeout", "binary_data_output", "binary_data", "classification", "shared_memory_region",
    "more",
)  # fmt: skip
LENGTHS = (
    b"", b"-1", b"+1", b"0", b"00", b"1e2", b"0x10", b"1 2", b"\xb2", b"9" * 18, b"9" * 19, b"a",
    b"1.0", b"1,2", b"\xa05",
)  # fmt: skip
CODINGS = (b"gzip", b"x-gzip", b"deflate", b"identity", b"", b"GZip", b"br", b"gzip, gzip", b"\xff")
PATHS = (
    INFER, b"/v2/models/small/versions/1/infer", b"/v2/models/%73mall/infer", INFER + b"?a=b",
    b"http://other:1" + INFER, b"/v2/models/small/versions/2/infer", b"/v2/models/Small/infer",
    b"/v2/models/small%2finfer", b"/v2/models/../infer", b"/v2/models/small/infer/", b"/v2/models",
    b"/v2/models/small/versions//infer", b"/%00", b"/" + b"a" * 5000, b"/v2/models/%ff/infer",
)  # fmt: skip
MORE_HEADERS: tuple[Header, ...] = (
    (b"Content-Type", b"application/json"), (b"Content-Type", b"\xff"), (b"X-Request-Id", b"a b"),
    (b"X-Request-Id", b"x" * 500), (b"Accept-Encoding", b"gzip"), (b"Expect", b"100-continue"),
    (b"Authorization", b"Bearer x"), (b"Content-Encoding", b"identity"), (b"Range", b"bytes=0-1"),
    (b"Connection", b"keep-alive"), (b"X", b"y" * 3000), (b"If-None-Match", b"*"),
    (b"Cookie", b"="),
)  # fmt: skip


def draw(random: Random) -> Sent:
    """One request."""
    (kind,) = random.choices(list(SHARES), list(SHARES.values()))
    return KINDS[kind](random)


def good(random: Random) -> Sent:
    """In order, in one of the ways in which clients write it."""
    document, raw = _parts(random)
    return _framed(random, "good", json.dumps(document).encode(), raw)


def _parts(random: Random) -> tuple[dict[str, Any], bytes]:
    """A document in order, and the bytes behind it."""
    count = random.choice((1, 1, 1, 2, 3, 8))
    generator = np.random.default_rng(random.getrandbits(32))
    images = generator.standard_normal((count, 3, 8, 8)).astype(np.float32)
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": list(images.shape)}
    raw = b""
    if random.random() < 0.6:
        raw = images.tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = (images if random.random() < 0.3 else images.reshape(-1)).tolist()
    document: dict[str, Any] = {"inputs": [tensor]}
    if random.random() < 0.5:
        document["parameters"] = {"binary_data_output": random.random() < 0.7}
    if random.random() < 0.3:
        document["id"] = random.choice(("", "7", "ü\n", "x" * 256))
    if random.random() < 0.3:
        document["outputs"] = [{"name": "logits"}]
        if random.random() < 0.5:
            document["outputs"][0]["parameters"] = {"binary_data": random.random() < 0.5}
    return document, raw


def _framed(random: Random, kind: str, head: bytes, raw: bytes) -> Sent:
    length = ((LENGTH, b"%d" % len(head)),) if raw or random.random() < 0.2 else ()
    chunks = (random.randint(1, 3000),) if random.random() < 0.1 else ()
    return Sent(kind, INFER, head + raw, length, chunks=chunks)


def changed_json(random: Random) -> Sent:
    """Values, keys and nesting that are others; the length of the JSON is right."""
    document, raw = _parts(random)
    for _ in range(random.choice((1, 1, 2, 4))):
        _change(random, document)
    head = json.dumps(document).encode()
    if random.random() < 0.1:
        head = _twice(random, document)
    if random.random() < 0.1:
        head = head.replace(b", ", random.choice((b",", b" ,\n", b",\t\r\n ", b",\xc2\xa0")))
    return _framed(random, "json", head, raw)


def _nasty(random: Random) -> Any:
    return copy.deepcopy(random.choice(NASTY))  # or it would hold itself one day


def _change(random: Random, document: dict[str, Any]) -> None:
    places: list[tuple[Any, Any]] = []
    _collect(document, places)
    if not places:
        document["inputs"] = _nasty(random)
        return
    holder, key = random.choice(places)
    act = random.randrange(6)
    if act == 0 and isinstance(holder, dict):
        del holder[key]
    elif act == 1 and isinstance(holder, dict):
        holder[random.choice(KEYS)] = holder[key]
    elif act == 2 and isinstance(holder, list):
        holder.insert(key, holder[key] if random.random() < 0.5 else _nasty(random))
    elif act == 3 and isinstance(holder, list):
        del holder[key]
    elif act == 4:
        holder[key] = random.choice(([holder[key]], {"name": holder[key]}, str(holder[key])[:500]))
    elif act == 5 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * random.choice((-1, 2, 0.5, 1e30, 1e300)) + random.choice((0, 1))
    elif isinstance(holder, dict) and random.random() < 0.3:
        holder[random.choice(KEYS)] = _nasty(random)
    else:
        holder[key] = _nasty(random)


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Where something can be changed; of long lists a few places only."""
    if isinstance(value, dict):
        keys: Sequence[Any] = list(value)
    elif isinstance(value, list):
        keys = range(len(value)) if len(value) < 8 else (0, len(value) // 2, len(value) - 1)
    else:
        return
    for key in keys:
        places.append((value, key))
        _collect(value[key], places)


def _twice(random: Random, document: dict[str, Any]) -> bytes:
    """A key that is there twice, which no dict can hold."""
    head = json.dumps(document).encode()
    key = b'"%b": ' % random.choice(KEYS).encode()
    return head.replace(key, key + random.choice((b"1, ", b"null, ", b"[], ")) + key, 1)


def changed_bytes(random: Random) -> Sent:
    """Bytes of the body that are others, gone, doubled, cut off; lengths are as they were."""
    sent = good(random)
    body = bytearray(sent.body)
    reach = len(body) if random.random() < 0.3 else min(len(body), 300)  # mostly the JSON
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        _damage(random, body, reach)
    return sent.changed("bytes", body=bytes(body))


def _damage(random: Random, body: bytearray, reach: int) -> None:
    start = random.randrange(min(reach, len(body)) + 1)
    count = random.choice((1, 1, 2, 4, 16))
    act = random.randrange(6)
    if act == 0 and start < len(body):
        body[start] ^= 1 << random.randrange(8)
    elif act == 1:
        body[start : start + count] = random.randbytes(count)
    elif act == 2:
        body[start:start] = random.choice(WORDS)
    elif act == 3:
        del body[start : start + count]
    elif act == 4:
        body[start:start] = body[start : start + 4 * count]
    elif random.random() < 0.2:
        del body[start:]
    else:
        body[start : start + 1] = random.choice(WORDS)


def changed_headers(random: Random) -> Sent:
    """Headers, coding, framing, path or method that are others."""
    sent = good(random).changed("headers")
    act = random.randrange(8)
    if act == 0:
        words = random.choice((*LENGTHS, b"%d" % (len(sent.body) + random.randint(-3, 3)),
                               b"%d" % random.randint(0, 400)))  # fmt: skip
        return sent.changed("length", headers=((LENGTH, words),))
    if act == 1:
        return _coded(random, sent)
    if act == 2:
        return sent.changed("path", path=random.choice(PATHS))
    if act == 3:
        method = random.choice((b"GET", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"))
        return sent.changed("method", method=method)
    if act == 4:
        short = len(sent.body) - random.randint(1, 50)
        stated = b"%d" % random.choice((max(0, short), len(sent.body) + random.randint(1, 50)))
        return sent.changed("stated", stated=stated, chunks=(), alone=True)
    if act == 5:
        sizes = tuple(random.choice((1, 2, 7, 100, 5000)) for _ in range(random.randint(1, 4)))
        return sent.changed("chunks", chunks=sizes)
    if act == 6 and sent.headers:
        second = (LENGTH.lower(), random.choice((sent.headers[0][1], b"3")))
        return sent.changed("twice", headers=(*sent.headers, second))
    more = random.sample(MORE_HEADERS, random.randint(1, 4))
    seen: dict[bytes, Header] = {header[0]: header for header in more}
    return sent.changed("more", headers=(*sent.headers, *seen.values()))


def _coded(random: Random, sent: Sent) -> Sent:
    name = random.choice(CODINGS)
    squeeze: Callable[[bytes], bytes] = random.choice(
        (lambda body: gzip.compress(body, 1, mtime=0), lambda body: zlib.compress(body, 1), bytes)
    )
    body = bytearray(squeeze(sent.body))
    if random.random() < 0.3:
        _damage(random, body, len(body))
    return sent.changed(
        "coding", body=bytes(body), headers=(*sent.headers, (b"Content-Encoding", name))
    )


def changed_head(random: Random) -> Sent:
    """Bytes of the line and the headers that are others: perhaps no request at all."""
    sent = good(random).changed("head", chunks=())
    raw = sent.encode()
    size = raw.index(b"\r\n\r\n") + 4
    head = bytearray(raw[:size])
    for _ in range(random.choice((1, 1, 2, 3))):
        _damage(random, head, size)
    whole = bytes(head) + raw[size:]
    meant = read_sent(whole, "head") or sent.changed("head", path=b"")
    return meant.changed("head", raw=whole, alone=True)


def changed_image(random: Random) -> Sent:
    """An image file, sound or damaged, or none."""
    generator = np.random.default_rng(random.getrandbits(32))
    pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if random.random() < 0.5:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=90)
    content = bytearray(file.getvalue())
    sound = random.random() < 0.2
    if not sound:
        for _ in range(random.choice((1, 1, 2, 8))):
            _damage(random, content, len(content))
    kind = "image" if sound else "damaged image"
    path = CLASSIFY + (random.choice((b"", b"?top=2", b"?top=99")) if sound else b"")
    return Sent(kind, path, bytes(content))


KINDS: dict[str, Callable[[Random], Sent]] = {
    "good": good,
    "json": changed_json,
    "bytes": changed_bytes,
    "headers": changed_headers,
    "head": changed_head,
    "image": changed_image,
}
