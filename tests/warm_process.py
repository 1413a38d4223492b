"""Programs in processes of their own that find torch imported: most take less than that does.

A process that has imported torch and nothing has run in it is forked for each.
"""

import io
import multiprocessing
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

IMPORTED = [
    "polarprune.runs.training",
    "polarprune_deploy.benching",
    "polarprune_export.onnx_writer",
    "torch.onnx._internal.exporter._core",
    "onnxscript",
    "onnxruntime",
]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(IMPORTED)


def run_warm(
    program: str, folder: Path, *arguments: str, stdin: str = "", seconds: float = 300
) -> str:
    """What the program says on stdout; it must end with 0.

    Args:
        folder: it runs there, and modules that lie there are found.
        arguments: `sys.argv` behind its first word.
    """
    with TemporaryDirectory(prefix="polarprune-warm-") as said:
        paths = Path(said, "out"), Path(said, "err")
        process = _CONTEXT.Process(
            target=_execute, args=(program, folder, arguments, stdin, [str(p) for p in paths])
        )
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (path.read_text("utf-8") for path in paths)
    assert process.exitcode == 0, f"it ended with {process.exitcode}\n{out}{err}"
    return out


def _execute(
    program: str, folder: Path, arguments: tuple[str, ...], stdin: str, said: list[str]
) -> None:
    for descriptor, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.stdin = io.StringIO(stdin)
    sys.argv = ["program", *arguments]
    sys.path.insert(0, "")
    os.chdir(folder)
    torch.set_num_threads(1)
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
