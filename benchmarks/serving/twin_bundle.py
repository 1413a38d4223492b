"""A second bundle of equal signature with other weights: cheap to make, and told apart at once."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from polarprune.errors import ConfigError
from polarprune.manifest import FileEntry, read_manifest, read_verified, write_manifest
from polarprune_export.bundle_reading import ONNX_NAME
from polarprune_export.onnx_session import open_session, run_session
from polarprune_export.parity_samples import (
    SAMPLES_NAME,
    pack_samples,
    restore_pixels,
    unpack_samples,
)
from polarprune_export.probes import Probe

SCALE = 1.25
CHUNK = 64


def write_twin(bundle: Path, folder: Path) -> Path:
    """Write the twin: its last layer's outputs are scaled, and each is at its neighbour's place.

    Its stored samples are computed anew; the certificate of the first does not go with it.

    Raises:
        ConfigError: the last layer is no linear one.
    """
    manifest = read_manifest(bundle)
    model = onnx.load_model_from_string(read_verified(bundle, manifest, ONNX_NAME))
    _turn_head(model)
    content = model.SerializeToString()
    session = open_session(content, threads=1)
    stored = unpack_samples(read_verified(bundle, manifest, SAMPLES_NAME), manifest)
    steps = manifest.preprocessing
    probes = [
        Probe(
            kind,
            restore_pixels(images, steps) if kind == "real" and steps is not None else None,
            images,
            run_session(session, images, chunk=CHUNK),
        )
        for kind, (images, _) in stored.items()
    ]
    files = {ONNX_NAME: content, SAMPLES_NAME: pack_samples(probes)}
    folder.mkdir(parents=True)
    for name, written in files.items():
        (folder / name).write_bytes(written)
    entries = {name: FileEntry.of(written) for name, written in files.items()}
    write_manifest(
        dataclasses.replace(manifest, files=entries, certificate=(), engine=None), folder
    )
    return folder


def _turn_head(model: onnx.ModelProto) -> None:
    weights = {initializer.name: initializer for initializer in model.graph.initializer}
    head = model.graph.node[-1]
    if head.op_type != "Gemm" or any(name not in weights for name in head.input[1:]):
        raise ConfigError(
            f"a twin is made of networks that end in a Gemm, this ends in a {head.op_type}"
        )
    for name in head.input[1:]:
        values = numpy_helper.to_array(weights[name])
        turned = np.roll(values, 1, axis=0) * np.float32(SCALE)
        weights[name].CopyFrom(numpy_helper.from_array(turned, name))
