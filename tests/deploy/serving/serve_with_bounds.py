"""A server with bounds that the command line has no options for, in a process of its own.

    python -m tests.deploy.serving.serve_with_bounds BUNDLES '{"header_seconds": 0.5}' TOKEN_FILE

Apart from `hostile_server`, which imports torch to make bundles.
"""

import json
import sys
from pathlib import Path

from polarprune_deploy.serving.serve_options import Bounds, ServeOptions
from polarprune_deploy.serving.server import serve

if __name__ == "__main__":
    source, given, token = sys.argv[1:]
    serve(
        ServeOptions(
            source=Path(source), http_port=0, grpc_port=None, metrics_port=0,
            backend="onnxruntime", token_file=Path(token) if token else None,
            bounds=Bounds(**json.loads(given)),
        )
    )  # fmt: skip
