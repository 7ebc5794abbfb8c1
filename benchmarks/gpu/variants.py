"""Changes of the digits run that take other paths through a step."""

from __future__ import annotations

from typing import Any

FRESH: dict[str, Any] = {"dual": "fresh"}
SUBSET = {**FRESH, "scope": "subset", "subset_rows": 256}
FITTED = {
    "dual": "fitted",
    "noise_weight": 0.0,
    "epsilon": 0.01,
    "epsilon_end": 0.01,
    "structure_weight": 0.0,
    "structure_weight_end": 0.0,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sample": {"transport": {"target": "sample"}},
    "independent": {"transport": {"target": "independent"}},
    "fresh": {"transport": FRESH},
    "subset": {"transport": SUBSET},
    "subset, persistent": {"transport": {"scope": "subset", "subset_rows": 256}},
    "fixed": {"transport": {**FRESH, "iterations": "fixed", "outer_iterations": 2, "inner_iterations": 10}},
    "fitted": {"transport": FITTED},
    "euclidean": {"transport": {**SUBSET, "geometry": "euclidean", "noise_weight": 0.0}},
    "pot": {
        "transport": {**SUBSET, "backend": "pot", "noise_weight": 0.0, "epsilon": 0.1, "epsilon_end": 0.1},
        "generator": {"conditional": False},
    },
    "recomputed blocks, dropout": {"generator": {"checkpoint_activations": True, "dropout": 0.1}},
    "no pass kept, contiguous": {
        "train": {"kept_passes": 0, "one_step_share": 1.0},
        "generator": {"channels_last": False},
    },
    "attention": {"generator": {"attention_resolutions": [8]}},
    "fp16": {"train": {"precision": "fp16"}},
    "bf16": {"train": {"precision": "bf16"}},
    "tf32": {"train": {"precision": "tf32"}},
    "fast": {"distributed": {"reduction": "fast"}},
}
