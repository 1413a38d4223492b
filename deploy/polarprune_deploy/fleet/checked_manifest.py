"""The bytes of a bundle's manifest, known to be those of the manifest that was checked."""

from pathlib import Path

from polarprune.errors import BundleError
from polarprune.manifest import MANIFEST_NAME, Manifest, read_manifest_bytes


def checked_manifest_bytes(bundle: Path, manifest: Manifest) -> bytes:
    """What is copied, or whose digest is recorded, for a manifest that was read before.

    Raises:
        BundleError: it has changed since.
    """
    content = read_manifest_bytes(bundle)
    if Manifest.from_json(content) != manifest:
        raise BundleError(f"{bundle / MANIFEST_NAME} changed while it was read; try again")
    return content
