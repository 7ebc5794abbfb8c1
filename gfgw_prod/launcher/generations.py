"""Generations of a job's ranks: the protocol by which ranks are lost, replaced, join and leave while the others stay.

A generation is an immutable list of ranks in the store of the rendezvous. The first to write the next one decides it
(compare and set). ``regrouping.py`` is the launcher's side, ``resilience/membership.py`` the ranks'.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from torch.distributed import PrefixStore, Store

MOST = "most"  # key: the largest number of ranks that the run can have
FACTS = "facts"  # key: what determines the weights of the run, as JSON; a rank that joins compares its own
OVER = "over"  # key, set once a rank makes no more steps or cannot meet the others: no further generation begins
MEETING = "GFGW_GENERATIONS"  # environment variable: a rank's ``Offer`` as JSON

Member = tuple[str, int]  # a rank: its node, and its local rank


@dataclass(frozen=True)
class Offer:
    """What a launcher tells its ranks about generations.

    Attributes:
        host, port, prefix: address of the store, and prefix of the round's keys.
        keeper: the launcher that hosts the store; once it ends, no further generation begins.
        generation: number with which the rank begins; for a rank that joins, the newest generation without it.
        node: name of the rank's node.
        fewest_nodes: smallest number of nodes with which the job continues.
        is_new: whether the rank starts without state, because it joins or replaces a lost one.
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


def ready_key(generation: int, rank: int) -> str:
    """Key, set once a rank of a generation holds the state. Value: what the number of ranks must be a multiple of.

    0 means that the number of ranks cannot change.
    """
    return f"ready/{generation}/{rank}"


def begun_key(generation: int) -> str:
    """Key of a generation; set once it has begun."""
    return f"begun/{generation}"


def here_key(generation: int, rank: int) -> str:
    """Key, set once a rank is about to join the process group of a generation."""
    return f"group/{generation}/here/{rank}"


def missed_key(generation: int) -> str:
    """Key, set once a rank of a generation has lost its connection to another."""
    return f"missed/{generation}"


def answered_key(generation: int, node: str) -> str:
    """Key with which a node's launcher answers ``missed``: the node is alive."""
    return f"answered/{generation}/{node}"


def done_key(generation: int, rank: int) -> str:
    """Key, set once a rank no longer needs the process group that all are about to leave."""
    return f"done/{generation}/{rank}"


def built_key(member: Member) -> str:
    """Key, set once a joining rank has built its networks and can be admitted."""
    return f"built/{member[0]}/{member[1]}"


def node_of(launcher: str, number: int) -> str:
    """Name of a node in generations: its launcher, and how often that launcher has joined."""
    return f"{launcher}.{number}"


def launcher_of(node: str) -> str:
    """Name of a node's launcher."""
    return node.rpartition(".")[0]


@dataclass(frozen=True)
class Generation:
    """The ranks of a job between two changes of membership.

    Attributes:
        number: 0 for the first of a round.
        members: the ranks, in order.
        is_after_loss: whether it follows the loss of a rank; if not, ranks joined or left in order.
    """

    number: int
    members: tuple[Member, ...]
    is_after_loss: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """Its nodes, in the order of their ranks."""
        return tuple(dict.fromkeys(node for node, _ in self.members))

    def ranks_on(self, node: str) -> dict[int, int]:
        """Global rank by local rank, of a node."""
        return {local: rank for rank, (at, local) in enumerate(self.members) if at == node}

    def numbers_of(self, rank: int, local_ranks: int) -> dict[str, str]:
        """Environment variables with the numbers of a rank on a node of ``local_ranks`` processes.

        Empty if fewer ranks are left than that: one of the node is missing, whose numbers stay free.
        """
        size = len(self.members)
        numbers = {"RANK": rank, "WORLD_SIZE": size, "GROUP_WORLD_SIZE": len(self.nodes)} if size >= local_ranks else {}
        return {name: str(number) for name, number in numbers.items()}

    def successor(
        self,
        without: Collection[str] = (),
        more: Sequence[Member] = (),
        *,
        lost: Collection[Member] = (),
        is_after_loss: bool,
    ) -> Generation:
        """The next generation: nodes of ``without`` and ranks of ``lost`` drop out, and ``more`` are added.

        Nodes keep their order, and new ones come last. Within a node, ranks are in the order of their local ranks.
        """
        kept = [member for member in self.members if member[0] not in without and member not in lost]
        nodes = [*dict.fromkeys(node for node, _ in (*kept, *more))]
        ordered = sorted((*kept, *more), key=lambda member: (nodes.index(member[0]), member[1]))
        return Generation(self.number + 1, tuple(ordered), is_after_loss)


class Round:
    """The sequence of generations between two restarts of all ranks, in the store of the rendezvous.

    Args:
        prefix: of this round's keys.
    """

    def __init__(self, store: Store, prefix: str):
        self.keys, self.prefix = PrefixStore(prefix, store), prefix

    def first(self, node: str, ranks: Sequence[int], world_size: int) -> None:
        """Publish which ranks of the first generation run on a node."""
        for local, rank in enumerate(ranks):
            self.keys.set(f"first/{rank}", json.dumps((node, local)))
        self.keys.set("first/size", str(world_size))

    def is_known(self) -> bool:
        """Whether all nodes have published their ranks of the first generation."""
        return self.keys.check(["first/size"]) and self.keys.check(
            [f"first/{rank}" for rank in range(int(self.keys.get("first/size")))]
        )

    def newest(self, since: int) -> int:
        """Number of the newest generation; ``since`` has begun."""
        while self.keys.check([begun_key(since + 1)]):
            since += 1
        return since

    def read(self, number: int) -> Generation:
        """Read a generation that has begun; for the first, wait until all nodes have published their ranks."""
        if number:
            value = json.loads(self.keys.get(begun_key(number)))
            return Generation(number, tuple((node, local) for node, local in value["members"]), value["is_after_loss"])
        ranks = range(int(self.keys.get("first/size")))
        members = (json.loads(self.keys.get(f"first/{rank}")) for rank in ranks)
        return Generation(0, tuple((node, local) for node, local in members))

    def begin(self, generation: Generation) -> bool:
        """Begin a generation. Returns whether it is the one that has begun: another may have taken its number."""
        value = json.dumps({"members": generation.members, "is_after_loss": generation.is_after_loss}).encode()
        return bool(self.keys.compare_set(begun_key(generation.number), "", value.decode()) == value)

    def is_over(self) -> bool:
        """Whether a rank has made its last step, so that no further generation begins."""
        return self.keys.check([OVER])

    def multiple(self, generation: Generation) -> int | None:
        """What the number of ranks must be a multiple of; 0 if it cannot change; ``None`` unless all hold the state."""
        everyone = [ready_key(generation.number, rank) for rank in range(len(generation.members))]
        if not self.keys.check(everyone) or self.is_over():
            return None
        return int(self.keys.get(everyone[0]))

    def may_have(self, generation: Generation, ranks: int) -> bool:
        """Whether the number of ranks could change from this generation to ``ranks`` now."""
        multiple = self.multiple(generation)
        fits = multiple is not None and multiple > 0 and ranks > 0 and ranks % multiple == 0
        return fits and ranks <= int(self.keys.get(MOST))
