"""Networks on disk: `network.json` (the graph itself) and `weights.safetensors`; no pickle.

The JSON names whitelisted operators and layer specifications only, so a network is rebuilt in a
fresh process without the code that defined it and without running anything that the file brings.
"""

import json
import math
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from polarprune.collapsing import META, Description, describe
from polarprune.errors import CheckpointError, Refused, of_another_version
from polarprune.graph.layers import build_layer, layer_arguments
from polarprune.graph.operator_tables import PLAIN_FUNCTIONS, PLAIN_METHODS
from polarprune.graph.operators import SIZE_ATTRIBUTES, reads_attribute
from polarprune.runs.run_folder import PRUNED

SCHEMA = 1
NETWORK_FILE = "network.json"
WEIGHTS_FILE = "weights.safetensors"

_WHOLE = f"a saved network is a folder with {NETWORK_FILE} and {WEIGHTS_FILE}"
_FUNCTION_NAMES = {function: name for name, function in reversed(PLAIN_FUNCTIONS.items())}
# fx writes module paths and attribute names into the code it generates.
_PATH = re.compile(r"[A-Za-z_0-9-]+(\.[A-Za-z_0-9-]+)*")  # between quotes where no identifier
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")
}
# Whatever a wrong type, key, number or name in the file makes Python, torch or fx raise.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


