"""KServe folders: valid by KServe's own schema, one story in all files, never half-written."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import jsonschema
import pytest
import yaml
from deployed_bundles import (
    convolution,
    engine_info,
    failing_disk,
    preprocessing,
    tree,
    write_bundle_of,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import polarprune
from benchmarks.serving.server_process import ServerProcess
from polarprune.errors import (
    BundleError,
    ConfigError,
    PolarpruneError,
    Refused,
)
from polarprune_deploy.fleet import checked_manifest
from polarprune_deploy.fleet.kserve_manifest import write_kserve
from polarprune_deploy.fleet.kserve_service import KServeOptions, inference_service, service_name
from polarprune_deploy.fleet.server_image import NOT_SERVED, served_requirements

HERE = Path(__file__).parent
SCHEMA = json.loads((HERE / "kserve_inferenceservice.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
ON_TRITON = {"runtime": "triton", "storage_uri": "s3://models/net"}


def read_service(folder: Path) -> dict[str, Any]:
    """The service, valid by KServe's schema."""
    document = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    VALIDATOR.validate(document)
    return document


def read_container(folder: Path) -> dict[str, Any]:
    """The service's one container."""
    (container,) = read_service(folder)["spec"]["predictor"]["containers"]
    return container


def read_dockerfile(folder: Path) -> dict[str, list[str]]:
    """Instruction -> its arguments, one string each time that it is used."""
    text = re.sub(r"\\\n\s*", " ", (folder / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.setdefault(instruction, []).append(rest.strip())
    return found


def test_the_embedded_server_gets_a_service_with_probes_resources_and_scaling(
    small: Path, tmp_path: Path
) -> None:
    answer = write_kserve(small, tmp_path / "kserve")
    service = read_service(tmp_path / "kserve")
    predictor = service["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert service["metadata"]["name"] == answer["service"] == "small"
    assert container["image"] == answer["image"]
    probes = {key: container[key]["httpGet"] for key in container if key.endswith("Probe")}
    assert probes == {
        "startupProbe": {"path": "/v2/health/ready", "port": 8000},
        "readinessProbe": {"path": "/v2/health/ready", "port": 8000},
        "livenessProbe": {"path": "/v2/health/live", "port": 8000},
    }
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "2Gi"}
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 3)
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("cpu", 70)
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]


def test_ports_and_arguments_are_the_same_in_all_files(small: Path, tmp_path: Path) -> None:
    write_kserve(small, tmp_path / "kserve", KServeOptions(drain_seconds=120))
    predictor = read_service(tmp_path / "kserve")["spec"]["predictor"]
    (container,) = predictor["containers"]
    docker = read_dockerfile(tmp_path / "kserve")
    arguments = container["args"]
    command = json.loads(docker["CMD"][0])
    assert arguments[: len(command)] == command
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert options["--drain-seconds"] == "120"
    lame = int(options["--lame-duck-seconds"])
    assert predictor["terminationGracePeriodSeconds"] > 120 + lame > 120
    # The node may have any number of CPUs.
    assert options["--threads"] == container["resources"]["limits"]["cpu"] == "2"
    named = {f"--{port['name']}-port": str(port["containerPort"]) for port in container["ports"]}
    assert named == {key: value for key, value in options.items() if key.endswith("-port")}
    assert docker["EXPOSE"][0].split() == list(named.values())
    # KServe's service leads from port 80 to the first port.
    assert container["ports"][0]["name"] == "http"
    assert predictor["annotations"]["prometheus.io/port"] == options["--metrics-port"]


