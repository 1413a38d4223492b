"""What a run folder tells of its gates, for a picture of it."""

from collections.abc import Sequence
from pathlib import Path

from polarprune.errors import RunFolderError
from polarprune.inspection.inspecting import SiteRow
from polarprune.runs.run_folder import OPENNESS_FILE
from polarprune.runs.run_lines import CutLine, EpochLine, OpennessLine


class GateStory:
    """The openness of every unit of every site, from the first step to the last.

    Attributes:
        steps: training steps at which openness was written.
        search_step: where gates began to decide.
        cut_steps: where something was cut.
        settle_step: the last cut, behind which no gate is left; None where the run is not finished
            or nothing was cut.
        last_step: the end, as far as the run has come.
    """

    def __init__(
        self,
        run: Path,
        sites: Sequence[SiteRow],
        openness: Sequence[OpennessLine],
        cuts: Sequence[CutLine],
        epochs: Sequence[EpochLine],
    ) -> None:
        """Put together what was read.

        Args:
            sites: of the run's network; `kept` is None where the run is not finished.
            openness: at least one line.

        Raises:
            RunFolderError: openness is not that of these sites.
        """
        self.sites = tuple(sites)
        self._lines = openness
        self.steps = [line.step for line in openness]
        gap = self.steps[1] - self.steps[0] if len(self.steps) > 1 else 1
        self.search_step = max(0, self.steps[0] - gap)
        self.cut_steps = [cut.step for cut in cuts]
        decided = all(site.kept is not None for site in sites)
        self.settle_step = self.cut_steps[-1] if decided and cuts else None
        self.last_step = max(
            self.steps[-1], *self.cut_steps, *(line.step for line in epochs), self.search_step
        )
        for site in sites:
            units = len(openness[0].open.get(site.name, ()))
            if units != site.units:
                raise RunFolderError(
                    f"{run / OPENNESS_FILE} tells of {units} units of the site {site.name}, and "
                    f"the network has {site.units}; it belongs to another network: move it away"
                )

    def curves(self, site: SiteRow) -> list[tuple[list[int], list[float], bool | None]]:
        """(steps, openness, whether it was kept) of each unit, from the start to its end.

        A run stores how many units of a site were kept; they are those that were open widest. None
        where nothing is settled: such a curve ends where openness was written last.
        """
        last = self._lines[-1].open[site.name]
        order = sorted(range(site.units), key=lambda unit: last[unit], reverse=True)
        kept = set(order[: site.kept or 0])
        found: list[tuple[list[int], list[float], bool | None]] = []
        for unit in range(site.units):
            steps = [0, self.search_step, *self.steps]
            values = [1.0, 1.0, *(line.open[site.name][unit] for line in self._lines)]
            if self.settle_step is None:
                found.append((steps, values, None))
            elif unit in kept:
                ends = [self.settle_step, self.last_step]
                found.append(([*steps, *ends], [*values, 1.0, 1.0], True))
            else:
                found.append(([*steps, self.settle_step], [*values, 0.0], False))
        return found

    def final(self, site: SiteRow) -> list[float]:
        """The openness of each unit when it was written last."""
        return list(self._lines[-1].open[site.name])
