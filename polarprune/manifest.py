"""What a bundle says about itself: `manifest.json`, read and written without torch.

The manifest is all that crosses from export to deploy. It names every file with its digest and
size, and `read_verified` is the one way from a name to bytes: it reads the file once and compares
the digest before anything else sees them, because an engine is executable code.
"""

import dataclasses
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from polarprune.errors import BundleError, quote
from polarprune.files.strict_json import parse_strict
from polarprune.files.typed_json import build_typed
from polarprune.manifest_checks import check_manifest
from polarprune.runs.run_folder import RUN_FILE

SCHEMA = 1
"""Raised whenever a reader of the old form would misread the new one."""

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.json.sig"
"""A detached signature of the manifest, where there is one (`polarprune_export.signatures`)."""

LARGEST_MANIFEST = 1 << 24
"""Bytes: room for 20,000 classes with long names."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle; `size` is in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> "FileEntry":
        """The entry of a file with this content."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A free dimension, the batch, is -1 in `shape`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the input.

    An image that says how it was turned (EXIF) is turned upright. The shorter side is resized to
    `resize_side`, the longer one to `int(resize_side * longer / shorter)`, by bilinear
    `interpolation` that looks at all pixels when it shrinks (`antialias`, as Pillow does). Height
    and width are cropped out of the centre (from `round((side - crop) / 2)` on), the pixels
    multiplied by `scale`, `mean` subtracted, and the rest divided by `std`, channel by channel.
    Where that is `embedded` in the graph, the input is the pixels before the multiplication.
    """

    height: int
    width: int
    resize_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "NCHW"
    color: str = "RGB"
    embedded: bool = False
    exif_transpose: bool = True
    interpolation: str = "bilinear"
    antialias: bool = True
    crop_mode: str = "center"
    scale: float = 1 / 255


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes an engine accepts, and the one it is tuned for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class EngineInfo:
    """The engine and what it is tied to.

    `compute_capabilities` are the GPU generations it holds code for; `gpu` and `driver` are those
    of the building machine where the engine is tied to them, else None. `flags` are the builder's
    options ("version", "ampere+", "same-cc"); `fingerprint` is the sha256 of what it was built
    from, the ONNX file included (`polarprune_export.engine_description`).
    """

    file: str
    runtime: str
    version: str
    runs_on: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[BatchProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gpu: str | None = None
    driver: str | None = None
    flags: tuple[str, ...] = ()
    fingerprint: str | None = None


@dataclass(frozen=True)
class CertificateLink:
    """One comparison of the certificate chain: `stage` was run against `against`.

    `inputs` is "random" or "real", `n` how many images. `max_rel_error` is the largest error over
    the largest reference value. `passed` is None for a comparison that was not made; `note` then
    says why.
    """

    stage: str
    against: str
    inputs: str | None
    n: int
    tolerance: float | None
    max_abs_error: float | None
    max_rel_error: float | None
    top1_agreement: float | None
    passed: bool | None
    note: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """The exported model over all `n` images of a test split, 0..1.

    Of a classifier `top1`, of a segmentation `miou` and `dice`; the others are None.
    """

    data: str
    n: int
    top1: float | None
    measured_with: str
    miou: float | None = None
    dice: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """Those that there are."""
        found = {"top1": self.top1, "miou": self.miou, "dice": self.dice}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Manifest:
    """A bundle's description; `files` leaves out the manifest itself.

    `preprocessing` is None and `classes` empty where they are not known. `base` records what the
    network was made from, as words for the reader. `accuracy_before` is that of the float32 network
    where it was measured; `kept_float32` names operators that a lower precision left as they were.
    """

    name: str
    precision: str
    base: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    batch: BatchProfile
    engine: EngineInfo | None
    certificate: tuple[CertificateLink, ...]
    real_images: str
    accuracy: Accuracy | None
    tools: dict[str, str]
    files: dict[str, FileEntry]
    schema: int = SCHEMA
    accuracy_before: Accuracy | None = None
    kept_float32: tuple[str, ...] = ()
    kept_because: str | None = None

    @property
    def runs_on(self) -> str:
        """Where the network can run, in words."""
        if self.engine is not None:
            return self.engine.runs_on
        if self.precision == "bf16":  # Conv in bfloat16 has no kernel on its CPU provider
            return "GPUs, with ONNX Runtime's CUDA provider or an engine; not on a CPU"
        return "any machine with ONNX Runtime"

    def to_json(self) -> str:
        """The text of `manifest.json`; equal manifests give equal bytes."""
        document = dataclasses.asdict(self)
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The manifest in a text.

        Raises:
            BundleError: the text is no manifest, or one of another schema version.
        """
        try:
            document = parse_strict(text, LARGEST_MANIFEST)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"{MANIFEST_NAME} is not JSON ({reason}); export again") from None
        if not isinstance(document, dict) or "schema" not in document:
            raise BundleError(f"{MANIFEST_NAME} has no schema version; this is not a bundle")
        if type(document["schema"]) is not int or document["schema"] != SCHEMA:
            raise BundleError(
                f"{MANIFEST_NAME} has schema version {quote(document['schema'])}, this polarprune "
                f"reads {SCHEMA}; export again with this version"
            )
        try:
            manifest: Manifest = build_typed(cls, document, "manifest")
        except ValueError as error:
            raise BundleError(f"{MANIFEST_NAME}: {error}; export again") from None
        for name in manifest.files:
            _check_plain_name(name)
        check_manifest(manifest)
        return manifest


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Writes `manifest.json` into the folder and returns its path."""
    path = folder / MANIFEST_NAME
    path.write_bytes(manifest.to_json().encode())
    return path


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in the folder.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    return Manifest.from_json(read_manifest_bytes(folder))


def read_manifest_bytes(folder: Path) -> bytes:
    """The manifest as it is on disk, not parsed: what a signature is of.

    Raises:
        BundleError: there is none, or it cannot be read, or it is too large to be one.
    """
    try:
        with open_inside(folder, MANIFEST_NAME) as file:
            content = file.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        refuse_run(folder)
        raise BundleError(
            f"{folder} is not a bundle: {MANIFEST_NAME} cannot be read ({error.strerror}); "
            "give a folder written by `polarprune export`"
        ) from None
    if len(content) > LARGEST_MANIFEST:
        raise BundleError(
            f"{folder / MANIFEST_NAME} has more than {LARGEST_MANIFEST} bytes; export again"
        )
    return content


def refuse_run(folder: Path) -> None:
    """Say what to do with a training run where a bundle is wanted.

    Raises:
        BundleError: it is a run.
    """
    if (folder / RUN_FILE).is_file():
        raise BundleError(
            f"{folder} is a run and not a bundle; write its bundle with: "
            f"polarprune export {folder} --out BUNDLE"
        ) from None


def is_bundle(folder: Path) -> bool:
    """Whether the folder holds a manifest, whole or not."""
    return (folder / MANIFEST_NAME).is_file()


def read_verified(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The content of one file of the bundle, known to be what was exported.

    The file is opened once, and the bytes that were hashed are the bytes returned: nobody can
    exchange the file between the check and the use.

    Raises:
        BundleError: the file is not listed, missing, of another size or of another digest.
    """
    return b"".join(_verified_pieces(folder, manifest, name, whole=True))


