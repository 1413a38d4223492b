"""Signed bundles: what a digest cannot show, a signature does."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, fx

from polarprune.errors import BackendUnavailable, BundleError, ConfigError, PolarpruneError
from polarprune.manifest import FileEntry, Manifest, read_manifest, write_manifest
from polarprune_export import verify_bundle, write_bundle
from polarprune_export.bundle import BundleContents
from polarprune_export.signatures import load_signing_key, sign_manifest

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

SIGNATURE = "manifest.json.sig"
ENGINE = "model.tensorrt_rtx.engine"


def private_pem(key: ed25519.Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def public_pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key, in files."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(private_pem(key))
    public.write_bytes(public_pem(key))
    return private, public


@pytest.fixture
def signed(bundle: Path, keys: tuple[Path, Path]) -> Path:
    sign_manifest(bundle, load_signing_key(keys[0]))
    return bundle


@pytest.mark.usefixtures("written_before")
def test_an_exported_bundle_is_signed_and_checked(
    plain: fx.GraphModule,
    example: Tensor,
    contents: BundleContents,
    keys: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    write_bundle(plain, folder, example, contents, signing_key=keys[0])
    assert (folder / SIGNATURE).stat().st_size == 64
    assert verify_bundle(folder, keys[1])["signature"] == "checked"
    report = verify_bundle(folder)
    assert report["signature"] == "signed, not checked"
    assert report["unlisted"] == []
    # A bundle that replaces a signed one has no signature left over.
    write_bundle(plain, folder, example, contents)
    assert verify_bundle(folder)["signature"] == "none"
    with pytest.raises(BundleError, match="has no signature that can be read"):
        verify_bundle(folder, keys[1])


def test_an_engine_that_was_exchanged_with_its_digest_is_refused_only_by_the_signature(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    assert verify_bundle(signed, keys[1])["passed"] is True
    (signed / ENGINE).write_bytes(b"another engine, that is to say any program")
    manifest = read_manifest(signed)
    entry = FileEntry.of((signed / ENGINE).read_bytes())
    forged = dataclasses.replace(manifest, files={**manifest.files, ENGINE: entry})
    write_manifest(forged, signed)
    assert verify_bundle(signed)["passed"] is True, "no digest can show this"
    with pytest.raises(BundleError, match="do not load it") as caught:
        verify_bundle(signed, keys[1])
    assert "\n" not in str(caught.value)


def test_nothing_is_parsed_before_the_signature_holds(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(_: bytes) -> Manifest:
        raise AssertionError("parsed")

    monkeypatch.setattr(Manifest, "from_json", parse)
    with pytest.raises(AssertionError, match="parsed"):
        verify_bundle(signed, keys[1])
    (signed / "manifest.json").write_bytes((signed / "manifest.json").read_bytes() + b"\n")
    with pytest.raises(BundleError, match="is not the signature"):
        verify_bundle(signed, keys[1])


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b"\x00" * 65, b"long" * 1000])
def test_a_damaged_signature_is_refused(
    damage: bytes, signed: Path, keys: tuple[Path, Path]
) -> None:
    (signed / SIGNATURE).write_bytes(damage)
    with pytest.raises(BundleError, match="is not the signature"):
        verify_bundle(signed, keys[1])


def test_the_key_of_somebody_else_does_not_do(signed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(public_pem(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(BundleError, match="is not the signature"):
        verify_bundle(signed, other)


def test_an_encrypted_key_needs_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(ed25519.Ed25519PrivateKey.generate(), b"swordfish"))
    monkeypatch.delenv("POLARPRUNE_KEY_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="is encrypted; put its password into POLARPRUNE_KEY_PA"):
        load_signing_key(path)
    monkeypatch.setenv("POLARPRUNE_KEY_PASSWORD", "herring")
    with pytest.raises(ConfigError, match="no private key that can be read") as caught:
        load_signing_key(path)
    assert "herring" not in str(caught.value)
    monkeypatch.setenv("POLARPRUNE_KEY_PASSWORD", "swordfish")
    assert load_signing_key(path)
    path.write_bytes(private_pem(ed25519.Ed25519PrivateKey.generate()))
    assert load_signing_key(path), "a password that is not needed is no error"


def test_what_is_no_key_is_refused_in_one_line(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    elliptic = ec.generate_private_key(ec.SECP256R1())
    for content, words in (
        (b"no key", "no private key that can be read"),
        (keys[1].read_bytes(), "no private key that can be read"),
        (private_pem(elliptic), "holds another kind of key"),  # type: ignore[arg-type]
    ):
        other.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as caught:
            load_signing_key(other)
        assert "\n" not in str(caught.value)
    for content, words in (
        (b"no key", "no public key that can be read"),
        (keys[0].read_bytes(), "holds a private key, not the public one"),
        (public_pem(elliptic), "holds another kind of key"),  # type: ignore[arg-type]
    ):
        other.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as caught:
            verify_bundle(signed, other)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_bundle(signed, tmp_path / "absent.pem")


def test_a_bad_key_stops_an_export_before_it_begins(
    plain: fx.GraphModule, example: Tensor, contents: BundleContents, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        write_bundle(plain, tmp_path / "out", example, contents, signing_key=tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def test_without_cryptography_it_is_said_what_to_install(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    for call in (lambda: verify_bundle(signed, keys[1]), lambda: load_signing_key(keys[0])):
        with pytest.raises(BackendUnavailable, match=r"pip install 'polarprune\[sign\]'"):
            call()
    assert verify_bundle(signed)["passed"] is True, "only a check needs it"


def test_a_manifest_cannot_list_its_own_signature(signed: Path) -> None:
    manifest = read_manifest(signed)
    files = {**manifest.files, SIGNATURE: FileEntry.of((signed / SIGNATURE).read_bytes())}
    write_manifest(dataclasses.replace(manifest, files=files), signed)
    with pytest.raises(PolarpruneError, match="plain file name"):
        verify_bundle(signed)


def test_the_command_line_signs_and_checks(
    signed: Path,
    keys: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = run("verify", str(signed), "--public-key", str(keys[1]))
    assert (code, "Signature: checked." in out) == (0, True)
    code, out, _ = run("verify", str(signed))
    assert (code, "Signature: signed, not checked." in out) == (0, True)
    (signed / SIGNATURE).unlink()
    code, _, err = run("verify", str(signed), "--public-key", str(keys[1]))
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1

    asked: dict[str, object] = {}

    def export(source: str, **options: object) -> dict[str, object]:
        asked.update(options)
        answer = {"bundle": "b", "precision": "fp32", "max_abs_error": 0.0, "runs_on": "x"}
        rest = {"kept_float32": [], "random_weights": True, "uneven_convolutions": 0}
        return {**answer, "before": None, "input_shape": [3, 8, 8], **rest}

    monkeypatch.setattr("polarprune_export.exporting.export_bundle", export)
    options = ["--gpu", "8.9", "--gpu", "8.6,12.0", "--engine-compat", "none"]
    code, out, _ = run("export", "m", "--out", "b", "--sign", "k.pem", *options)
    assert code == 0
    assert "Its weights are random, as no --weights were given" in out
    assert asked["sign"] == Path("k.pem")
    assert asked["gpus"] == ["8.9", "8.6,12.0"]
    assert asked["engine_compat"] == "none"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_checks_it_too(signed: Path, keys: tuple[Path, Path]) -> None:
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    command += ["-in", str(signed / "manifest.json"), "-sigfile", str(signed / SIGNATURE)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (signed / "manifest.json").write_text("{}")
    assert subprocess.run(command, capture_output=True).returncode != 0
