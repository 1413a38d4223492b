"""`polarprune serve` as no user has it; the first argument says in which way.

slow: a batch takes 30 ms longer. sticky: an image with a value above 1e20 breaks the device, which
gives nothing but zeros from then on. hang: such an image is computed for ever. held: no bundle is
ever loaded to the end. A JSON object: bounds that the command line has no options for.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from polarprune import cli
from polarprune_deploy.serving import repository, server
from polarprune_deploy.serving.batcher import Named
from polarprune_deploy.serving.model_loading import LoadedModel, load_model
from polarprune_deploy.serving.serve_options import ServeOptions

LARGE = 1e20
STICKY = "CUDA error: an illegal memory access was encountered"


class HurtEngine:
    """An engine, and what is done before each of its runs."""

    def __init__(self, engine: Any, hurt: Callable[[bool], bool]) -> None:
        self._engine, self._hurt = engine, hurt

    def assemble(self, parts: Sequence[Named], rows: int) -> Named:
        batch: Named = self._engine.assemble(parts, rows)
        return batch

    def run(self, batch: Named, rows: int) -> Named:
        broken = self._hurt(any((array > LARGE).any() for array in batch.values()))
        outputs: Named = self._engine.run(batch, rows)
        return {name: array * (not broken) for name, array in outputs.items()}

    def close(self) -> None:
        self._engine.close()


def slow(_: bool) -> bool:
    time.sleep(0.03)
    return False


def hang(large: bool) -> bool:
    if large:
        print('{"message": "hanging"}', file=sys.stderr, flush=True)
        threading.Event().wait()
    return False


class Sticky:
    """A device that stays broken."""

    broken = False

    def __call__(self, large: bool) -> bool:
        if large and not self.broken:
            self.broken = True
            raise RuntimeError(STICKY)
        return self.broken


def hurt_engines(way: str) -> None:
    """Every engine, from now on."""
    hurt: Callable[[bool], bool] = {"slow": slow, "hang": hang, "sticky": Sticky()}.get(way, hang)

    def load(*args: Any) -> LoadedModel:
        if way == "held":
            threading.Event().wait()
        loaded = load_model(*args)
        engine = HurtEngine(loaded.engine, hurt)
        return LoadedModel(loaded.facts, engine)  # type: ignore[arg-type]

    repository.load_model = load  # type: ignore[assignment]
    server.FLUSH_SECONDS = 1  # type: ignore[attr-defined]


def change_bounds(changes: dict[str, Any]) -> None:
    """Of what is served from now on."""
    serve = server.serve

    def serve_within(options: ServeOptions) -> None:
        serve(replace(options, bounds=replace(options.bounds, **changes)))

    server.serve = serve_within  # type: ignore[assignment]


def main() -> None:
    way = sys.argv.pop(1)
    if way.startswith("{"):
        change_bounds(json.loads(way))
    else:
        hurt_engines(way)
    cli.main()


if __name__ == "__main__":
    main()
