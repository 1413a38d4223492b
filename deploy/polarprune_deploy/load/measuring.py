"""One load on one server, from the first connection to its figures."""

import asyncio
from dataclasses import dataclass
from math import comb

from polarprune_deploy.environment import stolen_seconds, usable_cpus
from polarprune_deploy.load.figures import LoadFigures
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.loops import ClosedLoop, OpenLoop
from polarprune_deploy.load.samples import Samples
from polarprune_deploy.load.schedule import poisson_arrivals
from polarprune_deploy.load.targets import Target
from polarprune_deploy.load.traffic import run_loop

_LEAD_SECONDS = 0.01


def measure(target: Target, plan: LoadPlan, clients: int, rate: float | None) -> LoadFigures:
    """One load.

    Args:
        target: the server, looked at.
        plan: scenario, seconds and seed.
        clients: of the closed loop, or the most connections of an open one.
        rate: arrivals a second; None is the closed loop.

    Raises:
        ServerError: the server is gone.
    """
    stolen = stolen_seconds()
    if rate is None:
        load = run_loop(_closed(target, plan, clients), exact_timers=False)
    else:
        load = run_loop(_open(target, plan, clients, rate), exact_timers=True)
    lasted = float(load.samples.done.max() - load.begin) + plan.warm_up
    return LoadFigures(
        server=target.url,
        model=target.model.name,
        scenario=plan.scenario,
        clients=clients,
        rate=rate,
        batch=target.kind.batch,
        samples=load.samples,
        begin=load.begin,
        seconds=plan.seconds,
        cpu_seconds=load.cpu_seconds,
        stolen_share=(stolen_seconds() - stolen) / lasted / usable_cpus(),
        alike=target.first.alike(),
        pairs=comb(len(target.ring), 2),
        binary=target.kind.binary,
    )


@dataclass(frozen=True)
class _Load:
    samples: Samples
    begin: float
    cpu_seconds: float


async def _closed(target: Target, plan: LoadPlan, clients: int) -> _Load:
    loop = ClosedLoop(target.dialer, target.ring, target.first, clients)
    begin = asyncio.get_running_loop().time() + plan.warm_up
    try:
        samples = await loop.run(plan.warm_up + plan.seconds)
    finally:
        await loop.close()
    return _Load(samples, begin, loop.cpu_seconds)


async def _open(target: Target, plan: LoadPlan, connections: int, rate: float) -> _Load:
    arrivals = poisson_arrivals(rate, plan.warm_up + plan.seconds, plan.seed)
    loop = OpenLoop(target.dialer, target.ring, target.first, connections)
    start = asyncio.get_running_loop().time() + _LEAD_SECONDS
    try:
        samples = await loop.run(arrivals, start)
    finally:
        await loop.close()
    return _Load(samples, start + plan.warm_up, loop.cpu_seconds)
