"""The order of faults and launches, as a function of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .faults import Fault
from .job import Launch

FAULTS_PER_LAUNCH = 6
EVEN, UNEVEN = ((2, "ddp"), (2, "fsdp"), (2, "fsdp")), (3, "ddp")  # ranks of one host, and the strategy


@dataclass(frozen=True)
class Planned:
    """A fault and the launch that it hits."""

    fault: Fault
    launch: Launch


def schedule(seed: int, count: int, kinds: Sequence[Fault]) -> list[Planned]:
    """Distribute the kinds evenly and in random order over launches with different ranks, hosts and strategies.

    A fault that ends the whole job comes last in its launch.
    """
    chance = Random(seed)
    dealt = [kind for _ in range(-(-count // len(kinds))) for kind in chance.sample(kinds, len(kinds))][:count]
    launches = _launches(chance, count // FAULTS_PER_LAUNCH, kinds)
    struck: dict[int, list[Fault]] = {number: [] for number in range(len(launches))}
    for kind in dealt:
        fitting = [number for number, launch in enumerate(launches) if kind.fits(launch)]
        fewest = min(len(struck[number]) for number in fitting)
        struck[chance.choice([number for number in fitting if len(struck[number]) <= fewest + 1])].append(kind)
    for number, faults in struck.items():
        chance.shuffle(faults)
        if ends := [kind for kind in faults if kind.ends(launches[number])]:
            faults.remove(ends[0])
            faults.append(ends[0])
    return [Planned(fault, launches[number]) for number, faults in struck.items() for fault in faults]


def _launches(chance: Random, count: int, kinds: Sequence[Fault]) -> list[Launch]:
    """Launches such that every kind fits one of them."""
    two_hosts = not all(kind.fits(Launch(audit=True)) for kind in kinds)
    audit = not all(kind.fits(Launch()) or kind.fits(Launch(hosts=2)) for kind in kinds)
    ways = [*chance.sample(EVEN, len(EVEN)), UNEVEN]
    if any(kind.fits(Launch()) and not kind.fits(Launch(strategy="fsdp")) for kind in kinds):
        ways.sort(key=lambda way: way != EVEN[0])  # the first launch has replicas
    return [
        Launch(
            hosts=2 if two_hosts and number % 3 == 1 else 1,
            ranks=ways[number % len(ways)][0],
            strategy=ways[number % len(ways)][1],
            audit=audit and number % 2 == 0,
        )
        for number in range(max(count, 2 if two_hosts else 1))
    ]
