"""`polarprune verify`: a bundle checked again, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from polarprune.commands.options import AsJson
from polarprune.terminal import Terminal


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY.pem",
            help="Require the signature of this ed25519 key, before anything is read.",
            show_default="a signature is not checked",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle again, on this machine.

    Signature (with --public-key), digests, certificate, ONNX, and its outputs in ONNX Runtime here.
    Digests show accidents; whoever can change the manifest can change them, but not the signature.
    """
    from polarprune_export.bundle_verification import verify_bundle

    answer = verify_bundle(bundle, public_key)
    terminal = Terminal(as_json)
    terminal.show(f"Bundle {bundle} holds: {len(answer['files'])} files with the right digests.")
    terminal.show(f"Signature: {answer['signature']}.")
    for link in answer["parity"]:
        terminal.show(
            f"ONNX Runtime here, {link['inputs']} inputs (n = {link['n']}): largest relative "
            f"error {link['max_rel_error']:.1e}, {link['tolerance']:g} allowed."
        )
    if answer["engine"] is not None:
        terminal.show(f"Engine: {answer['engine']}; runs on: {answer['runs_on']}")
    if answer["unlisted"]:
        terminal.show(f"Files that nobody vouches for: {', '.join(answer['unlisted'])}")
    terminal.result(answer)
