"""The JSON of the HTTP side as schemas: what is read, and what is answered."""

from typing import Any

from polarprune_deploy.serving.counters import FAILURES
from polarprune_deploy.serving.infer_requests import LARGEST_SIDE, LONGEST_ID
from polarprune_deploy.serving.tensors import DATATYPES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SIDE: Schema = {"type": "integer", "description": "-1 where any is taken"}
DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES.values())}


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def an_object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """With these keys; others may be there."""
    found: Schema = {"type": "object", "properties": required | (optional or {})}
    return found | ({"required": list(required)} if required else {})


def a_list(items: Schema, **more: Any) -> Schema:
    """Of one kind."""
    return {"type": "array", "items": items, **more}


def make_schemas() -> dict[str, Schema]:
    """All that have a name."""
    return _sent() | _answered() | _statistics()


def _sent() -> dict[str, Schema]:
    microseconds = COUNT | {
        "exclusiveMaximum": 1 << 62,
        "description": "Until the computation starts, microseconds; 0: no matter how many.",
    }
    parameters = an_object({}, {"timeout": microseconds, "binary_data_output": TRUTH})
    size = COUNT | {"description": "Bytes of this input behind the JSON."}
    side = {"type": "integer", "minimum": 1, "exclusiveMaximum": LARGEST_SIDE}
    return {
        "InferRequest": an_object(
            {"inputs": a_list(ref("InferInput"), minItems=1)},
            {
                "id": TEXT | {"maxLength": LONGEST_ID, "description": "Comes back."},
                "parameters": parameters,
                "outputs": a_list(ref("AskedOutput")) | {"description": "None asks for all."},
            },
        ),
        "InferInput": an_object(
            {
                "name": TEXT,
                "datatype": DATATYPE,
                "shape": a_list(side, minItems=1) | {"description": "The number of images first."},
            },
            {"data": ref("Data"), "parameters": an_object({}, {"binary_data_size": size})},
        ),
        "AskedOutput": an_object(
            {"name": TEXT}, {"parameters": an_object({}, {"binary_data": TRUTH})}
        ),
        "Data": a_list({"anyOf": [NUMBER, TRUTH, ref("Data")]})
        | {"description": "Row-major: flat, or nested as the shape says."},
    }


def _answered() -> dict[str, Schema]:
    output = an_object(
        {"name": TEXT, "datatype": DATATYPE, "shape": a_list(COUNT)},
        {
            "data": a_list({"anyOf": [NUMBER, TRUTH]}),
            "parameters": an_object({"binary_data_size": COUNT}),
        },
    )
    tensor = an_object({"name": TEXT, "datatype": DATATYPE, "shape": a_list(SIDE)})
    configured = an_object({"name": TEXT, "data_type": TEXT, "dims": a_list(SIDE)})
    state = {"type": "string", "enum": ["READY", "LOADING", "UNAVAILABLE"]}
    scored = an_object({"name": TEXT, "index": COUNT, "probability": NUMBER})
    entry = an_object({"name": TEXT, "version": TEXT, "state": state, "reason": TEXT})
    return {
        "Error": an_object({"error": TEXT | {"minLength": 1}})
        | {"additionalProperties": False, "description": "What is wrong, in one line."},
        "Live": an_object({"live": TRUTH}),
        "Ready": an_object({"ready": TRUTH}),
        "ModelReady": an_object({"name": TEXT, "ready": TRUTH}),
        "Server": an_object({"name": TEXT, "version": TEXT, "extensions": a_list(TEXT)}),
        "Model": an_object(
            {
                "name": TEXT,
                "versions": a_list(TEXT),
                "platform": TEXT,
                "inputs": a_list(tensor),
                "outputs": a_list(tensor),
            }
        ),
        "ModelConfig": an_object(
            {
                "name": TEXT,
                "platform": TEXT,
                "backend": TEXT,
                "max_batch_size": COUNT,
                "input": a_list(configured),
                "output": a_list(configured),
            }
        )
        | {"description": "As much of Triton's model configuration as this server has."},
        "InferResponse": an_object(
            {"model_name": TEXT, "model_version": TEXT, "outputs": a_list(output)}, {"id": TEXT}
        ),
        "Classified": an_object(
            {"model_name": TEXT, "model_version": TEXT, "classes": a_list(scored)}
        )
        | {"description": "The most probable classes, best first."},
        "Index": a_list(entry),
        "Status": an_object(
            {
                "version": TEXT,
                "ready": TRUTH,
                "draining": TRUTH,
                "index": ref("Index"),
                "models": a_list(an_object({"name": TEXT, "version": TEXT, "live": _live()})),
            }
        )
        | {"description": "What the page at / shows; more keys come and go with it."},
    }


def _live() -> Schema:
    return an_object(
        {
            "images_per_second": NUMBER,
            "latency_ms": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "waiting": COUNT,
            "answered": COUNT,
            "images": COUNT,
            "batches": COUNT,
            "failed": an_object(dict.fromkeys(FAILURES, COUNT)),
        }
    )


def _statistics() -> dict[str, Schema]:
    spent = ref("Spent")
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
             "cache_hit", "cache_miss")  # fmt: skip
    of_size = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), spent)
    one = an_object(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": COUNT,
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": an_object(dict.fromkeys(parts, spent)),
            "batch_stats": a_list(an_object({"batch_size": COUNT, **of_size})),
        }
    )
    return {
        "Spent": an_object({"count": COUNT, "ns": COUNT}),
        "Statistics": an_object({"model_stats": a_list(one)}),
    }
