"""Errors as torch, ONNX Runtime and TensorRT word them: which end the process."""

import pytest

from polarprune_deploy.serving.engine_failures import is_fatal


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be "
        "asynchronously reported at some other API call",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: misaligned address",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: invalid program counter",
        "CUDA error: operation not supported on global/shared address space",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error",
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a",
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unknown ; GPU=0 ; expr=cudaStream",
        "1: [defaultAllocator.cpp::deallocate::61] Error Code 1: Cuda Runtime (cudaErrorContained)",
        "CUDA error 700 at layer 3",
    ],
)
def test_an_error_that_stays_is_fatal(words: str) -> None:
    assert is_fatal(RuntimeError(words))


@pytest.mark.parametrize(
    "words",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "CUDA out of memory. Tried to allocate 700.00 MiB",
        "CUDA error: out of memory",
        "CUDA failure 7000: of another kind",
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input",
        "the engine did not run; its log says why",
        "",
    ],
)
def test_an_error_that_passes_is_not(words: str) -> None:
    assert not is_fatal(RuntimeError(words))
