"""Bounds on what a decoder is made to do for a small file.

Pixels are bounded elsewhere. Beside them, time goes into the pieces that a file consists of, which
Pillow reads one by one in Python, and into a JPEG's scans, each of which passes over the whole
image: 75 bytes can cost a tenth of a second. Photographs have tens of pieces and up to a dozen
scans.
"""

import io
import re

from polarprune_deploy.serving.request_errors import TOO_LARGE, RequestError

MOST_READS = 100_000
"""Of a file, by its decoder; a PNG takes about three for 8 KiB."""
MOST_SEGMENTS = 4096
"""Of a JPEG; the largest bodies hold 1024 of the size that a segment can have."""
MOST_SCANS = 100
# Every other marker stands alone (1.1.3 of the standard, B.1) or is data.
SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


class CountedFile(io.BytesIO):
    """A file in memory that can be read from only so often."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As every file.

        Raises:
            RequestError: TOO_LARGE; once too often.
        """
        self.reads += 1
        if self.reads > MOST_READS:
            raise RequestError(TOO_LARGE, "the image is in too many pieces")
        return super().read(size)


def check_scans(content: bytes) -> None:
    """Count a JPEG's segments and scans as its decoder will meet them.

    What follows its end (a film, a second picture) is never decoded.

    Raises:
        RequestError: TOO_LARGE; more than any camera or program writes.
    """
    segments = scans = at = 0
    while found := SEGMENT.search(content, at):
        kind = found[0][1]
        if kind == END_OF_IMAGE:
            return
        segments += 1
        scans += kind == START_OF_SCAN
        if segments > MOST_SEGMENTS or scans > MOST_SCANS:
            raise RequestError(TOO_LARGE, "the JPEG has too many segments or scans")
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
