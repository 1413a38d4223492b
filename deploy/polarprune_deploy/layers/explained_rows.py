"""`bench --explain`: which ways of running can be explained, and by what.

Whatever would refuse an explanation is found before anything is measured: minutes of timed rows are
not lost to it.
"""

from collections.abc import Sequence

from polarprune.errors import ConfigError
from polarprune_deploy.backends.loading import ENGINE_BACKENDS, How
from polarprune_deploy.backends.runners import Runner
from polarprune_deploy.layers.explanation import Explanation

EXPLAINED = (
    "--explain needs --backend onnxruntime on a CPU, or --backend torch --mode eager on a CPU or "
    "GPU"
)


def check_explainable(how: How, *, cache: str, across_precisions: bool) -> None:
    """Refuse what no explanation is made of; words that mean nothing are left to `check_how`.

    Raises:
        ConfigError: the layers' times can't be read there, or would not be those of the rows.
    """
    words = ""
    if how.runtime in ENGINE_BACKENDS:
        words = f"the layers of {how.runtime} engines are not timed; {EXPLAINED}"
    elif how.runtime == "onnxruntime" and how.device == "cuda":
        words = (
            "on a GPU onnxruntime's profile has the time to launch a node, not the node's own; "
            f"{EXPLAINED}"
        )
    elif how.mode != "eager":
        words = f"--mode {how.mode} leaves no layers to be timed; {EXPLAINED}"
    elif cache != "warm":
        words = f"--explain times warm runs, got --cache {cache}; leave one of the two out"
    elif across_precisions:
        words = "--explain compares MACs of one precision; leave --across-precisions out"
    if words:
        raise ConfigError(words)


class RowExplainer:
    """Explains the rows of one bench; what the machine can do is measured once for all of them."""

    def __init__(self, how: How) -> None:
        """Nothing is measured yet."""
        from polarprune_deploy.layers.explaining import Explainer

        self._runtime = how.runtime
        self._onnxruntime = Explainer()

    def check(self, runners: Sequence[Runner]) -> None:
        """Refuse two networks that can't be explained.

        Raises:
            ConfigError: one of them has no layer with MACs.
            BackendUnavailable: this version of the backend tells no times of layers.
        """
        if self._runtime == "onnxruntime":
            self._onnxruntime.check(*runners)
            return
        from polarprune_deploy.backends.runner_torch import TorchRunner
        from polarprune_deploy.layers.layer_times_torch import require_layers

        for runner in runners:
            assert isinstance(runner, TorchRunner)
            require_layers(runner.network, runner.name)

    def explain(self, runners: Sequence[Runner], *, batch: int, seed: int) -> Explanation:
        """Where the candidate's time goes, at one batch size, with the row's own inputs.

        Args:
            runners: what the pruned network was made from, and the pruned network.
            batch: images.
            seed: the bench's.
        """
        against, candidate = runners
        if self._runtime == "onnxruntime":
            return self._onnxruntime.explain(against, candidate, batch=batch, seed=seed)
        import numpy as np

        from polarprune_deploy.backends.input_making import random_inputs
        from polarprune_deploy.backends.runner_torch import TorchRunner
        from polarprune_deploy.layers.explaining_torch import explain_torch

        assert isinstance(against, TorchRunner)
        assert isinstance(candidate, TorchRunner)
        inputs = random_inputs(against, batch, np.random.default_rng([seed, batch]))
        return explain_torch(against.network, candidate.network, candidate.placed(inputs))
