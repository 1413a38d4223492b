"""A model's config.pbtxt, made as a message of Triton's own protobuf.

Nothing but a field that Triton knows can be set in such a message, and its text is parsed again
before anybody sees it.
"""

from dataclasses import dataclass
from typing import Any

from polarprune.errors import BundleError
from polarprune.manifest import Manifest, TensorSpec
from polarprune.option_values import check_range
from polarprune.optional_packages import import_package
from polarprune_deploy.fleet.triton_protocol import INSTALL, message_class
from polarprune_deploy.fleet.triton_source import TritonSource

CONFIG_FILE, LABELS_FILE = "config.pbtxt", "labels.txt"
PREFIX = "polarprune."
"""Of the parameters that say where a model comes from; Triton passes them over."""

TYPES = {
    "bool": "TYPE_BOOL",
    "bfloat16": "TYPE_BF16",
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
ACCELERATED = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
"""Values of `precision_mode` of ONNX Runtime's TensorRT in Triton."""


@dataclass(frozen=True)
class TritonOptions:
    """What the bundle does not say.

    Attributes:
        backend: "auto", "onnxruntime" or "tensorrt".
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        instances: copies of the model on each device.
        max_queue_size: requests that may wait; one more is refused at once.
        timeout_ms: how long a request may wait before it is refused; a client may ask for less.
        queue_delay_us: how long a request waits for others to share its batch; 0 takes those that
            are there.
        accelerate: let ONNX Runtime build a TensorRT engine when Triton loads the model.
    """

    backend: str = "auto"
    device: str = "auto"
    instances: int = 1
    max_queue_size: int = 256
    timeout_ms: int = 1000
    queue_delay_us: int = 0
    accelerate: bool = False

    def check(self) -> None:
        """Refuses numbers out of range.

        Raises:
            ConfigError: the option, its range, and what was got.
        """
        for option, value, low, high in (
            ("--instances", self.instances, 1, 1 << 10),
            ("--max-queue-size", self.max_queue_size, 1, 1 << 20),
            ("--timeout-ms", self.timeout_ms, 1, 3_600_000),
            ("--queue-delay-us", self.queue_delay_us, 0, 1_000_000),
        ):
            check_range(option, value, low, high)


def model_config(
    name: str, manifest: Manifest, source: TritonSource, options: TritonOptions
) -> Any:
    """The configuration, without what is said of single versions."""
    config = message_class("ModelConfig")(
        name=name,
        platform=PLATFORMS[source.backend],
        backend=source.backend,
        default_model_filename=source.file,
    )
    config.version_policy.latest.num_versions = 1  # a new version takes over once it is ready
    if source.batched:
        config.max_batch_size = max(profile.max for profile in source.profiles)
        _add_batching(config, source, options)
    for stated, tensors in ((config.input, source.inputs), (config.output, source.outputs)):
        for tensor in tensors:
            _add_tensor(stated.add(), tensor, source.batched)
    if class_labels(manifest, source):
        next(
            o for o in config.output if o.name == _scored(source).name
        ).label_filename = LABELS_FILE
    group = config.instance_group.add(kind=KINDS[source.device], count=options.instances)
    if source.backend == "tensorrt":
        # Triton takes the first profile alone, the one for single images, unless told of others.
        group.profile.extend(str(index) for index in range(len(source.profiles)))
        config.optimization.cuda.graphs = True
    elif options.accelerate:
        _add_accelerator(config, manifest, source)
    _add_warm_up(config, manifest, source)
    config.parameters[f"{PREFIX}precision"].string_value = manifest.precision
    return config


def class_labels(manifest: Manifest, source: TritonSource) -> str | None:
    """The text of the labels file: a class a line; None where outputs are no scores of classes."""
    shape = _scored(source).shape
    if not manifest.classes or len(shape) != 2 or shape[1] < len(manifest.classes):
        return None
    if not source.batched and shape[0] != 1:
        return None  # to Triton one long row of scores
    # A line break in a name would give every later class the label of another one.
    return "".join(f"{' '.join(name.splitlines())}\n" for name in manifest.classes)


def print_config(config: Any, comment: str) -> str:
    """The text of config.pbtxt; parsed again and found equal.

    Raises:
        BundleError: it is not, which would be a name that the text format cannot carry.
    """
    printed = _text_format().MessageToString(
        config, as_utf8=True, use_short_repeated_primitives=True
    )
    text = f"# {comment}\n{printed}"
    if parse_config(text) != config:
        raise BundleError(
            f"{CONFIG_FILE} does not hold what was meant; rename the bundle's tensors"
        )
    return text


def parse_config(text: str) -> Any:
    """The message in the text of a config.pbtxt.

    Raises:
        BundleError: the text is none, or has a field that Triton does not know.
    """
    config = message_class("ModelConfig")()
    text_format = _text_format()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise BundleError(f"not a {CONFIG_FILE} ({' '.join(str(error).split())})") from None
    return config


def _add_batching(config: Any, source: TritonSource, options: TritonOptions) -> None:
    batching = config.dynamic_batching
    policy = batching.default_queue_policy
    policy.timeout_action = policy.REJECT
    policy.default_timeout_microseconds = 1000 * options.timeout_ms
    policy.allow_timeout_override = True
    policy.max_queue_size = options.max_queue_size
    batching.max_queue_delay_microseconds = options.queue_delay_us
    if len(source.profiles) > 1:  # elsewhere no size is better than the next one
        batching.preferred_batch_size.extend(
            sorted({profile.opt for profile in source.profiles if profile.opt > 1})
        )


def _add_tensor(stated: Any, tensor: TensorSpec, batched: bool) -> None:
    stated.name = tensor.name
    stated.data_type = (
        stated.DESCRIPTOR.fields_by_name["data_type"]
        .enum_type.values_by_name[TYPES[tensor.dtype]]
        .number
    )
    dims = tensor.shape[1:] if batched else tensor.shape
    stated.dims.extend(dims or (1,))
    if not dims:  # Triton wants at least one, and reshapes it away
        stated.reshape.SetInParent()


def _add_accelerator(config: Any, manifest: Manifest, source: TritonSource) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(
        name="tensorrt"
    )
    accelerator.parameters["precision_mode"] = ACCELERATED[manifest.precision]
    (profile,) = source.profiles
    if source.batched:  # else a larger batch than any before has an engine built while it waits
        for word in ("min", "opt", "max"):
            batch = getattr(profile, word)
            shapes = [_concrete(tensor, manifest, source, batch) for tensor in source.inputs]
            if None not in shapes:
                accelerator.parameters[f"trt_profile_{word}_shapes"] = ",".join(
                    f"{tensor.name}:{'x'.join(map(str, shape or ()))}"
                    for tensor, shape in zip(source.inputs, shapes, strict=True)
                )


def _add_warm_up(config: Any, manifest: Manifest, source: TritonSource) -> None:
    """A batch of the smallest and of the tuned size of each profile; ready only after them."""
    sizes = {size for profile in source.profiles for size in (profile.min, profile.opt)}
    for batch in sorted(sizes) if source.batched else [source.profiles[-1].opt]:
        shapes = [_concrete(tensor, manifest, source, batch) for tensor in source.inputs]
        if None in shapes:
            return  # a free size that nothing tells
        sample = config.model_warmup.add(
            name=f"batch_{batch}", batch_size=batch if source.batched else 1
        )
        for stated, shape in zip(config.input, shapes, strict=True):
            data = sample.inputs[stated.name]
            data.data_type = stated.data_type
            data.dims.extend(((shape or ())[1:] if source.batched else shape) or (1,))
            data.zero_data = True  # random bytes would be NaN in places


def _concrete(
    tensor: TensorSpec, manifest: Manifest, source: TritonSource, batch: int
) -> tuple[int, ...] | None:
    """The shape of a batch; None where a free size is not known."""
    shape = [batch if side == -1 and axis == 0 else side for axis, side in enumerate(tensor.shape)]
    steps = manifest.preprocessing
    if steps is not None and len(shape) == 4 and tensor.name == source.inputs[0].name:
        height, width = (2, 3) if steps.layout == "NCHW" else (1, 2)
        for axis, side in ((height, steps.height), (width, steps.width)):
            shape[axis] = side if shape[axis] == -1 else shape[axis]
    return None if -1 in shape else tuple(shape)


def _scored(source: TritonSource) -> TensorSpec:
    """The output that was trained."""
    return next((t for t in source.outputs if t.name == "out"), source.outputs[0])


def _text_format() -> Any:
    return import_package("google.protobuf.text_format", INSTALL)
