"""What a source holds, in the order of rows, before any image is decoded. Imports no torch: workers start fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.images import Row, Rules

MOST_CLASSES = 100_000
DATASET_JSON = "dataset.json"  # EDM's and StyleGAN's file of labels


class Reader(Protocol):
    """Decodes items, in any process: it can be pickled, and opens files where it is used."""

    def row(self, item: int) -> Row:
        """The row ``(c, h, w)`` of an item.

        Raises:
            OddImageError: if there is none.
            UserError: if it cannot be read now, whatever it is.
        """


class Entry(NamedTuple):
    """An item as a source lists it: a name to tell it by, its class id, or why it cannot be taken."""

    name: str
    label: int | None
    odd: str | None = None


@dataclass(frozen=True)
class Listing:
    """The items of a source. An item may be more than an image: an archive that cannot be read is one, and is odd.

    Attributes:
        labels: class ids ``(n,)``, -1 where there is none.
        odd: why an item cannot be taken, by its number.
        peak: grey level of white.
        identity: changes when the source or the rules change.
        rules: by which images are decoded, by name; ``None`` of what is not decoded.
        labelled: whether the source tells classes at all.
    """

    names: Sequence[str]
    labels: NDArray[np.int64]
    num_classes: int
    peak: int
    reader: Reader
    odd: dict[int, str] = field(default_factory=dict)
    identity: str = ""
    rules: dict[str, Any] | None = None
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.names)


def listing_of(
    entries: Iterable[Entry],
    reader: Reader,
    *,
    peak: int,
    num_classes: int | None,
    identity: Sequence[Any],
    rules: Rules | None = None,
) -> Listing:
    """The entries in their order. Without labels at all, every image is of class 0.

    Args:
        num_classes: as the source says; else one more than its largest class id.
        identity: what the source and the rules are, as JSON.
    """
    names: list[str] = []
    labels: list[int] = []
    odd: dict[int, str] = {}
    kept = list(entries)
    labelled = any(entry.label is not None for entry in kept)
    for item, entry in enumerate(kept):
        label = -1 if entry.label is None else entry.label
        reason = entry.odd
        if reason is None and labelled and entry.label is None:
            reason = "has no label"
        most = MOST_CLASSES if num_classes is None else num_classes
        if reason is None and labelled and not 0 <= label < most:
            reason = f"has class id {str(label)[:40]}, which should lie between 0 and {most - 1:,}"
        if reason is not None:
            odd[item] = reason
        names.append(entry.name)
        labels.append(-1 if reason is not None else max(label, 0))
    ids = np.array(labels, dtype=np.int64)
    classes = num_classes if num_classes is not None else int(ids.max(initial=0)) + 1
    digest = hashlib.sha256(json.dumps([*identity, peak, classes]).encode())
    digest.update(json.dumps(names).encode())
    digest.update(ids.tobytes())
    decoded_by = None if rules is None else dict(vars(rules))
    return Listing(names, ids, classes, peak, reader, odd, digest.hexdigest(), decoded_by, labelled)


def labels_of(content: bytes) -> dict[str, int | str] | None:
    """Class ids by name of ``dataset.json``, or what is wrong with one; ``None`` if it holds no labels.

    Raises:
        ValueError: with the reason, if it is no such file.
    """
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(read, dict):
        raise ValueError("should be an object with a list of labels")
    if read.get("labels") is None:
        return None
    if not isinstance(read["labels"], list):
        raise ValueError("should hold a list of labels")
    found: dict[str, int | str] = {}
    for name, label in _pairs(read["labels"]):
        if name in found:
            found[name] = f"has two labels in {DATASET_JSON}"
        elif isinstance(label, bool) or not isinstance(label, int):
            found[name] = f"has a label in {DATASET_JSON} that is no class id: {str(label)[:40]}"
        else:
            found[name] = label
    return found


def _pairs(labels: list[Any]) -> Iterator[tuple[str, Any]]:
    for entry in labels:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError(f"should list pairs of a name and a class id, not {str(entry)[:60]}")
        yield entry[0], entry[1]


def labelled(
    images: Iterable[tuple[str, str | None]], labels: dict[str, int | str] | None, before: str = ""
) -> Iterator[Entry]:
    """Entries of images (name in ``dataset.json``, why odd), in the order given; then labels that have no image.

    Args:
        before: what stands before the name where it is shown.
    """
    seen = set()
    for name, odd in images:
        seen.add(name)
        label = None if labels is None else labels.get(name, f"has no label in {DATASET_JSON}")
        wrong = label if isinstance(label, str) else None
        yield Entry(before + name, None if isinstance(label, str) else label, odd or wrong)
    for name in sorted(set(labels or ()) - seen):
        yield Entry(before + name, None, f"is missing, and named in {DATASET_JSON}")
