"""The Dockerfile of the embedded server, `polarprune serve` on ONNX Runtime and CPUs.

Serving imports neither torch nor what exports, so the image has neither: the packages that it
installs are ours without its dependencies, and those of its dependencies that serving needs, in the
releases that are installed here.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import polarprune
from polarprune.errors import ConfigError

BUNDLES_AT = "/mnt/models"
"""Where KServe mounts what it fetches; the same where the image holds the bundle."""
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
USER_ID = 10001
"""A number, which a cluster that refuses root can check, as it cannot check a name."""

EXTRAS = ("cpu", "serve")
NOT_SERVED = frozenset(
    ("torch", "torchvision", "jaxtyping", "onnx-ir", "onnxscript", "onnxsim", "pyyaml")
)
"""Dependencies of training, export and deploying, which are most of the 6 GB."""

READY = f"http://127.0.0.1:{HTTP_PORT}/v2/health/ready"


@dataclass(frozen=True)
class ServerImage:
    """What goes into an image.

    Attributes:
        drain_seconds: how long the server goes on with what it has taken after SIGTERM.
        wheel: the file name of polarprune's wheel in the build's folder; None takes this version
            from where pip looks.
        bundles: a folder of bundles in the build's folder; None for an image without one.
    """

    drain_seconds: int = 30
    wheel: str | None = None
    bundles: str | None = None


def server_arguments(drain_seconds: int) -> list[str]:
    """What `polarprune serve` is called with in a container."""
    return [
        BUNDLES_AT,
        *("--backend", "onnxruntime"),  # a bundle may have an engine, and the image has no GPU
        *("--host", "0.0.0.0"),
        *("--http-port", str(HTTP_PORT)),
        *("--grpc-port", str(GRPC_PORT)),
        *("--metrics-port", str(METRICS_PORT)),
        *("--drain-seconds", str(drain_seconds)),
    ]


def dockerfile(image: ServerImage) -> str:
    """The text of the Dockerfile."""
    ours = f"polarprune=={polarprune.__version__}"
    lines = [
        f"# `polarprune serve` {polarprune.__version__} on ONNX Runtime, on CPUs, without torch.",
        "# Written by `polarprune deploy kserve`, which builds no image: this one was not tried.",
        "#",
        "#     docker build --tag IMAGE .",
        f"#     docker run --rm --read-only --cap-drop ALL --publish {HTTP_PORT}:{HTTP_PORT} IMAGE",
        "",
        f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        "",
        # Without the last, ONNX Runtime 1.32 reports to its makers and writes lines of its own.
        "ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1",
        "",
        "RUN python -m pip install --no-cache-dir \\",
        *(f'    "{requirement}" \\' for requirement in served_requirements()[:-1]),
        f'    "{served_requirements()[-1]}"',
        "",
    ]
    if image.wheel is not None:
        ours = f"./{image.wheel}"
        lines += ["WORKDIR /srv", f"COPY {_exec([image.wheel, './'])}"]
    lines += [
        "# A layer of its own, as what it needs changes less often.",
        "# hadolint ignore=DL3059",
        f'RUN python -m pip install --no-cache-dir --no-deps "{ours}"',
        "",
    ]
    if image.bundles is not None:
        # Its own, as the files may be readable to nobody else where they were written.
        owner = f"--chown={USER_ID}:{USER_ID}"
        lines += [f"COPY {owner} {_exec([f'{image.bundles}/', f'{BUNDLES_AT}/'])}", ""]
    probe = f"import urllib.request as u; u.urlopen({READY!r}, timeout=2)"
    lines += [
        f"USER {USER_ID}:{USER_ID}",
        f"EXPOSE {HTTP_PORT} {GRPC_PORT} {METRICS_PORT}",
        "STOPSIGNAL SIGTERM",
        "HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \\",
        f"    CMD {_exec(['python', '-c', probe])}",
        f"ENTRYPOINT {_exec(['polarprune', 'serve'])}",
        f"CMD {_exec(server_arguments(image.drain_seconds))}",
    ]
    return "\n".join(lines) + "\n"


def served_requirements() -> list[str]:
    """What pip installs for serving: name==release of what is here, else what we declare."""
    declared = metadata.requires("polarprune") or []
    needed: dict[str, str] = {}
    for line in declared:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.fullmatch(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        wanted = not marker or (extra is not None and extra[1] in EXTRAS)
        if wanted and name not in NOT_SERVED:
            needed[name] = _pinned(name, requirement)
    return sorted(needed.values())


def check_wheel_name(name: str) -> None:
    """Refuses a file that is not the wheel of this version.

    Raises:
        ConfigError: it is another.
    """
    wanted = f"polarprune-{polarprune.__version__}-py3-none-any.whl"
    if name != wanted:
        raise ConfigError(f"--wheel must be {wanted}, as this version is installed; got {name}")


def _pinned(name: str, requirement: str) -> str:
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return requirement


def _exec(words: Sequence[str]) -> str:
    """The JSON form, in which no shell takes part, so that signals reach the server."""
    return json.dumps(list(words))
