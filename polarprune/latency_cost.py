"""The expected latency of a gated network, from a table of measured layers, differentiable."""

import torch
from torch import Tensor

from polarprune.errors import ConfigError
from polarprune.graph.cost import CostCircuit, as_float
from polarprune.graph.site_parts import Openness, plain_number, times
from polarprune.graph.sites import Analysis, MixCost
from polarprune.latency_table import LatencyTable

NANOSECONDS = 1e6  # in a millisecond; budgets count in whole numbers


class LatencyCircuit:
    """Milliseconds that a network takes, as a function of its open probabilities.

    latency = factor x sum over layers of P(live) x T(E[open inputs], E[open outputs]) + constant,
    T the table's interpolated time. Where every probability is 0 or 1 the counts are those of the
    collapsed network's layers, exactly. Source: ours.
    """

    def __init__(self, analysis: Analysis, circuit: CostCircuit, table: LatencyTable) -> None:
        """The circuit of one analysed network.

        Raises:
            ConfigError: a layer of it is not in the table.
        """
        self._costs = analysis.costs
        self._circuit = circuit
        self._table = table
        missing = [c for c in self._costs if c.geometry not in table.points]
        if missing:
            raise ConfigError(
                f"the latency table, measured for {table.head.get('model')}, has no "
                f"{missing[0].geometry} ({missing[0].mix.layer}), one of {len(missing)} layers "
                "that it lacks; measure this network at this image size with: polarprune profile"
            )
        ones = [torch.ones(site.units, dtype=torch.float64) for site in analysis.sites]
        self.dense_ms = self.exact_ms(ones)

    def expected_ms(self, probabilities: list[Tensor], align: int) -> Openness:
        """Expected milliseconds of one call.

        Args:
            probabilities: per site (units,), in 0..1.
            align: what kept counts will be multiples of.
        """
        found = self._circuit.evaluate(probabilities)
        total: Openness = 0.0
        for cost, live, inputs, outputs in zip(
            self._costs, found.live, found.open_inputs, found.open_outputs, strict=True
        ):
            total = total + times(live, self._layer_ms(cost, inputs, outputs, align))
        return total * self._table.factor + self._table.fixed_ms

    def exact_ms(self, decisions: list[Tensor]) -> float:
        """Milliseconds of the network that these decisions leave (0 or 1, site order)."""
        with torch.no_grad():
            return as_float(self.expected_ms([d.double() for d in decisions], 1))

    def _layer_ms(self, cost: MixCost, inputs: Openness, outputs: Openness, align: int) -> Openness:
        at_inputs, at_outputs = plain_number(inputs), plain_number(outputs)
        if at_inputs <= 0 or at_outputs <= 0:
            return 0.0
        slope = self._table.layer(cost.geometry, at_inputs, at_outputs, align)
        # The tangent: what autograd would find of the interpolation, at a fraction of the nodes.
        ms: Openness = slope.ms
        if isinstance(inputs, Tensor) and slope.inputs:
            ms = ms + (inputs - at_inputs) * slope.inputs
        if isinstance(outputs, Tensor) and slope.outputs:
            ms = ms + (outputs - at_outputs) * slope.outputs
        return ms
