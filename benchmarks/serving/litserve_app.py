"""LitServe with a bundle's ONNX file: what is measured beside us. Runs in a venv of its own.

    pip install litserve onnxruntime numpy
    python litserve_app.py model.onnx PORT BATCH THREADS WINDOW_MS WORKERS

Its requests are JSON with the tensor's bytes in base64 (it reads JSON or forms, no raw bytes), its
answers likewise: cheaper for it than lists of numbers.
"""

import base64
import sys

import litserve
import numpy as np
import onnxruntime


class OnnxApi(litserve.LitAPI):
    """One ONNX Runtime session, as ours has it: so many threads, the CPU, spinning in runs only."""

    def __init__(self, path: str, threads: int, batch: int, window: float) -> None:
        """Its batching is given to the base class."""
        super().__init__(max_batch_size=batch, batch_timeout=window)
        self._path, self._threads, self._batched = path, threads, batch > 1

    def setup(self, device: str) -> None:
        """In the worker's process."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            self._path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0]
        self._sides = [side for side in self._input.shape[1:]]

    def decode_request(self, request: dict) -> np.ndarray:
        """(c, h, w) float32."""
        raw = base64.b64decode(request["data"])
        return np.frombuffer(raw, np.float32).reshape(self._sides)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Batches are stacked by the base class's `batch`."""
        batch = images if self._batched else images[None]
        outputs = self._session.run(None, {self._input.name: batch})[0]
        return outputs if self._batched else outputs[0]

    def encode_response(self, output: np.ndarray) -> dict:
        """One image's scores."""
        return {"data": base64.b64encode(output.tobytes()).decode()}


def main() -> None:
    """Serve until killed."""
    path, port, batch, threads, window, workers = sys.argv[1:7]
    api = OnnxApi(path, int(threads), int(batch), float(window) / 1000)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(workers), fast_queue="--zmq" in sys.argv
    )
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False,
               log_level="error")  # fmt: skip


if __name__ == "__main__":
    main()
