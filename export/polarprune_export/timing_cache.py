"""What enterprise TensorRT measured of its kernels, kept between builds.

One file for each TensorRT version and GPU, in the user's cache folder. It only saves time, so
nothing about it is ever an error: what cannot be read or written is named in a note and left out.
TensorRT-RTX times no kernels when it builds; asking it for a cache makes it look for a GPU.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

_DIGEST_BYTES = 32


def cache_path(version: str, gpu: str) -> Path:
    """The file for this TensorRT and GPU, under XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores a relative path.
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    key = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{gpu}")
    return base / "polarprune" / f"{key}.timing"


def load_timings(config: Any, path: Path) -> str | None:
    """Gives the builder what was kept, or an empty cache; returns a note where it was unusable."""
    note = None
    try:
        kept = _read(path)
    except (OSError, ValueError) as error:
        kept, note = b"", f"timing cache {path} ignored ({_reason(error)})"
    cache = _make_cache(config, kept)
    if cache is None and kept:
        note = f"timing cache {path} ignored (TensorRT does not accept it)"
        cache = _make_cache(config, b"")
    if cache is None:
        return note or "TensorRT made no timing cache"
    # False: a cache of another GPU or version is refused rather than believed.
    if config.set_timing_cache(cache, False) is False:
        note = f"timing cache {path} ignored (it is of another GPU or version)"
        cache = _make_cache(config, b"")
        if cache is not None:
            config.set_timing_cache(cache, False)
    return note


def save_timings(config: Any, path: Path) -> str | None:
    """Keeps what the build measured; whole or not at all. Returns a note where it could not."""
    cache = config.get_timing_cache()
    if cache is None:
        return None
    content = bytes(cache.serialize())
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
        return f"timing cache {path} not written ({_reason(error)})"
    return None


def _read(path: Path) -> bytes:
    """The cache's bytes; the digest in front of them shows a file that was cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    digest, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(kept).digest() != digest:
        raise ValueError("it is damaged")
    return kept


def _make_cache(config: Any, content: bytes) -> Any:
    try:
        return config.create_timing_cache(content)
    except (RuntimeError, ValueError, TypeError):  # how a binding reports a null pointer
        return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
