"""`polarprune deploy kserve`: a folder with all that Docker and KServe need for a bundle.

kserve/inferenceservice.yaml
kserve/Dockerfile, kserve/bundles/    the image of `polarprune serve`, or
kserve/model-repository/              with --runtime triton
"""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import polarprune
from polarprune.errors import ConfigError, Refused
from polarprune.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    read_verified,
)
from polarprune.optional_packages import import_package
from polarprune_deploy.fleet.checked_manifest import checked_manifest_bytes
from polarprune_deploy.fleet.kserve_service import KServeOptions, inference_service, service_name
from polarprune_deploy.fleet.server_image import ServerImage, check_wheel_name, dockerfile
from polarprune_deploy.fleet.triton_config import TritonOptions
from polarprune_deploy.fleet.triton_repository import MODEL_NAME, write_triton_repository
from polarprune_deploy.fleet.whole_folders import check_outside, whole_folder

SERVICE_FILE, DOCKERFILE = "inferenceservice.yaml", "Dockerfile"
BUNDLES_FOLDER, REPOSITORY_FOLDER = "bundles", "model-repository"
BUILD_WHEEL = "pip wheel --no-deps --wheel-dir dist ."
"""In a clone."""
DIGITS_OF_TAG = 12
"""Of the manifest's digest in an image's tag: other bundles are other images."""


def write_kserve(
    bundle: Path | str,
    out: Path | str,
    options: KServeOptions | None = None,
    *,
    wheel: Path | str | None = None,
    public_key: Path | str | None = None,
) -> dict[str, Any]:
    """Writes the folder and returns the JSON object of `deploy kserve`.

    Args:
        bundle: its folder.
        out: absent or empty.
        options: what the bundle does not say.
        wheel: polarprune's wheel for the image; None takes this version from where pip looks.
        public_key: a PEM file; the bundle must be signed by this ed25519 key.

    Raises:
        ConfigError: an option out of range, or one that does not go with the bundle.
        BundleError: the bundle does not hold.
        BackendUnavailable: PyYAML is not installed.
        Refused: something else is in the place, or the bundle cannot run so.
        PolarpruneError: it cannot be written.
    """
    from polarprune_export.bundle_reading import read_bundle_model

    options = options or KServeOptions()
    options.check()
    wheel = _check_wheel(wheel, options)
    yaml = import_package("yaml", "pip install 'polarprune[serve]'")
    bundle, out = Path(bundle), Path(out)
    read = read_bundle_model(bundle, public_key)
    check_outside(out, bundle)
    content = checked_manifest_bytes(bundle, read.manifest)
    digest = hashlib.sha256(content).hexdigest()
    name = options.name or service_name(read.manifest.name)
    model, image = _model_name(read.manifest), None
    with whole_folder(out) as place:
        if options.runtime == "triton":
            options = replace(options, gpus=_gpus(read.manifest, options))
            remarks = _add_repository(bundle, place, model, options, public_key)
        else:
            image = options.image or _image_name(name, digest, options)
            remarks = _add_image(place, read.manifest, options, wheel)
            _copy_bundle(bundle, place / BUNDLES_FOLDER / model, read.manifest, content)
        document = inference_service(name, image, digest, options)
        (place / SERVICE_FILE).write_text(_print(yaml, document), encoding="utf-8")
    return {
        "folder": str(out),
        "service": name,
        "manifest": str(out / SERVICE_FILE),
        "model": model,
        "runtime": options.runtime,
        "image": image,
        "dockerfile": None if image is None else str(out / DOCKERFILE),
        "storage_uri": options.storage_uri,
        "precision": read.manifest.precision,
        "steps": _steps(out, image, options),
        "remarks": remarks,
    }


def _model_name(manifest: Manifest) -> str:
    """What clients ask for: the bundle's name where that can be a folder's and an address's."""
    return manifest.name if MODEL_NAME.fullmatch(manifest.name) else service_name(manifest.name)


def _print(yaml: Any, document: dict[str, Any]) -> str:
    comment = f"# Written by polarprune {polarprune.__version__}: polarprune deploy kserve\n"
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return comment + text


