"""Which errors of an engine leave a device that gives no results, or wrong ones, from then on.

CUDA keeps an error of a kernel (a wrong address, an assertion on the device) for the life of the
process: every later call fails with it. Running out of memory is not such an error.
"""

import re

WORDS = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ECC",
    "uncorrectable NVLink",
    "invalid access of peer GPU memory over nvlink or a hardware error",
    "device unavailable",
)
"""As CUDA describes them."""
NAMES = (
    "Assert|Contained|EccUncorrectable|HardwareStackError|IllegalAddress|IllegalInstruction|"
    "InvalidAddressSpace|InvalidPc|LaunchFailure|LaunchTimeout|MisalignedAddress|NvlinkUncorrectable"
)
"""Of cudaError_t, without its prefix."""
CODES = "4|46|214|220|226|700|702|710|714|715|716|717|718|719"
STICKY = re.compile(
    rf"{'|'.join(map(re.escape, WORDS))}|cudaError({NAMES})\b|CUDA (error|failure) ({CODES})\b",
    re.IGNORECASE,
)


def is_fatal(error: BaseException) -> bool:
    """Whether the process should end.

    >>> is_fatal(RuntimeError("CUDA error: an illegal memory access was encountered"))
    True
    >>> is_fatal(RuntimeError("CUDA failure 2: out of memory"))
    False
    """
    return STICKY.search(str(error)) is not None