def check_digest(folder: Path, manifest: Manifest, name: str) -> None:
    """`read_verified` of a file that need not be held in memory.

    Raises:
        BundleError: the file is not listed, missing, of another size or of another digest.
    """
    for _ in _verified_pieces(folder, manifest, name, whole=False):
        pass


def _verified_pieces(
    folder: Path, manifest: Manifest, name: str, *, whole: bool
) -> Iterator[bytes]:
    """The content, in one piece or in many; raises at the end of what does not fit."""
    entry = manifest.files.get(name)
    if entry is None:
        listed = ", ".join(sorted(manifest.files)[:8])
        raise BundleError(f"{name} is not listed in {folder / MANIFEST_NAME}; it lists {listed}")
    _check_plain_name(name)
    path = folder / name
    digest, got = hashlib.sha256(), 0
    try:
        with open_inside(folder, name) as file:
            # The size first: what the manifest says must not decide how much memory is taken.
            size = os.fstat(file.fileno()).st_size
            left = entry.size + 1 if size == entry.size else 0  # one more shows one that has grown
            while left > 0 and (piece := file.read(left if whole else min(left, PIECE_BYTES))):
                digest.update(piece)
                got, left = got + len(piece), left - len(piece)
                yield piece
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}), but the manifest lists it; export again"
        ) from None
    if not got == size == entry.size:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {entry.size}: it is truncated or was "
            "changed after export; export again"
        )
    if digest.hexdigest() != entry.sha256:
        raise BundleError(
            f"{path} does not have the sha256 digest in the manifest: it was changed after export; "
            "export again"
        )


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Opens a file of the folder for reading.

    Raises:
        OSError: it is absent or cannot be read; it leads out of the folder; it is no file, but a
            device or a pipe (which would be waited for).
    """
    path = folder / name
    if path.is_symlink() and Path(os.path.realpath(path)).parent != folder.resolve():
        raise OSError(errno.ELOOP, "a link out of the folder", str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _check_plain_name(name: str) -> None:
    """A manifest must not lead outside its own folder."""
    taken = {".", "..", MANIFEST_NAME, SIGNATURE_NAME}
    plain = name == Path(name).name and name not in taken and "\\" not in name
    if not name or not plain or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise BundleError(f"{MANIFEST_NAME} lists {quote(name)}, which is not a plain file name")
