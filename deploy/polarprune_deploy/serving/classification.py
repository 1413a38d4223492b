"""Placeholder until the image side is merged."""

from typing import Any


async def classify(body: bytes, facts: Any, infer: Any, bounds: Any) -> Any:
    raise NotImplementedError
