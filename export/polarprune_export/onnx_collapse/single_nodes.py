"""One operator run by itself in ONNX Runtime: on labels, on constants, on a part of a graph.

What an operator does to channels is asked of the operator, not written down a second time; every
opset's own meaning comes with it.
"""

from collections.abc import Sequence

import onnx_ir as ir

from polarprune.errors import BackendUnavailable
from polarprune_export.onnx_session import Array, open_session

IR_VERSION = 10


def run_node(
    node: ir.Node, inputs: Sequence[Array | None], opsets: dict[str, int]
) -> list[Array] | None:
    """The outputs of one node for these inputs, None where ONNX Runtime cannot compute it.

    Args:
        node: its inputs' values are not looked at; left unmodified.
        inputs: in the node's order; None for one that is not given.
    """
    import onnx

    proto = ir.serde.serialize_node(node)
    names = [f"in_{i}" if given is not None else "" for i, given in enumerate(inputs)]
    outputs = [f"out_{i}" if name else "" for i, name in enumerate(proto.output)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(given.dtype), given.shape
            )
            for name, given in zip(names, inputs, strict=True)
            if given is not None
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()],
        ir_version=IR_VERSION,
    )
    feeds = {n: given for n, given in zip(names, inputs, strict=True) if given is not None}
    try:
        results: list[Array] = open_session(
            model.SerializeToString(), threads=1, optimised=False
        ).run(None, feeds)
    except BackendUnavailable:
        raise
    except Exception:  # its errors share no base class but this one
        return None
    return results
