"""Labels in the format of EDM and StyleGAN: ``dataset.json`` with pairs of an image's name and its class id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gfgw_prod.data.listing import Entry

DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class Labels:
    """The labels of a folder or archive."""

    root: str  # the folder, with its slash, that names are relative to
    file: str | None  # the dataset.json, if there is one
    by_name: dict[str, int | str] | None  # class id, or why the label is invalid; None: the file holds no labels
    notes: tuple[str, ...]  # lines that the user should read
    class_names: tuple[str, ...] = ()  # by class id, as `gfgw sample` writes them

    def entries(self, images: Iterable[tuple[str, str | None]], prefix: str = "") -> Iterator[Entry]:
        """Entries of images (path, why invalid) in their order, then labels without an image, with a prefix."""
        seen = set()
        for path, invalid in images:
            name = path.removeprefix(self.root)
            seen.add(name)
            label = None if self.by_name is None else self.by_name.get(name, f"has no label in {DATASET_JSON}")
            if isinstance(label, str):
                yield Entry(prefix + path, None, invalid or label)
            else:
                yield Entry(prefix + path, label, invalid)
        for name in sorted(set(self.by_name or ()) - seen):
            yield Entry(prefix + self.root + name, None, f"is missing, and named in {DATASET_JSON}")


def is_dataset_json(path: str) -> bool:
    """Whether a relative path names a ``dataset.json``, in upper or lower case."""
    return path.rpartition("/")[2].lower() == DATASET_JSON


def read_labels(paths: Sequence[str], read: Callable[[str], bytes]) -> Labels:
    """Read the ``dataset.json`` at the top of a folder or archive.

    If everything lies in one folder, as in an archive made by ``zip -r``, and a ``dataset.json`` is in it, that folder
    is the top. ``paths`` are those of all images and ``dataset.json`` files.

    Raises:
        ValueError: with the reason, if the file is damaged.
    """
    files = [path for path in paths if is_dataset_json(path)]
    tops = {path.partition("/")[0] + "/" for path in paths}
    top = min(tops, default="")
    root = top if len(tops) == 1 and any(path.count("/") == 1 for path in files) else ""
    at_top = [path for path in files if "/" not in path.removeprefix(root)]
    deeper = [path for path in files if path not in at_top]
    notes = (f"{deeper[0]} is not read: labels are read from {root}{DATASET_JSON} only",) if deeper else ()
    if not at_top:
        return Labels(root, None, None, notes)
    file = max(at_top)  # lower case first
    try:
        labels, class_names = parse_labels(read(file))
    except ValueError as error:
        raise ValueError(f"{file} {error}") from None
    return Labels(root, file, labels, notes, class_names)


def parse_labels(content: bytes) -> tuple[dict[str, int | str] | None, tuple[str, ...]]:
    """Class ids by name, or why one is wrong, ``None`` without labels; and the classes' names, if they stand there.

    Raises:
        ValueError: with the reason, if the content is damaged.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("labels"), list | None):
        raise ValueError("should be an object with a list of labels")
    names = parsed.get("class_names")  # only ``gfgw sample`` writes them
    class_names = tuple(names) if isinstance(names, list) and all(isinstance(each, str) for each in names) else ()
    if parsed.get("labels") is None:
        return None, class_names
    labels: dict[str, int | str] = {}
    for pair in parsed["labels"]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"should list pairs of a name and a class id, not {str(pair)[:60]}")
        name, label = pair
        if name in labels:
            labels[name] = f"has two labels in {DATASET_JSON}"
        elif isinstance(label, bool) or not isinstance(label, int):
            labels[name] = f"has a label in {DATASET_JSON} that is no class id: {str(label)[:40]}"
        else:
            labels[name] = label
    return labels, class_names
