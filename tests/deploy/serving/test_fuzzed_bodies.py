"""A few hundred bodies of those that `benchmarks.hostile_input` sends by the hundred thousand."""

from collections import Counter

from benchmarks.hostile_input.fuzz import Tally, Worker
from benchmarks.hostile_input.verdicts import REFUSED, RIGHT, UNEXPECTED
from tests.deploy.serving.hostile_server import HostileServer

BODIES = 400


def test_every_fuzzed_body_is_answered_rightly_or_refused(server: HostileServer) -> None:
    tally = Tally()
    Worker(server, tally, 1, 0).work(BODIES)
    assert not tally.kept
    words: Counter[str] = Counter()
    for (_, word), count in tally.verdicts.items():
        words[word] += count
    assert words[UNEXPECTED] == 0
    assert words[RIGHT] > BODIES / 10
    assert words[REFUSED] > BODIES / 3
    assert tally.verdicts["good", RIGHT] == sum(n for (k, _), n in tally.verdicts.items()
                                                if k == "good") > 5  # fmt: skip
    server.check_well(1)