def _check_wheel(wheel: Path | str | None, options: KServeOptions) -> Path | None:
    if wheel is None:
        return None
    if options.runtime == "triton":
        raise ConfigError(
            "--wheel is for the embedded server's image, not for --runtime triton; leave it out"
        )
    wheel = Path(wheel)
    check_wheel_name(wheel.name)
    if not wheel.is_file():
        raise ConfigError(f"--wheel: {wheel} does not exist; build it with: {BUILD_WHEEL}")
    if not is_zipfile(wheel):
        raise ConfigError(f"--wheel: {wheel} is no wheel; build it with: {BUILD_WHEEL}")
    return wheel


def _add_image(
    place: Path, manifest: Manifest, options: KServeOptions, wheel: Path | None
) -> list[str]:
    """The Dockerfile and the wheel; returns what the user must know."""
    if manifest.precision == "bf16":
        raise Refused(
            "this bundle is in bf16, which ONNX Runtime does not run on a CPU, where the embedded "
            "server's image runs; give --runtime triton, or export another precision"
        )
    remarks = []
    if manifest.engine is not None:
        remarks.append("The image runs the ONNX file, on CPUs; the bundle's engine is not used.")
    if wheel is None:
        remarks.append(
            f"The Dockerfile takes polarprune {polarprune.__version__} from where pip looks; give "
            "--wheel to have a wheel of yours installed."
        )
    else:
        shutil.copyfile(wheel, place / wheel.name)
    if options.image is None:
        remarks.append(
            "The image's name has no registry to push it to; give --image registry/name:tag for "
            "one that the cluster pulls from."
        )
    image = ServerImage(
        drain_seconds=options.drain_seconds,
        wheel=None if wheel is None else wheel.name,
        bundles=BUNDLES_FOLDER if options.storage_uri is None else None,
    )
    (place / DOCKERFILE).write_text(dockerfile(image), encoding="utf-8")
    return remarks


def _copy_bundle(bundle: Path, place: Path, manifest: Manifest, content: bytes) -> None:
    """The files that the manifest lists, each of them verified, and no other."""
    place.mkdir(parents=True)
    for name in manifest.files:
        (place / name).write_bytes(read_verified(bundle, manifest, name))
    (place / MANIFEST_NAME).write_bytes(content)
    if (bundle / SIGNATURE_NAME).is_file():
        shutil.copyfile(bundle / SIGNATURE_NAME, place / SIGNATURE_NAME)


def _gpus(manifest: Manifest, options: KServeOptions) -> int:
    """Of a replica of Triton: what was asked for, else what the bundle needs."""
    needs = manifest.precision == "bf16" or (
        manifest.engine is not None and manifest.engine.runtime == "tensorrt"
    )
    if options.gpus == 0 and needs:
        raise Refused(
            "this bundle runs on GPUs alone; leave --gpus out, or export it again in fp32"
        )
    return int(needs) if options.gpus is None else options.gpus


def _add_repository(
    bundle: Path, place: Path, model: str, options: KServeOptions, public_key: Path | str | None
) -> list[str]:
    """The model repository; returns what the user must know."""
    answer = write_triton_repository(
        bundle,
        place / REPOSITORY_FOLDER,
        name=model,
        options=TritonOptions(device="cuda" if options.gpus else "cpu"),
        public_key=public_key,
    )
    remarks: list[str] = answer["remarks"]
    return remarks


def _image_name(name: str, digest: str, options: KServeOptions) -> str:
    if options.storage_uri is None:
        return f"{name}:{digest[:DIGITS_OF_TAG]}"
    return f"polarprune-serve:{polarprune.__version__}"


def _steps(out: Path, image: str | None, options: KServeOptions) -> list[str]:
    """What is left to do, in commands where they are known."""
    steps = []
    if image is not None:
        steps += [f"docker build --tag {image} {out}", f"docker push {image}"]
    if options.storage_uri is not None:
        folder = REPOSITORY_FOLDER if image is None else BUNDLES_FOLDER
        steps.append(f"copy what is in {out / folder} to {options.storage_uri}")
    return [*steps, f"kubectl apply --filename {out / SERVICE_FILE}"]
