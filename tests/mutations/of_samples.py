"""Damage to the stored samples, with digests that fit."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.mutations.registry import (
    SAMPLES,
    flip_bits,
    forged,
)
from tests.small_bundles import ENGINE


def _split(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / SAMPLES).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _join(folder: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / SAMPLES).write_bytes(struct.pack("<Q", len(text)) + text + data)


@forged()
def an_absurd_header_length(random: Random, folder: Path) -> None:
    content = (folder / SAMPLES).read_bytes()
    length = random.choice([0, 1, 2**32, 2**63, 2**64 - 1, len(content), len(content) + 1])
    (folder / SAMPLES).write_bytes(struct.pack("<Q", length) + content[8:])


@forged()
def a_header_that_is_none(random: Random, folder: Path) -> None:
    header, data = _split(folder)
    texts = [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff" * 10, b"{}", b'{"a":1}']
    texts.append(json.dumps(header).encode().replace(b'"F32"', b'"F32", "dtype": "F64"', 1))
    _join(folder, random.choice(texts), data)


@forged()
def an_absurd_value_in_the_header(random: Random, folder: Path) -> None:
    header, data = _split(folder)
    tensor = header[random.choice(list(header))]
    field = random.choice(["dtype", "shape", "data_offsets"])
    if field == "dtype":
        types = ["F64", "BF16", "F16", "F8_E4M3", "I64", "BOOL", "U8", "F32", "F99", "", 1, None]
        types.remove(tensor["dtype"])
        tensor["dtype"] = random.choice(types)
    elif field == "shape":
        shapes = [[], [0], [10**9, 10**9], [2**62, 4], [-1, 3], [50_000, 50_000], 1, None, ["a"]]
        tensor["shape"] = random.choice(shapes)
    else:
        offsets = [[0, 0], [0, 2**62], [-1, 4], [4, 0], [0, 4], [0], None, [2**63, 2**64 - 1]]
        offsets = [pair for pair in offsets if pair != tensor["data_offsets"]]
        tensor["data_offsets"] = random.choice(offsets)
    _join(folder, header, data)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return dict(load((folder / SAMPLES).read_bytes()))


@forged()
def samples_that_do_not_fit(random: Random, folder: Path) -> None:
    from safetensors.numpy import save

    arrays = _arrays(folder)
    kind = random.choice(["random", "real"])
    inputs = "random_inputs" if kind == "random" else "real_pixels"
    output = f"{kind}_output_0"
    what = random.randrange(10)
    if what == 0:
        del arrays[random.choice(["random_inputs", output])]
    elif what == 1:  # nothing is compared: vacuously equal
        arrays[inputs], arrays[output] = arrays[inputs][:0], arrays[output][:0]
    elif what == 2:
        arrays[inputs] = arrays[inputs][:1]
    elif what == 3:
        arrays[inputs] = arrays[inputs].astype(np.float64)
    elif what == 4:
        arrays[inputs] = arrays[inputs].reshape(-1)
    elif what == 5:
        arrays[output] = arrays[output][:, :1]
    elif what == 6:
        arrays[f"{kind}_output_1"] = arrays[output]
    elif what == 7:
        arrays[output] = arrays[output].astype(np.int64)
    elif what == 8:
        arrays[output] = np.full_like(arrays[output], random.choice([np.nan, np.inf, 0]))
    else:
        arrays[inputs] = np.repeat(arrays[inputs], 2, axis=2)
    (folder / SAMPLES).write_bytes(save(arrays))


@forged("either")
def flipped_bits_of_the_samples(random: Random, folder: Path) -> None:
    flip_bits(random, folder / SAMPLES, random.choice([1, 2, 5, 50]))


@forged("pass")
def another_engine(random: Random, folder: Path) -> None:
    (folder / ENGINE).write_bytes(random.randbytes(random.choice([0, 1, 512])))
