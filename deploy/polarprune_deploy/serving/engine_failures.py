"""Which errors of an engine leave a device that gives no results, or wrong ones, from then on.

CUDA keeps an error of a kernel (a wrong address, an assertion on the device) for the life of the
process: every later call fails with it. Running out of memory is not such an error.
"""

import re

STICKY = re.compile(
    r"illegal (memory access|address|instruction)|misaligned address|device-side assert|"
    r"unspecified launch failure|launch timed out|hardware stack error|"
    r"uncorrectable ECC|device unavailable|cudaError(IllegalAddress|Assert|LaunchFailure|"
    r"LaunchTimeout|EccUncorrectable|HardwareStackError|MisalignedAddress|IllegalInstruction)|"
    r"CUDA (error|failure) (4|46|214|700|702|710|714|715|716|717|718|719)\b",
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
