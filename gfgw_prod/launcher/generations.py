"""Generations of a job's ranks: ranks are lost, replaced, join and leave, and the others stay.

A generation is a list of ranks in the rendezvous' store. It never changes; whoever writes the next one first decides.
``regrouping.py`` is the launcher's side, ``resilience/membership.py`` the ranks'.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from torch.distributed import PrefixStore, Store

MOST = "most"  # the key of the largest number of ranks that the run can have
OVER = "over"  # the key that says that a rank makes no more steps: from now on no generation begins
MEETING = "GFGW_GENERATIONS"  # an ``Offer`` to a rank, as JSON

Member = tuple[str, int]  # a rank's node, and its number there


@dataclass(frozen=True)
class Offer:
    """What a launcher tells its ranks.

    Attributes:
        host, port, prefix: of the store.
        keeper: the launcher that has the store; if it ends, no generation begins any more.
        generation: with which the rank begins; of a rank that joins, the newest without it.
        node: that of the rank.
        fewest_nodes: with which the job goes on.
        is_new: whether the rank has no state, as it joins or replaces a lost one.
    """

    host: str
    port: int
    prefix: str
    keeper: str
    generation: int
    node: str
    fewest_nodes: int
    is_new: bool

    def text(self) -> str:
        """The offer for the environment of a rank."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Offer | None:
        """The offer in the environment of a rank, if there is one."""
        return cls(**json.loads(text)) if text else None


def ready(generation: int, rank: int) -> str:
    """The key that says that a rank of a generation holds the state, and of what the number of ranks is a multiple.

    0 stands for a number that cannot change.
    """
    return f"ready/{generation}/{rank}"


def begun(generation: int) -> str:
    """The key of a generation that has begun; its value is a ``Generation``."""
    return f"begun/{generation}"


def here(generation: int, rank: int) -> str:
    """The key that says that a rank is about to join the group of a generation."""
    return f"group/{generation}/here/{rank}"


def missed(generation: int) -> str:
    """The key that says that a rank has lost the connection to another."""
    return f"missed/{generation}"


def answered(generation: int, node: str) -> str:
    """The key with which a launcher answers to the one before: its node is there."""
    return f"answered/{generation}/{node}"


def done(generation: int, rank: int) -> str:
    """The key that says that a rank needs the present group no more, which others leave."""
    return f"done/{generation}/{rank}"


def built(member: Member) -> str:
    """The key that says that a rank that joins is ready to be let in."""
    return f"built/{member[0]}/{member[1]}"


def node_of(launcher: str, number: int) -> str:
    """The name of a node in generations: its launcher, and how often that has joined."""
    return f"{launcher}.{number}"


def launcher_of(node: str) -> str:
    """The launcher of a node."""
    return node.rpartition(".")[0]


@dataclass(frozen=True)
class Generation:
    """The ranks of a job for some time.

    Attributes:
        members: by rank.
        is_after_loss: whether a rank was lost before it, or else ranks came or went.
    """

    number: int
    members: tuple[Member, ...]
    is_after_loss: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """Its nodes, in the order of their ranks."""
        return tuple(dict.fromkeys(node for node, _ in self.members))

    def ranks_on(self, node: str) -> dict[int, int]:
        """The ranks of a node, by their numbers there."""
        return {local: rank for rank, (at, local) in enumerate(self.members) if at == node}

    def followed(
        self, without: Collection[str] = (), more: Sequence[Member] = (), *, is_after_loss: bool
    ) -> Generation:
        """The next one, without some nodes. The remaining ranks keep their order, and those that join come last."""
        kept = tuple(member for member in self.members if member[0] not in without)
        return Generation(self.number + 1, (*kept, *more), is_after_loss)


class Round:
    """The generations between two restarts of all ranks.

    Args:
        store: of the rendezvous.
        prefix: of the keys.
    """

    def __init__(self, store: Store, prefix: str):
        self.keys, self.prefix = PrefixStore(prefix, store), prefix

    def first(self, node: str, ranks: Sequence[int], world_size: int) -> None:
        """Say which ranks of the first generation a node has."""
        for local, rank in enumerate(ranks):
            self.keys.set(f"first/{rank}", json.dumps((node, local)))
        self.keys.set("first/size", str(world_size))

    def is_known(self) -> bool:
        """Whether all nodes have said which ranks of the first generation they have."""
        return self.keys.check(["first/size"]) and self.keys.check(
            [f"first/{rank}" for rank in range(int(self.keys.get("first/size")))]
        )

    def newest(self, since: int) -> int:
        """The number of the newest generation; that of one that has begun is known."""
        while self.keys.check([begun(since + 1)]):
            since += 1
        return since

    def read(self, number: int) -> Generation:
        """A generation that has begun. Of the first one, wait until it is known."""
        if number:
            value = json.loads(self.keys.get(begun(number)))
            return Generation(number, tuple((node, local) for node, local in value["members"]), value["is_after_loss"])
        ranks = range(int(self.keys.get("first/size")))
        members = (json.loads(self.keys.get(f"first/{rank}")) for rank in ranks)
        return Generation(0, tuple((node, local) for node, local in members))

    def begin(self, generation: Generation) -> bool:
        """Begin a generation. Whether it has begun: another one may have begun with this number."""
        value = json.dumps({"members": generation.members, "is_after_loss": generation.is_after_loss}).encode()
        return bool(self.keys.compare_set(begun(generation.number), "", value.decode()) == value)

    def is_over(self) -> bool:
        """Whether a rank makes no more steps."""
        return self.keys.check([OVER])

    def multiple(self, generation: Generation) -> int | None:
        """Of what the number of ranks is a multiple; 0 if it cannot change; ``None`` unless all hold the state."""
        everyone = [ready(generation.number, rank) for rank in range(len(generation.members))]
        if not self.keys.check(everyone) or self.is_over():
            return None
        return int(self.keys.get(everyone[0]))

    def may_have(self, generation: Generation, ranks: int) -> bool:
        """Whether the ranks of a generation, which hold the state, could be followed by so many."""
        multiple = self.multiple(generation)
        fits = multiple is not None and multiple > 0 and ranks > 0 and ranks % multiple == 0
        return fits and ranks <= int(self.keys.get(MOST))