def test_the_image_is_that_of_a_server_that_is_told_to_end(small: Path, tmp_path: Path) -> None:
    write_kserve(small, tmp_path / "kserve")
    docker = read_dockerfile(tmp_path / "kserve")
    assert json.loads(docker["ENTRYPOINT"][0]) == ["polarprune", "serve"]
    assert docker["STOPSIGNAL"] == ["SIGTERM"]
    user, _, group = docker["USER"][0].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    container = read_container(tmp_path / "kserve")
    security = container["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["readOnlyRootFilesystem"]
    assert security["runAsNonRoot"]
    probe = json.loads(docker["HEALTHCHECK"][0].partition("CMD ")[2])
    assert "http://127.0.0.1:8000/v2/health/ready" in probe[-1]
    assert f'"polarprune=={polarprune.__version__}"' in docker["RUN"][-1]
    assert "--no-deps" in docker["RUN"][-1]


def test_the_image_holds_the_bundle_and_only_what_its_manifest_lists(
    small: Path, tmp_path: Path
) -> None:
    (small / "notes.txt").write_text("nobody vouches for this")
    answer = write_kserve(small, tmp_path / "kserve")
    copied = tree(tmp_path / "kserve" / "bundles" / "small")
    assert copied == {k: v for k, v in tree(small).items() if k != "notes.txt"}
    docker = read_dockerfile(tmp_path / "kserve")
    owner, _, words = docker["COPY"][0].partition(" ")
    assert owner == f"--chown={docker['USER'][0]}"
    assert json.loads(words) == ["bundles/", "/mnt/models/"]
    digest = read_service(tmp_path / "kserve")["metadata"]["annotations"][
        "polarprune/manifest-sha256"
    ]
    assert answer["image"] == f"small:{digest[:12]}"


def test_the_bundle_is_fetched_where_a_storage_uri_is_given(small: Path, tmp_path: Path) -> None:
    options = KServeOptions(storage_uri="s3://models/small", image="r.example:5000/serve:1")
    answer = write_kserve(small, tmp_path / "kserve", options)
    assert tree(tmp_path / "kserve" / "bundles" / "small") == tree(small)
    container = read_container(tmp_path / "kserve")
    assert {"name": "STORAGE_URI", "value": "s3://models/small"} in container["env"]
    assert container["args"][0] == "/mnt/models"
    assert container["image"] == "r.example:5000/serve:1"
    assert "COPY" not in read_dockerfile(tmp_path / "kserve")
    copying = f"copy what is in {tmp_path / 'kserve' / 'bundles'} to s3://models/small"
    assert copying in answer["steps"]


def test_an_image_that_no_registry_has_is_said_to_need_one(small: Path, tmp_path: Path) -> None:
    unnamed = write_kserve(small, tmp_path / "unnamed")
    named = write_kserve(small, tmp_path / "named", KServeOptions(image="r.example/small:1"))
    on_triton = write_kserve(small, tmp_path / "triton", KServeOptions(**ON_TRITON))
    assert any("has no registry" in remark for remark in unnamed["remarks"])
    for answer in (named, on_triton):
        assert not any("registry" in remark for remark in answer["remarks"])


def test_a_wheel_goes_into_the_image(small: Path, tmp_path: Path) -> None:
    wheel = tmp_path / f"polarprune-{polarprune.__version__}-py3-none-any.whl"
    wheel.write_bytes(b"half of one")
    with pytest.raises(ConfigError, match="is no wheel; build it with"):
        write_kserve(small, tmp_path / "kserve", wheel=wheel)
    assert not (tmp_path / "kserve").exists()
    with ZipFile(wheel, "w") as content:
        content.writestr("polarprune/__init__.py", "")
    write_kserve(small, tmp_path / "kserve", wheel=wheel)
    assert (tmp_path / "kserve" / wheel.name).read_bytes() == wheel.read_bytes()
    docker = read_dockerfile(tmp_path / "kserve")
    assert json.loads(docker["COPY"][0]) == [wheel.name, "./"]
    assert docker["RUN"][-1].endswith(f'"./{wheel.name}"')


WITHOUT = """
import sys
for name in {absent}: sys.modules[name] = None
sys.argv[0] = "polarprune"
from polarprune.cli import main
main()
"""


def in_the_container(folder: Path, log: Path) -> ServerProcess:
    """The container's command, started on free ports of this machine, without the node's paths."""
    arguments = read_container(folder)["args"]
    for option, value in (
        ("--host", "127.0.0.1"),
        ("--http-port", "0"),
        ("--grpc-port", "0"),
        ("--metrics-port", "0"),
        ("--lame-duck-seconds", "0"),
    ):
        arguments[arguments.index(option) + 1] = value
    absent = [name.replace("-", "_").replace("pyyaml", "yaml") for name in NOT_SERVED]
    program = ("-c", WITHOUT.format(absent=absent))
    return ServerProcess(folder / "bundles", log, *arguments[1:], program=program)


def is_healthy(folder: Path, port: int) -> bool:
    """What the image's own check says of a server on this port."""
    probe = json.loads(read_dockerfile(folder)["HEALTHCHECK"][0].partition("CMD ")[2])
    program = probe[-1].replace(":8000/", f":{port}/")
    answer = subprocess.run([sys.executable, *probe[1:-1], program], capture_output=True)
    return answer.returncode == 0


def test_the_containers_command_serves_the_bundle_without_what_the_image_leaves_out(
    small: Path, tmp_path: Path
) -> None:
    write_kserve(small, tmp_path / "kserve")
    container = read_container(tmp_path / "kserve")
    with in_the_container(tmp_path / "kserve", tmp_path / "log") as server:
        server.wait_for("serving")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.ask(container[probe]["httpGet"]["path"]).status == 200, probe
        assert server.ask("/v2/models/small").status == 200
        assert server.ask("/metrics", port="metrics").status == 200
        assert is_healthy(tmp_path / "kserve", server.ports["http"])
        assert server.stop(30) == 0
        assert not is_healthy(tmp_path / "kserve", server.ports["http"])


def test_the_image_installs_what_serving_declares_in_the_releases_that_are_here() -> None:
    names = [re.split("[=<>]", requirement)[0] for requirement in served_requirements()]
    assert {"numpy", "onnx", "onnxruntime", "starlette", "uvicorn", "grpcio", "typer"} <= set(names)
    assert not set(names) & NOT_SERVED
    assert len(set(names)) == len(names)
    import numpy

    assert f"numpy=={numpy.__version__}" in served_requirements()


def test_triton_gets_a_repository_and_a_service_that_fetches_it(
    small: Path, tmp_path: Path
) -> None:
    answer = write_kserve(small, tmp_path / "kserve", KServeOptions(**ON_TRITON))
    predictor = read_service(tmp_path / "kserve")["spec"]["predictor"]
    assert predictor["model"]["modelFormat"] == {"name": "triton"}
    assert predictor["model"]["storageUri"] == "s3://models/net"
    assert predictor["model"]["readinessProbe"]["httpGet"]["port"] == 8080
    assert "nvidia.com/gpu" not in predictor["model"]["resources"]["limits"]
    config = (tmp_path / "kserve" / "model-repository" / "small" / "config.pbtxt").read_text()
    assert "kind: KIND_CPU" in config
    assert not (tmp_path / "kserve" / "Dockerfile").exists()
    assert any("not a Triton plan" in remark for remark in answer["remarks"])


def test_a_plan_asks_for_a_gpu(tmp_path: Path) -> None:
    bundle = write_bundle_of(tmp_path / "bundle", convolution(), engine=engine_info())
    write_kserve(bundle, tmp_path / "kserve", KServeOptions(**ON_TRITON))
    model = read_service(tmp_path / "kserve")["spec"]["predictor"]["model"]
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"
    repository = tmp_path / "kserve" / "model-repository" / "net"
    assert (repository / "1" / "model.plan").is_file()
    with pytest.raises(Refused, match="runs on GPUs alone"):
        write_kserve(bundle, tmp_path / "other", KServeOptions(**ON_TRITON, gpus=0))


def test_bf16_is_for_triton_and_a_gpu(tmp_path: Path) -> None:
    model = convolution(kind=TensorProto.BFLOAT16)
    bundle = write_bundle_of(tmp_path / "bundle", model, precision="bf16")
    with pytest.raises(Refused, match="bf16, which ONNX Runtime does not run on a CPU"):
        write_kserve(bundle, tmp_path / "kserve")
    assert not (tmp_path / "kserve").exists()
    write_kserve(bundle, tmp_path / "kserve", KServeOptions(**ON_TRITON))
    model = read_service(tmp_path / "kserve")["spec"]["predictor"]["model"]
    assert model["resources"]["requests"]["nvidia.com/gpu"] == "1"


def test_a_bundles_name_becomes_one_that_kubernetes_takes(tmp_path: Path) -> None:
    bundle = write_bundle_of(
        tmp_path / "bundle", convolution(), name="50 Nets/x", preprocessing=preprocessing()
    )
    answer = write_kserve(bundle, tmp_path / "kserve", KServeOptions(**ON_TRITON))
    assert answer["service"] == "model-50-nets-x"
    assert (tmp_path / "kserve" / "model-repository" / answer["model"]).is_dir()


@given(name=st.text(min_size=1, max_size=90))
def test_any_name_becomes_one_that_kubernetes_takes(name: str) -> None:
    made = service_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(f"{made}-predictor") <= 63


@given(
    options=st.builds(
        KServeOptions,
        min_replicas=st.integers(1, 5),
        max_replicas=st.integers(5, 99),
        scale_metric=st.sampled_from(["cpu", "memory"]),
        scale_target=st.integers(1, 100),
        cpu=st.sampled_from(["1", "500m", "2.5", "64"]),
        memory=st.sampled_from(["512Mi", "2Gi", "4G", "1000000000"]),
        gpus=st.sampled_from([None, 0, 1, 8]),
        drain_seconds=st.integers(0, 3600),
        storage_uri=st.sampled_from([None, "pvc://claim/path", "hf://me/net"]),
    ),
    image=st.sampled_from([None, "net:1", "r.example/a/b@sha256:0f"]),
)
def test_every_allowed_option_makes_a_service_that_kserve_takes(
    options: KServeOptions, image: str | None
) -> None:
    if image is None:
        options = dataclasses.replace(options, storage_uri="s3://models/net")
    document = inference_service("net", image, "0" * 64, options)
    VALIDATOR.validate(document)
    assert yaml.safe_load(yaml.safe_dump(document, sort_keys=False)) == document


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key of every object whose keys are fields."""
    if isinstance(document, dict):
        for key, value in document.items():
            if path[-1:] not in (("annotations",), ("limits",), ("requests",)):
                yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*path, index))


@pytest.mark.parametrize("image", ["net:1", None], ids=["polarprune", "triton"])
def test_the_schema_would_catch_a_misspelt_field_anywhere(image: str | None) -> None:
    document = inference_service("net", image, "0" * 64, KServeOptions(**ON_TRITON, gpus=1))
    VALIDATOR.validate(document)
    found = list(places(document))
    assert len(found) > 30
    for *above, key in found:
        spoilt = copy.deepcopy(document)
        place = spoilt
        for step in above:
            place = place[step]
        place[f"{key}x"] = place.pop(key)
        assert not VALIDATOR.is_valid(spoilt), (*above, key)


@pytest.mark.parametrize("options", [{}, ON_TRITON], ids=["polarprune", "triton"])
def test_a_disk_that_fills_up_leaves_nothing(
    options: dict[str, Any], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)

    def write(place: Path, after: int) -> int:
        with failing_disk(monkeypatch, after) as writes:
            write_kserve(small, place, KServeOptions(**options))
        return len(writes)

    needed = write(tmp_path / "kserve", 1000)
    whole = tree(tmp_path / "kserve")
    assert needed > 5
    shutil.rmtree(tmp_path / "kserve")
    for after in range(needed):
        with pytest.raises(PolarpruneError, match="No space left on device") as failed:
            write(tmp_path / "kserve", after)
        assert "partial" not in str(failed.value)
        assert tree(tmp_path) == before
    write(tmp_path / "kserve", needed)
    assert tree(tmp_path / "kserve") == whole


def test_the_manifest_that_is_copied_is_the_one_that_was_checked(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (small / "manifest.json").read_bytes()
    other = original.replace(b'"name": "small"', b'"name": "other"')
    monkeypatch.setattr(checked_manifest, "read_manifest_bytes", lambda folder: other)
    with pytest.raises(BundleError, match="changed while it was read"):
        write_kserve(small, tmp_path / "kserve")
