"""The page at `/`: one file, and headers that let it load and send to nothing but this server.

Its one script and one style are allowed by their digests, so that nothing else runs even if a name
in a bundle or a file were ever taken for HTML; and the browser is told to refuse to make HTML of
text at all.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

PAGE = (files("polarprune_deploy.serving") / "page.html").read_bytes()


def _digest(tag: bytes) -> str:
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


PAGE_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": "; ".join(
            (
                "default-src 'none'",
                f"script-src {_digest(b'script')}",
                f"style-src {_digest(b'style')}",
                "img-src blob: data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        ),
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
)
