"""The image in a request's body: the whole body, or the one file of a form.

Forms are what `curl -F image=@x.jpg` and browsers send (RFC 7578). Names in a form are never used.
"""

from email.message import Message
from email.parser import BytesHeaderParser

from polarprune_deploy.serving.request_errors import BAD, RequestError

LONGEST_BOUNDARY = 70
"""Characters (RFC 2046, 5.1.1)."""
MOST_PARTS = 32
LARGEST_PART_HEADER = 8 << 10
"""Bytes."""
ONE_IMAGE = "send one image a request, in a field with a file: curl -F image=@image.jpg URL"


def uploaded_image(body: bytes, content_type: bytes) -> bytes:
    """The bytes of the image.

    Args:
        content_type: the request's; only forms are told apart by it.

    Raises:
        RequestError: BAD; a form that is broken, or that has no file or several.
    """
    if not content_type.lower().startswith(b"multipart/form-data"):
        return body
    files = [content for is_file, content in _parts(body, _boundary(content_type)) if is_file]
    if len(files) != 1:
        raise RequestError(BAD, f"the form holds {len(files)} files; {ONE_IMAGE}")
    return files[0]


def _boundary(content_type: bytes) -> bytes:
    header = Message()
    header["content-type"] = content_type.decode("latin-1")
    boundary = header.get_boundary() or ""
    if not 0 < len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii():
        raise RequestError(BAD, f"the form's content type states no boundary; {ONE_IMAGE}")
    return boundary.encode()


def _parts(body: bytes, boundary: bytes) -> list[tuple[bool, bytes]]:
    """Of each part whether it is a file, and its content."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, MOST_PARTS + 2)
    if len(pieces) > MOST_PARTS + 2:
        raise RequestError(BAD, f"the form has more than {MOST_PARTS} fields; {ONE_IMAGE}")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise RequestError(BAD, f"the form is cut short; {ONE_IMAGE}")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> tuple[bool, bytes]:
    head, blank, content = piece.partition(b"\r\n\r\n")
    if not blank or len(head) > LARGEST_PART_HEADER:
        raise RequestError(BAD, f"a field of the form has no headers; {ONE_IMAGE}")
    headers = BytesHeaderParser().parsebytes(head.lstrip())
    name = headers.get_param("filename", header="content-disposition")
    return name is not None, content
