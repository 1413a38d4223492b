"""`polarprune deploy triton`: a bundle as a model in a repository of Triton Inference Server.

    repository/small/config.pbtxt
    repository/small/labels.txt
    repository/small/1/model.onnx (or model.plan)

Other models and other versions in the repository stay as they are. Everything is prepared beside
it and moved in, a model or a version at a time, so a server that watches never sees half of one.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polarprune
from polarprune.errors import BundleError, ConfigError, Refused, quote
from polarprune.manifest import Manifest, is_bundle
from polarprune.option_values import check_range
from polarprune.runs.run_folder import RUN_FILE
from polarprune_deploy.fleet.checked_manifest import checked_manifest_bytes
from polarprune_deploy.fleet.triton_config import (
    CONFIG_FILE,
    LABELS_FILE,
    PREFIX,
    TritonOptions,
    class_labels,
    model_config,
    parse_config,
    print_config,
)
from polarprune_deploy.fleet.triton_source import TritonSource, choose_source
from polarprune_deploy.fleet.whole_folders import (
    check_outside,
    choose_workshop,
    is_empty_folder,
    scratch_folder,
    whole_folder,
)

if TYPE_CHECKING:
    from polarprune_export.bundle_reading import BundleModel

LARGEST_VERSION = (1 << 31) - 1
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
LARGEST_CONFIG = 1 << 24
"""Bytes."""


def write_triton_repository(
    bundle: Path | str,
    out: Path | str,
    *,
    name: str | None = None,
    version: int | None = None,
    options: TritonOptions | None = None,
    public_key: Path | str | None = None,
) -> dict[str, Any]:
    """Adds the bundle to the repository and returns the JSON object of `deploy triton`.

    Args:
        out: the repository: absent, empty, or one with models in it.
        name: of the model; None takes the bundle's.
        version: a whole number from 1; None takes 1, or the next one of a model that is there.
        options: what the bundle does not say.
        public_key: a PEM file; the bundle must be signed by this ed25519 key.

    Raises:
        ConfigError: an option out of range, or one that does not go with the bundle.
        BundleError: the bundle does not hold.
        Refused: something else is in the place.
        PolarpruneError: it cannot be written.
    """
    from polarprune_export.bundle_reading import read_bundle_model

    options = options or TritonOptions()
    options.check()
    check_range("--version", version, 1, LARGEST_VERSION)
    bundle, out = Path(bundle), Path(out)
    read = read_bundle_model(bundle, public_key)
    name = check_model_name(name, read.manifest.name)
    source = choose_source(bundle, read, options.backend, options.device, options.accelerate)
    config = model_config(name, read.manifest, source, options)
    labels = class_labels(read.manifest, source)
    origin = _origin(bundle, read, source)
    _check_repository(out, bundle)
    model, remarks = out / name, list(source.remarks)
    if not model.exists() or is_empty_folder(model):
        version = version or 1
        _add_model(out, config, labels, version, origin, source)
    else:
        known, taken = _check_model(model, config, labels), _versions(model)
        version = _choose_version(model, taken, version)
        _add_version(out, known, version, origin, source)
        if version < max(taken, default=0):
            remarks.append(f"Triton serves the highest version: {max(taken)}, not {version}.")
    return {
        "repository": str(out),
        "model": name,
        "version": version,
        "file": str(model / str(version) / source.file),
        "config": str(model / CONFIG_FILE),
        "backend": source.backend,
        "max_batch_size": config.max_batch_size,
        "precision": read.manifest.precision,
        "runs_on": source.runs_on,
        "remarks": [*remarks, *_warm_up_remarks(config)],
    }


def _warm_up_remarks(config: Any) -> list[str]:
    if config.model_warmup:
        return []
    return ["There is no warm-up: an input has a free size that the bundle does not say."]


def check_model_name(name: str | None, bundle_name: str) -> str:
    """The name that was asked for, or the bundle's.

    Raises:
        ConfigError: it cannot be that of a folder and a part of an address.
    """
    chosen = bundle_name if name is None else name
    if not MODEL_NAME.fullmatch(chosen):
        whose = "the bundle's name" if name is None else "--name"
        raise ConfigError(
            f"{whose} is {quote(chosen)}; give --name with up to 128 letters, digits, '.', '_' and "
            "'-', the first a letter or digit"
        )
    return chosen


def _choose_version(model: Path, taken: list[int], version: int | None) -> int:
    """The one that was asked for, or the next one."""
    if version in taken:
        raise Refused(
            f"{model} has a version {version} already; give another --version, or none to take the "
            "next one"
        )
    return version or max(taken, default=0) + 1


def _origin(bundle: Path, read: "BundleModel", source: TritonSource) -> dict[str, str]:
    """Where a version comes from: the manifest's digest covers all files, the certificate too."""
    return {
        "manifest_sha256": _digest(checked_manifest_bytes(bundle, read.manifest)),
        "model_sha256": _digest(source.content),
        "certificate": _certificate(read.manifest),
        "signature": read.signature,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _certificate(manifest: Manifest) -> str:
    """The chain in a line: how many links, and the last one."""
    passed = [link for link in manifest.certificate if link.passed]
    if not passed:
        return "none"
    last = passed[-1]
    error = "" if last.max_rel_error is None else f", relative error {last.max_rel_error:.1e}"
    return f"links that hold: {len(passed)}; the last: {last.stage} against {last.against}{error}"


def _check_repository(out: Path, bundle: Path) -> None:
    check_outside(out, bundle)
    if out.exists() and not out.is_dir():
        raise Refused(f"{out} is a file; give a folder for the repository")
    for kind, is_one in (("bundle", is_bundle(out)), ("run", (out / RUN_FILE).is_file())):
        if is_one:
            raise Refused(f"{out} is a {kind}; give another folder for the repository")


def _check_model(model: Path, config: Any, labels: str | None) -> Any:
    """The configuration of the model that is there, if the bundle is a version of the same."""
    if not model.is_dir():
        raise Refused(f"{model} is a file; give another --name")
    known = _read_config(model)
    for message in (mine := type(config)(), theirs := type(config)()):
        message.CopyFrom(config if message is mine else known)
        for key in [key for key in message.parameters if _is_of_a_version(key)]:
            del message.parameters[key]
    differing = [
        field.name
        for field in config.DESCRIPTOR.fields
        if _set_fields(mine).get(field.name) != _set_fields(theirs).get(field.name)
    ]
    if differing:
        raise Refused(
            f"{model / CONFIG_FILE} is not what this bundle needs ({', '.join(differing)} "
            f"{'differs' if len(differing) == 1 else 'differ'}); give another --name, or the "
            "options that this model was written with"
        )
    if labels is not None and _read_text(model / LABELS_FILE) != labels:
        raise Refused(f"{model / LABELS_FILE} names other classes; give another --name")
    return known


def _set_fields(message: Any) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _read_config(model: Path) -> Any:
    path = model / CONFIG_FILE
    text = _read_text(path)
    if text is None:
        raise Refused(f"{model} has no {CONFIG_FILE} that can be read; give another --name")
    try:
        return parse_config(text)
    except BundleError as error:
        raise Refused(f"{path}: {error}; give another --name") from None


def _read_text(path: Path) -> str | None:
    """The file's text; None where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_CONFIG).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _versions(model: Path) -> list[int]:
    names = (place.name for place in model.iterdir() if place.is_dir())
    return [int(name) for name in names if name.isascii() and name.isdecimal()]


def _add_model(
    out: Path,
    config: Any,
    labels: str | None,
    version: int,
    origin: dict[str, str],
    source: TritonSource,
) -> None:
    with whole_folder(out / config.name, choose_workshop(out)) as place:
        _write_version(place / str(version), source)
        if labels is not None:
            (place / LABELS_FILE).write_text(labels, encoding="utf-8")
        (place / CONFIG_FILE).write_text(_text(config, version, origin), encoding="utf-8")


def _add_version(
    out: Path, known: Any, version: int, origin: dict[str, str], source: TritonSource
) -> None:
    model = out / known.name
    place = model / str(version)
    with scratch_folder(place, choose_workshop(out)) as scratch:
        fresh, config = scratch / place.name, scratch / CONFIG_FILE
        _write_version(fresh, source)
        config.write_text(_text(known, version, origin), encoding="utf-8")
        fresh.rename(place)
        try:
            os.replace(config, model / CONFIG_FILE)
        except OSError:
            shutil.rmtree(place)
            raise


def _write_version(place: Path, source: TritonSource) -> None:
    place.mkdir()
    (place / source.file).write_bytes(source.content)


def _text(config: Any, version: int, origin: dict[str, str]) -> str:
    for key, value in origin.items():
        config.parameters[f"{PREFIX}{version}.{key}"].string_value = value
    comment = f"Written by polarprune {polarprune.__version__}: polarprune deploy triton"
    return print_config(config, comment)


def _is_of_a_version(parameter: str) -> bool:
    return re.match(rf"{re.escape(PREFIX)}\d+\.", parameter) is not None