def save_network(dense: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a collapsed network; the folder is made, its two files are replaced one by one.

    Raises:
        Refused: the network is not a collapsed one, or has an operator that no file may name.
        CheckpointError: there is a file in the folder's place.
    """
    description = describe(dense)
    if description is None or not isinstance(dense, fx.GraphModule):
        raise Refused(
            f"only collapsed networks can be saved, got {type(dense).__name__}; "
            "pass it through attach_gates and collapse first"
        )
    buffers = {name for name, _ in dense.named_buffers()}
    document = {
        "schema": SCHEMA,
        "base": asdict(description),
        "nodes": [_encode_node(node, buffers) for node in dense.graph.nodes],
        "layers": {
            str(node.target): _encode_layer(dense.get_submodule(str(node.target)))
            for node in dense.graph.nodes
            if node.op == "call_module"
        },
    }
    _refuse_shared_weights(dense)
    text = json.dumps(document, indent=1)  # before any file is touched: it may refuse
    # Not the state_dict: buffers that it leaves out belong to the network as well.
    tensors = (*dense.named_parameters(), *dense.named_buffers())
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; a network is saved into a folder")
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / f"{WEIGHTS_FILE}.new")
    (target / f"{NETWORK_FILE}.new").write_text(text)
    os.replace(target / f"{WEIGHTS_FILE}.new", target / WEIGHTS_FILE)
    os.replace(target / f"{NETWORK_FILE}.new", target / NETWORK_FILE)


def load_network(folder: str | os.PathLike[str]) -> nn.Module:
    """A network that save_network wrote, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, truncated, or does not fit the other.
        Refused: the file names an operator or layer that is not whitelisted.
    """
    source = Path(folder)
    for name in (NETWORK_FILE, WEIGHTS_FILE):
        if not (source / name).is_file():
            inside = is_network_folder(source / PRUNED)
            what = f"the network of this run is in {source / PRUNED}" if inside else _WHOLE
            raise CheckpointError(f"{source / name} is missing; {what}")
    try:
        document = json.loads((source / NETWORK_FILE).read_text())
        weights = load_file(source / WEIGHTS_FILE)
        if document["schema"] != SCHEMA:
            schema = document["schema"]
            raise Refused(of_another_version(source / NETWORK_FILE, schema, SCHEMA))
        network = _build(document, weights)
    except Refused:
        raise
    except (OSError, safetensors.SafetensorError, *_BROKEN) as error:
        # torch puts the offending tensor on the second line.
        line = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{source} is not a whole network folder ({line}); copy it again"
        ) from error
    return network


def is_network_folder(path: Path) -> bool:
    """Whether save_network wrote this."""
    return (path / NETWORK_FILE).is_file()


def image_shape(network: nn.Module) -> tuple[int, ...]:
    """What a network of load_network knows of one image, without the leading 1."""
    description = describe(network)
    assert description is not None  # load_network gives one to every network
    return description.input_shape[1:]


def _refuse_shared_weights(dense: nn.Module) -> None:
    names: dict[int, str] = {}
    for name, tensor in dense.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(tensor), name)
        if other != name:
            raise Refused(f"{other} and {name} are one tensor; a network file cannot say that")


def _build(document: dict[str, Any], weights: dict[str, Tensor]) -> fx.GraphModule:
    parts: dict[str, Any] = {}
    for name, layer in document["layers"].items():
        arguments = {key: _decode(value, {}) for key, value in layer["arguments"].items()}
        parts[_checked(name)] = build_layer(layer["type"], arguments)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        nodes[entry["name"]] = _decode_node(graph, entry, nodes)
        if entry["op"] == "get_attr":
            value = torch.empty_like(weights[entry["target"]])
            parts[entry["target"]] = value if entry.get("buffer") else nn.Parameter(value)
    network = fx.GraphModule(_as_module(parts), graph)
    dtypes = {t.dtype for t in weights.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        network.to(dtypes.pop())
    network.load_state_dict(weights, assign=True)  # as they were stored, in whatever dtype
    base = document["base"]
    network.meta[META] = Description(
        input_shape=tuple(base["input_shape"]),
        blocks_removed=base["blocks_removed"],
        kept={site: (kind, kept, units) for site, (kind, kept, units) in base["kept"].items()},
    )
    return network.eval()


def _as_module(parts: dict[str, Any]) -> nn.Module:
    """A tree of these layers and tensors.

    Of a module torch.fx takes them in the order of the graph, so that parameters come in the order
    that they had before; of a dict in one of its own.
    """
    root = nn.Module()
    for name in sorted(parts, key=lambda name: name.count(".")):
        *path, last = name.split(".")
        parent = root
        for child in path:
            if not hasattr(parent, child):
                parent.add_module(child, nn.Module())
            parent = getattr(parent, child)
        if isinstance(parts[name], Tensor) and not isinstance(parts[name], nn.Parameter):
            parent.register_buffer(last, parts[name])
        else:
            setattr(parent, last, parts[name])
    return root


def _encode_layer(module: nn.Module) -> dict[str, Any]:
    arguments = {key: _encode(value) for key, value in layer_arguments(module).items()}
    return {"type": type(module).__name__, "arguments": arguments}


def _encode_node(node: fx.Node, buffers: set[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "target": str(node.target)}
    if node.op != "call_function":
        _checked(entry["target"])
    if node.op == "call_function":
        if reads_attribute(node):
            return {**entry, "op": str(node.args[1]), "target": "", "args": [_encode(node.args[0])]}
        if node.target not in _FUNCTION_NAMES:
            name = getattr(node.target, "__name__", node.target)
            raise Refused(f"operator {name} ({node.name}) cannot be stored in a network file")
        entry["target"] = _FUNCTION_NAMES[node.target]
    if node.op == "call_method" and node.target not in PLAIN_METHODS:
        raise Refused(f"method {node.target} ({node.name}) cannot be stored in a network file")
    if node.op == "get_attr" and node.target in buffers:
        entry["buffer"] = True
    entry["args"] = [_encode(value) for value in node.args]
    if node.kwargs:
        entry["kwargs"] = {key: _encode(value) for key, value in node.kwargs.items()}
    return entry


def _decode_node(graph: fx.Graph, entry: dict[str, Any], nodes: dict[str, fx.Node]) -> fx.Node:
    args = tuple(_decode(value, nodes) for value in entry["args"])
    kwargs = {
        _checked(k, _IDENTIFIER): _decode(v, nodes) for k, v in entry.get("kwargs", {}).items()
    }
    op, target = entry["op"], entry["target"]
    name = _checked(entry["name"], _IDENTIFIER)
    if op in SIZE_ATTRIBUTES:
        return graph.create_node("call_function", getattr, (*args, op), {}, name)
    if op == "call_function":
        if target not in PLAIN_FUNCTIONS:
            raise Refused(f"operator {target!r} is not one that a network file may name")
        return graph.create_node(op, PLAIN_FUNCTIONS[target], args, kwargs, name)
    if op == "call_method" and target not in PLAIN_METHODS:
        raise Refused(f"method {target!r} is not one that a network file may name")
    if op not in ("placeholder", "get_attr", "call_module", "call_method", "output"):
        raise Refused(f"node kind {op!r} is not one that a network file may name")
    return graph.create_node(op, _checked(target), args, kwargs, name)


def _checked(path: Any, form: re.Pattern[str] = _PATH) -> str:
    if not isinstance(path, str) or not form.fullmatch(path):
        raise Refused(f"{path!r} is not a name that a network file may use")
    return path


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [_encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(part) for part in value]}
    if isinstance(value, list):
        return [_encode(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}  # JSON has no word for it
    if isinstance(value, dict):
        return {"dict": {_checked(key): _encode(part) for key, part in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": True}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Refused(f"a network file cannot hold a {type(value).__name__} argument ({value})")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "slice":
        return slice(*(_decode(part, nodes) for part in content))
    if kind == "tuple":
        return tuple(_decode(part, nodes) for part in content)
    if kind == "dict":
        return {_checked(key): _decode(part, nodes) for key, part in content.items()}
    if kind == "number":
        return float(content)
    if kind == "dtype":
        return _DTYPES[content]
    if kind == "ellipsis":
        return Ellipsis
    raise Refused(f"a network file names an unknown kind of value, {kind!r}")
