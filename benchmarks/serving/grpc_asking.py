"""Inference over gRPC, with Triton's own client."""

import asyncio

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.asking import Broken
from benchmarks.serving.known_answers import Case, WrongAnswer


class GrpcRefusal(Exception):
    """A status that is not OK; the message is the server's."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status


class GrpcAsking:
    """One channel to one model."""

    def __init__(self, port: int, model: str, input_name: str) -> None:
        """Connect when first asked; in an event loop."""
        from tritonclient.grpc import aio  # type: ignore[import-untyped]

        self._client = aio.InferenceServerClient(f"127.0.0.1:{port}")
        self._model, self._input = model, input_name

    async def infer(self, case: Case, seconds: float) -> dict[str, NDArray[np.float32]]:
        """The outputs for a case.

        Raises:
            Broken: no answer came.
            GrpcRefusal: another status.
            WrongAnswer: the answer is to another request.
        """
        from tritonclient.grpc import InferInput
        from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

        tensor = InferInput(self._input, list(case.images.shape), "FP32")
        tensor.set_data_from_numpy(case.images)
        try:
            async with asyncio.timeout(seconds):
                result = await self._client.infer(self._model, [tensor], request_id=case.id)
        except TimeoutError:
            raise Broken(f"no answer within {seconds:g} s") from None
        except InferenceServerException as error:
            raise GrpcRefusal(f"gRPC {error.status()}", str(error)) from None
        if result.get_response().id != case.id:
            raise WrongAnswer(f"the id {result.get_response().id!r} in the answer to {case.id!r}")
        return {name: result.as_numpy(name) for name in case.outputs}

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()
