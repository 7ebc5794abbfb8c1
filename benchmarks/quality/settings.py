"""Names of the compared methods, and the settings that each was tuned to."""

from __future__ import annotations

from typing import Any

METHODS = {
    "ours": "**GFGW-FM**",
    "ours-lambda-0": "GFGW-FM without structure (λ 0)",
    "independent": "independent coupling",
    "ot-regression": "minibatch OT, regression at t = 1",
    "ot-flow": "minibatch OT flow matching, one Euler step",
    "ect": "ECT",
    "meanflow": "MeanFlow",
    "drifting": "Drifting",
    "sinkhorn-drifting": "Sinkhorn drifting",
}
RATES = (1e-3, 2e-3, 4e-3)  # that ``--tune`` tries for every method
# Differences from configs/digits.yaml.
PHOTOS: dict[str, dict[str, Any]] = {
    # In 768 dimensions a fresh plan with sampled targets uses all photographs evenly; a persistent potential with
    # argmax targets does not (a distance of 360 instead of 19). Without the structure term and with a loose
    # tolerance a fresh plan takes a tenth of a step.
    "ours": {
        "transport.dual": "fresh",
        "transport.target": "sample",
        "transport.epsilon_end": 0.02,
        "transport.structure_weight": 0.0,
        "transport.structure_weight_end": 0.0,
        "transport.tolerance": 0.05,
        "generator.correlation": 0.2,
        "optimizer.lr": 5e-3,
    },
    "independent": {"generator.correlation": 0.0},  # noise and images are independent
    "ect": {"optimizer.lr": 5e-3},
}
PICTURES = {name: {"generator.channel_mult": [1, 2, 2], **PHOTOS.get(name, {})} for name in METHODS}
OPTIONS = {"digits": {}, "photos": PHOTOS, "photos-halved": PHOTOS}
ALWAYS: dict[str, dict[str, Any]] = {
    "independent": {"transport.target": "independent"},
    "ours-lambda-0": {"transport.structure_weight": 0.0, "transport.structure_weight_end": 0.0},
}


def options_of(data: str) -> dict[str, dict[str, Any]]:
    """What each method was tuned to on a data set; folders of pictures share settings."""
    return OPTIONS.get(data, PICTURES)
