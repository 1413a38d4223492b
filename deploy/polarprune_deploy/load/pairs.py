"""Two servers against each other: blocks of closed-loop load in turn, and their paired ratio.

In each round each server gets the load once, in random order, and the candidate a second time over
connections of its own: the control. While one is loaded the others have nothing to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from polarprune.errors import ConfigError, Refused, ServerError
from polarprune_deploy.concluding import THROTTLED_SHARE
from polarprune_deploy.environment import stolen_seconds, usable_cpus
from polarprune_deploy.latency import MAX_SECONDS
from polarprune_deploy.load.loops import ClosedLoop
from polarprune_deploy.load.samples import Outcome, Samples
from polarprune_deploy.load.targets import Target
from polarprune_deploy.statistics import (
    CONTROL_CONFIDENCE,
    RatioInterval,
    Verdict,
    corrected_confidence,
    decide,
    paired_ratio,
)

WARM_UP_SECONDS = 0.5
BLOCK_SECONDS = 0.2
# All clients start a block together and end it one by one; among so many of each that is little.
_ANSWERS_OF_A_CLIENT = 5


@dataclass(frozen=True)
class Block:
    """One block of load on one server; `other` counts what came in place of right answers."""

    round: int
    position: int
    role: str
    answers: int
    elapsed_s: float
    other: int
    wrong: int

    @property
    def answer_ms(self) -> float:
        """Time for one answer, all clients busy."""
        return self.elapsed_s / self.answers * 1e3


@dataclass(frozen=True)
class ServerPair:
    """What came of one comparison.

    Attributes:
        against_ms, ms: medians over blocks, time for one answer while all clients are busy.
        blocks: the raw samples.
    """

    server: str
    against: str
    model: str
    clients: int
    batch: int
    block_seconds: float
    against_ms: float
    ms: float
    effect: RatioInterval
    control: RatioInterval
    verdict: Verdict
    reason: str
    stolen_share: float
    blocks: tuple[Block, ...]

    @property
    def wrong(self) -> int:
        """Answers, of any side, that were not the first one to their request once more."""
        return sum(block.wrong for block in self.blocks)

    def row(self) -> dict[str, object]:
        """The row of `bench --server --against-server --json`."""
        return {
            "server": self.server,
            "against": self.against,
            "model": self.model,
            "scenario": "closed",
            "clients": self.clients,
            "rate": None,
            "batch": self.batch,
            "quantity": "time for one answer while all clients are busy",
            "against_ms": self.against_ms,
            "ms": self.ms,
            "against_throughput": self.batch * 1e3 / self.against_ms,
            "throughput": self.batch * 1e3 / self.ms,
            **self.effect.as_json(),
            "verdict": self.verdict,
            "reason": self.reason,
            "control": self.control.as_json(),
            "rounds": self.effect.rounds,
            "stolen_share": self.stolen_share,
            "wrong": self.wrong,
        }


def check_alike(candidate: Target, against: Target) -> None:
    """Both servers take the same requests.

    Raises:
        ConfigError: they do not.
    """
    mine, other = ([(t.name, t.datatype, t.shape[1:]) for t in each.model.inputs]
                   for each in (candidate, against))  # fmt: skip
    if mine != other:
        raise ConfigError(
            f"{candidate.url} and {against.url} must take the same inputs to be compared, got "
            f"{mine} and {other}"
        )


async def compare(
    candidate: Target, against: Target, *, clients: int, rounds: int, family: int, seed: int
) -> ServerPair:
    """Load both in turn.

    Args:
        candidate: the server in question.
        against: what it is compared with.
        clients: of the closed loop.
        rounds: paired samples.
        family: how many such comparisons are drawn together.
        seed: decides the order inside each round.

    Raises:
        ServerError: one of them is gone, or had no right answer in a whole block.
        Refused: they are too slow for so many rounds.
    """
    targets = {"against": against, "candidate": candidate, "control": candidate}
    loops = {
        role: ClosedLoop(target.dialer, target.ring, target.first, clients)
        for role, target in targets.items()
    }
    stolen, blocks = stolen_seconds(), []
    generator = np.random.default_rng(seed)
    try:
        warm = [_block(-1, 0, role, await loops[role].run(WARM_UP_SECONDS)) for role in loops]
        seconds = _block_seconds(warm, clients, rounds)
        for number in range(rounds):
            for position, role in enumerate(generator.permutation(list(loops)).tolist()):
                blocks.append(_block(number, position, role, await loops[role].run(seconds)))
    except _NoAnswers as error:
        raise ServerError(
            f"{targets[error.role].url} gave no right answer for {seconds:g} s"
        ) from None
    finally:
        for loop in loops.values():
            await loop.close()
    spent = sum(block.elapsed_s for block in blocks)
    effect, control = _ratios(blocks, family)
    share = (stolen_seconds() - stolen) / spent / usable_cpus()
    verdict, reason = _judge(effect, control, blocks, share)
    return ServerPair(
        server=candidate.url,
        against=against.url,
        model=candidate.model.name,
        clients=clients,
        batch=candidate.kind.batch,
        block_seconds=seconds,
        against_ms=median(_times(blocks, "against")),
        ms=median(_times(blocks, "candidate")),
        effect=effect,
        control=control,
        verdict=verdict,
        reason=reason,
        stolen_share=share,
        blocks=tuple(blocks),
    )


class _NoAnswers(Exception):
    def __init__(self, role: str) -> None:
        super().__init__(role)
        self.role = role


def _block(number: int, position: int, role: str, samples: Samples) -> Block:
    right = samples.outcomes == Outcome.OK
    answers = int(np.sum(right))
    if not answers:
        raise _NoAnswers(role)
    return Block(
        round=number,
        position=position,
        role=role,
        answers=answers,
        elapsed_s=float(np.max(samples.done[right]) - samples.due[0]),
        other=len(samples) - answers,
        wrong=int(np.sum(samples.outcomes == Outcome.WRONG)),
    )


def _block_seconds(warm: Sequence[Block], clients: int, rounds: int) -> float:
    slowest = max(block.elapsed_s / block.answers for block in warm)
    seconds = max(BLOCK_SECONDS, _ANSWERS_OF_A_CLIENT * clients * slowest)
    needed = seconds * rounds * len(warm)
    if needed > MAX_SECONDS:
        raise Refused(
            f"{rounds} rounds would take {needed:.0f} s, over the {MAX_SECONDS:.0f} s allowed; "
            "use a smaller --batch or fewer --clients"
        )
    return seconds


def _times(blocks: Sequence[Block], role: str) -> list[float]:
    return [block.answer_ms for block in blocks if block.role == role]


def _ratios(blocks: Sequence[Block], family: int) -> tuple[RatioInterval, RatioInterval]:
    # Blocks lie in round order, so equal positions in these rows are one round.
    against, candidate, control = (
        _times(blocks, role) for role in ("against", "candidate", "control")
    )
    wide = corrected_confidence(family, CONTROL_CONFIDENCE)
    return (
        paired_ratio(against, candidate, confidence=corrected_confidence(family)),
        paired_ratio(candidate, control, confidence=wide),
    )


def _judge(
    effect: RatioInterval, control: RatioInterval, blocks: Sequence[Block], stolen_share: float
) -> tuple[Verdict, str]:
    other = sum(block.other for block in blocks)
    if other:
        return "inconclusive", f"{other:,} requests were refused, failed or answered wrongly"
    if stolen_share > THROTTLED_SHARE:
        return "inconclusive", (
            f"the machine throttled: {stolen_share:.0%} of the CPU time was taken away"
        )
    return decide(effect, control)
