"""What a bundle says about itself: `manifest.json`, read and written without torch.

The manifest is all that crosses from export to deploy. It names every file with its digest and
size, and `read_verified` is the one way from a name to bytes: it reads the file once and compares
the digest before anything else sees them, because an engine is executable code.
"""

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarprune.errors import BundleError

SCHEMA = 1
"""Raised whenever a reader of the old form would misread the new one."""

MANIFEST_NAME = "manifest.json"


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

    The shorter side is resized to `resize_side`, the centre cropped to height and width, the pixels
    divided by 255, `mean` subtracted, and the rest divided by `std`, channel by channel. Where that
    is `embedded` in the graph, the input is the pixels.
    """

    height: int
    width: int
    resize_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "NCHW"
    color: str = "RGB"
    embedded: bool = False


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
    of the building machine where the engine is tied to them, else None.
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
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST_NAME} is not JSON ({error}); export again") from None
        if not isinstance(document, dict) or "schema" not in document:
            raise BundleError(f"{MANIFEST_NAME} has no schema version; this is not a bundle")
        if document["schema"] != SCHEMA:
            raise BundleError(
                f"{MANIFEST_NAME} has schema version {document['schema']!r}, this polarprune reads "
                f"{SCHEMA}; export again with this version"
            )
        manifest: Manifest = _build(cls, document, "manifest")
        for name in manifest.files:
            _check_plain_name(name)
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
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder} is not a bundle: {MANIFEST_NAME} cannot be read ({error.strerror}); "
            "give a folder written by `polarprune export`"
        ) from None
    return Manifest.from_json(content)


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
    entry = manifest.files.get(name)
    if entry is None:
        listed = ", ".join(sorted(manifest.files))
        raise BundleError(f"{name} is not listed in {folder / MANIFEST_NAME}; it lists {listed}")
    _check_plain_name(name)
    path = folder / name
    try:
        with path.open("rb") as file:
            content = file.read(entry.size + 1)  # one byte more shows a file that has grown
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}), but the manifest lists it; export again"
        ) from None
    if len(content) != entry.size:
        got = path.stat().st_size
        raise BundleError(
            f"{path} has {got} bytes, the manifest says {entry.size}: it is truncated or was "
            "changed after export; export again"
        )
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BundleError(
            f"{path} does not have the sha256 digest in the manifest: it was changed after export; "
            "export again"
        )
    return content


def _check_plain_name(name: str) -> None:
    """A manifest must not lead outside its own folder."""
    if not name or name != Path(name).name or name in {".", "..", MANIFEST_NAME} or "\\" in name:
        raise BundleError(f"{MANIFEST_NAME} lists {name!r}, which is not a plain file name")


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated kind out of parsed JSON; anything else is a BundleError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _build(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:  # `type`: a bool is no int here
        return value
    raise BundleError(
        f"{MANIFEST_NAME}: {where} is of the wrong kind ({type(value).__name__}); export again"
    )


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise BundleError(f"{MANIFEST_NAME}: {where} is not an object; export again")
    kinds = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    # A field with a default is younger than some bundles that are about.
    needed = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    missing = sorted(needed - set(value))
    if unknown or missing:
        words = f"unknown {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise BundleError(f"{MANIFEST_NAME}: {where} has {words}; export again")
    given = [name for name in fields if name in value]
    return kind(**{name: _build(kinds[name], value[name], f"{where}.{name}") for name in given})
