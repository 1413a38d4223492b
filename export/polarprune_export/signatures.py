r"""A detached ed25519 signature over the bytes of `manifest.json`: `manifest.json.sig`.

The manifest holds the digest of every other file, so one signature covers the bundle. It is the 64
raw bytes of RFC 8032 over the file as it is, so that nobody needs us to check it:

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin \
        -in manifest.json -sigfile manifest.json.sig

Keys are PEM: PKCS8 for the private one, SubjectPublicKeyInfo for the public one.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune.errors import BundleError, ConfigError
from polarprune.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, read_manifest_bytes
from polarprune.optional_packages import import_package

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PASSWORD_VARIABLE = "POLARPRUNE_KEY_PASSWORD"
SIGNATURE_BYTES = 64
LARGEST_KEY_BYTES = 1 << 16

NOT_SIGNED = "none"
NOT_CHECKED = "signed, not checked"
CHECKED = "checked"


def load_signing_key(path: Path | str) -> "Ed25519PrivateKey":
    """The private key in a PEM file; the password of an encrypted one is in the environment.

    Raises:
        BackendUnavailable: `cryptography` is not installed.
        ConfigError: no such key in there, or it is encrypted and the password is absent or wrong.
    """
    serialization, ed25519, _ = _cryptography()
    content = _read_key(path)
    try:
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except TypeError:  # it is encrypted
            password = os.environ.get(PASSWORD_VARIABLE)
            if not password:
                raise ConfigError(
                    f"the key {path} is encrypted; put its password into {PASSWORD_VARIABLE}"
                ) from None
            key = serialization.load_pem_private_key(content, password=password.encode())
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, the library's own ones included
        raise ConfigError(
            f"{path} holds no private key that can be read ({_words(error)}); "
            "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds another kind of key ({type(key).__name__}); "
            "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
        )
    found: Ed25519PrivateKey = key
    return found


def load_public_key(path: Path | str) -> "Ed25519PublicKey":
    """The public key in a PEM file.

    Raises:
        BackendUnavailable: `cryptography` is not installed.
        ConfigError: no ed25519 public key in there.
    """
    serialization, ed25519, _ = _cryptography()
    content = _read_key(path)
    advice = "write it with: openssl pkey -in key.pem -pubout -out public.pem"
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{path} holds a private key, not the public one; {advice}")
    try:
        key = serialization.load_pem_public_key(content)
    except Exception as error:  # of many kinds, the library's own ones included
        raise ConfigError(
            f"{path} holds no public key that can be read ({_words(error)}); {advice}"
        ) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{path} holds another kind of key ({type(key).__name__}); {advice}")
    found: Ed25519PublicKey = key
    return found


def sign_manifest(folder: Path, key: "Ed25519PrivateKey") -> Path:
    """Writes the signature of the folder's manifest beside it, and returns its path."""
    path = folder / SIGNATURE_NAME
    path.write_bytes(key.sign((folder / MANIFEST_NAME).read_bytes()))
    return path


def read_signed_manifest(folder: Path, public_key: Path | str | None) -> tuple[Manifest, str]:
    """The manifest, and what is known of its signature.

    With a key, nothing is parsed before the signature of those very bytes has been checked.

    Raises:
        BundleError: there is no manifest, or it is none; with a key also: there is no signature, or
            it is of another text or another key.
        BackendUnavailable, ConfigError: of the key.
    """
    key = None if public_key is None else load_public_key(public_key)
    content = read_manifest_bytes(folder)
    if key is not None:
        _check(folder, content, key, str(public_key))
        return Manifest.from_json(content), CHECKED
    signed = (folder / SIGNATURE_NAME).is_file()
    return Manifest.from_json(content), NOT_CHECKED if signed else NOT_SIGNED


def _check(folder: Path, content: bytes, key: "Ed25519PublicKey", source: str) -> None:
    _, _, invalid = _cryptography()
    path = folder / SIGNATURE_NAME
    try:
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{folder} has no signature that can be read ({SIGNATURE_NAME}: {error.strerror}), and "
            f"{source} was to check it; export with --sign, or do not trust this bundle"
        ) from None
    try:
        key.verify(signature, content)
    except invalid:
        raise BundleError(
            f"{path} is not the signature of {MANIFEST_NAME} by the key of {source}: the bundle "
            "was changed or is of somebody else; do not load it"
        ) from None


def _read_key(path: Path | str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(LARGEST_KEY_BYTES)
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be read ({error.strerror}); give a PEM file"
        ) from None


def _cryptography() -> tuple[Any, Any, type[Exception]]:
    """Serialization, ed25519, and what is raised where a signature does not fit."""
    exceptions, serialization, ed25519 = (
        import_package(f"cryptography.{part}", "pip install 'polarprune[sign]'")
        for part in (
            "exceptions",
            "hazmat.primitives.serialization",
            "hazmat.primitives.asymmetric.ed25519",
        )
    )
    return serialization, ed25519, exceptions.InvalidSignature


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
