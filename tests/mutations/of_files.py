"""Damage to files as they lie there, and to the manifest."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from tests.mutations.registry import (
    FILES,
    MANIFEST,
    flip_bits,
    forged,
    plain,
    read_document,
    write_document,
)


@plain()
def truncate_a_file(random: Random, folder: Path) -> None:
    path = folder / random.choice(FILES)
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


@plain()
def lengthen_a_file(random: Random, folder: Path) -> None:
    path = folder / random.choice(FILES)
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 100)))


@plain()
def flip_bits_of_a_file(random: Random, folder: Path) -> None:
    path = folder / random.choice(FILES)
    content = path.read_bytes()
    while path.read_bytes() == content:
        flip_bits(random, path, random.randint(1, 9))


@plain("either")
def flip_bits_of_the_manifest(random: Random, folder: Path) -> None:
    flip_bits(random, folder / MANIFEST, random.randint(1, 3))


@plain()
def truncate_the_manifest(random: Random, folder: Path) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size - 2)])


@plain()
def swap_two_files(random: Random, folder: Path) -> None:
    one, two = random.sample([*FILES, MANIFEST], 2)
    (folder / one).rename(folder / "between")
    (folder / two).rename(folder / one)
    (folder / "between").rename(folder / two)


@plain()
def delete_a_file(random: Random, folder: Path) -> None:
    (folder / random.choice([*FILES, MANIFEST])).unlink()


@plain("either")
def duplicate_a_file(random: Random, folder: Path) -> None:
    one, two = random.sample(FILES, 2)
    shutil.copy(folder / one, folder / random.choice(["copy", two]))


@plain("either")
def strange_names_beside(random: Random, folder: Path) -> None:
    names = [b"\xff\xfe", b"a\nb", b"a\x1b[31m", b"x" * 200, "Hühnchen".encode(), b"a\xed\xa0\x80"]
    Path(os.fsdecode(os.fsencode(folder) + b"/" + random.choice(names))).write_bytes(b"x")


@plain()
def lead_out_of_the_folder(random: Random, folder: Path) -> None:
    names = [
        *("../secret", "../../secret", "a/../../secret", "./../secret", "..", ".", ""),
        *("/etc/hostname", "//etc/hostname", "\\\\host\\share", "..\\secret", "a/b", "C:\\x"),
        *("a\0b", "x" * 5000, "a\nb", "\ud800", MANIFEST, "manifest.json.sig", "\x1b[2J"),
    ]
    (folder.parent / "secret").write_bytes(b"secret")
    document = read_document(folder)
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    document["files"][random.choice(names)] = entry
    write_document(folder, document)


@plain()
def replace_by_a_link_out_of_the_folder(random: Random, folder: Path) -> None:
    path = folder / random.choice([*FILES, MANIFEST])
    outside = folder.parent / "outside"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside if random.random() < 0.5 else Path("..") / outside.name)


@plain()
def replace_by_what_is_no_file(random: Random, folder: Path) -> None:
    path = folder / random.choice([*FILES, MANIFEST])
    path.unlink()
    what = random.randrange(6)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.symlink_to("nowhere")
    elif what == 3:
        path.symlink_to(path.name)
    elif what == 4:
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/proc/self/mem")


@plain()
def a_manifest_that_is_no_manifest(random: Random, folder: Path) -> None:
    whole = (folder / MANIFEST).read_text()
    texts: list[bytes] = [
        b"",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"null",
        b"[]",
        b"1" * 5000,
        b'"' + b"x" * 1_000_000 + b'"',
        whole.encode("utf-16"),
        b"\xef\xbb\xbf" + whole.encode() + b"\x00",
        whole.replace('"schema": 1', '"schema": ' + "9" * 4000).encode(),
        whole.replace('"schema": 1', '"schema": "' + "x" * 100_000 + '"').encode(),
        whole.replace('"schema": 1', '"schema": NaN').encode(),
        whole.replace('"schema": 1', '"schema": 1.0').encode(),
        whole.replace('"n": 4', '"n": ' + "9" * 6000).encode(),
        whole.replace('"tolerance": 1e-05', '"tolerance": Infinity').encode(),
        whole.replace('"tolerance": 1e-05', '"tolerance": 1e999').encode(),
        whole.replace('"name": "small"', '"name": "small", "name": "large"').encode(),
        whole.replace('"name": "small"', '"name": "\\ud800"').encode(),
        whole.replace('"model": "small"', '"model": ' + "[" * 900 + "]" * 900).encode(),
    ]
    (folder / MANIFEST).write_bytes(random.choice(texts))


# --- values of the manifest, with digests that fit ---------------------------------------------

# Whatever stands here is for people to read; other words are as good.
WORDS = {"base", "name", "classes", "real_images", "tools", "runs_on", "note", "stage", "against"}
WORDS |= {"data", "measured_with", "version", "gpu", "driver", "flags", "fingerprint"}

ABSURD: list[Any] = [
    *(-1, -2, 0, 10**9, 2**31, 2**40, 2**63, -(2**63), 10**30),
    *(1e308, -1.5, 1e-320, float("nan"), float("inf"), float("-inf")),
    *("", "x" * 1_000_000, "../../x", "a\nb", "\x00", "\ud800", "float16", "tensorrt", "0" * 64),
    *(None, True, False, [], {}, [[[[[[]]]]]], {"a": {"b": {}}}, [1] * 100_000, [10**9] * 4),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a document."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found += _places(inner, (*path, i))
    return found


def _put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        document = document[step]
    document[path[-1]] = value


def _absurd_manifest(random: Random, folder: Path, *, words: bool) -> None:
    document = read_document(folder)
    places = [p for p in _places(document) if bool(WORDS & set(map(str, p))) is words]
    # Sizes and digests would be made to fit again.
    places = [p for p in places if p[0] != "files" or len(p) < 3]
    path = random.choice(places)
    was = json.dumps(document)
    while json.dumps(document) == was:
        _put(document, path, random.choice(ABSURD))
    write_document(folder, document)


@forged()
def an_absurd_value_in_the_manifest(random: Random, folder: Path) -> None:
    _absurd_manifest(random, folder, words=False)


@forged("either")
def an_absurd_word_in_the_manifest(random: Random, folder: Path) -> None:
    _absurd_manifest(random, folder, words=True)


# Bundles of older versions lack these, or they may be unknown.
YOUNGER = {"flags", "fingerprint", "gpu", "driver"}


@forged()
def a_value_too_many_or_too_few(random: Random, folder: Path) -> None:
    document = read_document(folder)
    place = random.choice([document, document["engine"], document["batch"], document["inputs"][0]])
    if random.random() < 0.5:
        place[random.choice(["x", "", "__class__", "\ud800", "y" * 100_000])] = 1
    else:
        del place[random.choice([key for key in place if key not in YOUNGER])]
    write_document(folder, document)


@plain()
def an_absurd_size_or_digest(random: Random, folder: Path) -> None:
    document = read_document(folder)
    entry = document["files"][random.choice(FILES)]
    if random.random() < 0.7:
        entry["size"] = random.choice([-1, 0, 1, 10**10, 2**40, 2**62, 2**63, 10**30, 5.0])
    else:
        entry["sha256"] = random.choice(["", "0" * 64, "x" * 10**6, "\ud800", "0" * 63 + "\n"])
    write_document(folder, document)
