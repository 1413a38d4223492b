"""What strangers, broken clients and lost networks send, and how each is to be refused."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.serving.image_messages import Picture
from benchmarks.serving.infer_messages import LENGTH, binary_message, binary_parts, http_message
from benchmarks.serving.known_answers import Known

BOMB_BYTES = 65 << 20
GARBAGE = 16

Counted = Literal["OTHER", "CANCELED", "either", ""]
"""The reason under which the server counts it; `either`: CANCELED, or answered in vain."""


@dataclass(frozen=True)
class Hostile:
    """One request that is not to be answered with a result.

    Attributes:
        name: of its kind.
        message: what is sent.
        status: of the refusal; None: no answer is waited for.
        counted: by the server.
        then: "wait" for the answer, on a connection that others use as well where `framed`;
            "leave" at once, or after a moment.
        rare: sent a tenth as often.
    """

    name: str
    message: bytes
    status: int | None
    counted: Counted
    then: Literal["wait", "leave"] = "wait"
    framed: bool = True
    rare: bool = False


def make_hostile(
    known: Known, model: str, seed: int, pictures: Sequence[Picture] = ()
) -> list[Hostile]:
    """All kinds, some of them several times with other bytes.

    Args:
        pictures: sound ones; none where the server takes none.
    """
    path = f"/v2/models/{model}/infer"
    return [
        *_bad_documents(known, path),
        *_bad_lengths(known, path),
        *_bad_codings(known, path),
        *_bad_places(known, model),
        *_bad_connections(known, path, seed),
        *(_bad_images(pictures[0].png, model) if pictures else ()),
    ]


def _bad_documents(known: Known, path: str) -> list[Hostile]:
    case, name = known.cases[0], known.input_name
    shape = list(case.images.shape)
    many = known.manifest.batch.max + 1
    bad = {
        "broken JSON": http_message(path, b'{"inputs": [{"name": "input", '),
        "no JSON": http_message(path, b"\xff\xfe\x00\x01" * 20),
        "NaN in JSON": http_message(path, b'{"inputs": [{"name": NaN}]}'),
        "deep JSON": http_message(path, b"[" * 100_000),
        "wrong shape": binary_message(case, name, path, shape=[*shape[:3], shape[3] - 1]),
        "negative shape": binary_message(case, name, path, shape=[-1, *shape[1:]]),
        "huge shape": binary_message(case, name, path, shape=[2**31, *shape[1:]]),
        "wrong datatype": binary_message(case, name, path, datatype="INT8"),
        "unknown input": binary_message(case, "nobody", path),
        "too many images": binary_message(case, name, path, shape=[many, *shape[1:]]),
    }
    return [Hostile(kind, message, 400, "OTHER") for kind, message in bad.items()]


def _bad_lengths(known: Known, path: str) -> list[Hostile]:
    head, raw = binary_parts(known.cases[0], known.input_name)
    body, large = head + raw, {"binary_data_size": len(raw) + 4}
    bad = {
        "binary size beyond the body": binary_message(
            known.cases[0], known.input_name, path, parameters=large
        ),
        "binary size too small": binary_message(
            known.cases[0], known.input_name, path, parameters={"binary_data_size": len(raw) - 4}
        ),
        "JSON length beyond the body": http_message(path, body, f"{LENGTH}: {len(body) + 1}"),
        "JSON length no number": http_message(path, body, f"{LENGTH}: -7"),
        "JSON length off by one": http_message(path, body, f"{LENGTH}: {len(head) - 1}"),
    }
    return [Hostile(kind, message, 400, "OTHER") for kind, message in bad.items()]


def _bad_codings(known: Known, path: str) -> list[Hostile]:
    head, raw = binary_parts(known.cases[0], known.input_name)
    whole, coding = gzip.compress(head + raw, 1), "Content-Encoding: gzip"
    bomb = gzip.compress(bytes(BOMB_BYTES), 9)
    return [
        Hostile("broken gzip", http_message(path, whole[:-20], coding), 400, "OTHER"),
        Hostile("no gzip", http_message(path, head + raw, coding), 400, "OTHER"),
        Hostile(
            "unknown coding", http_message(path, whole, "Content-Encoding: br"), 415, "OTHER"
        ),
        Hostile("gzip bomb", http_message(path, bomb, coding), 413, "OTHER", rare=True),
    ]  # fmt: skip


def _bad_places(known: Known, model: str) -> list[Hostile]:
    head, raw = binary_parts(known.cases[0], known.input_name)
    length = f"{LENGTH}: {len(head)}"

    def at(path: str) -> bytes:
        return http_message(path, head + raw, length)

    got = http_message(f"/v2/models/{model}/infer", verb="GET")
    return [
        Hostile("unknown model", at("/v2/models/nobody/infer"), 404, ""),
        Hostile("unknown version", at(f"/v2/models/{model}/versions/77/infer"), 404, ""),
        Hostile("unknown route", at("/v2/../../etc/passwd"), 404, ""),
        Hostile("wrong method", got, 405, ""),
    ]


def _bad_images(png: bytes, model: str) -> list[Hostile]:
    path, kind = f"/v2/models/{model}/classify", "Content-Type: image/png"
    side = struct.pack(">I", 60_000)
    header = b"IHDR" + side + side + png[24:29]
    bomb = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    return [
        Hostile("no image", http_message(path, b"\x02" * 999, kind), 415, "OTHER"),
        Hostile("image cut short", http_message(path, png[: len(png) // 2], kind), 400, "OTHER"),
        Hostile("image of 3.6 gigapixels", http_message(path, bomb, kind), 413, "OTHER"),
    ]


def _bad_connections(known: Known, path: str, seed: int) -> list[Hostile]:
    generator = np.random.default_rng(seed)
    name, whole = known.input_name, binary_message(known.cases[-1], known.input_name, path)
    garbage = [b"\x01" + generator.bytes(int(generator.integers(1, 2000))) for _ in range(GARBAGE)]
    long_head = http_message(path, b"", f"X-Long: {'x' * 40_000}")
    too_large = http_message(path, b"", length=BOMB_BYTES)
    leavers = [binary_message(case, name, path) for case in known.cases[:: len(known.cases) // 8]]
    return [
        *(Hostile("garbage bytes", each, 400, "", framed=False, rare=True) for each in garbage),
        Hostile("long header", long_head, 431, "", framed=False),
        Hostile("too large a body", too_large, 413, "OTHER", framed=False),
        Hostile("body that never ends", whole[:-9], 408, "CANCELED", framed=False, rare=True),
        Hostile("body cut off", whole[: len(whole) // 2], None, "CANCELED", "leave"),
        Hostile("head cut off", whole[:40], None, "", "leave"),
        Hostile("nothing sent", b"", None, "", "leave"),
        *(Hostile("left while waiting", each, None, "either", "leave") for each in leavers),
    ]
