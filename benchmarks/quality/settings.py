"""Names of the compared methods, and the settings that each was tuned to."""

from __future__ import annotations

from typing import Any

from benchmarks.frozen import LITE0

METHODS = {
    "ours": "**GFGW-FM**",
    "ours-lambda-0": "the same without structure (λ 0)",
    "ours-subset": "each batch coupled with 2,048 images, by features and noise, λ 0",
    "ours-structure": "the same, λ 0.1 to 0.4",
    "independent": "independent coupling",
    "ot-regression": "minibatch OT, regression at t = 1",
    "ot-flow": "minibatch OT flow matching, one Euler step",
    "ect": "ECT",
    "meanflow": "MeanFlow",
    "drifting": "Drifting",
    "sinkhorn-drifting": "Sinkhorn drifting",
}
RATES = (2e-3, 4e-3, 8e-3, 16e-3)  # that ``--tune`` tries for every method
STRUCTURE = {"transport.structure_weight": 0.1, "transport.structure_weight_end": 0.4}
NO_STRUCTURE = dict.fromkeys(STRUCTURE, 0.0)
# Further settings that it tries with the best rate; as many for every method.
TRIALS: dict[str, list[dict[str, Any]]] = {
    "ours": [{"consistency.stages": 4}, {"generator.correlation": 0.3}, {"loss.energy": 24.0}],
    "independent": [{"consistency.stages": 4}, {"train.one_step_share": 0.5}, {"loss.energy": 24.0}],
    "ect": [{"stages": 4}, {"location": -1.1}, {"c": 0.015}],
    "meanflow": [{"unequal": 0.25}, {"location": -2.0, "scale": 2.0}, {"power": 1.0}],
    "drifting": [{"temperatures": [0.05, 0.2, 0.5]}, {"classes": 2}, {"raw": True}],
    "sinkhorn-drifting": [{"temperatures": [0.02, 0.05, 0.2]}, {"classes": 2}, {"raw": True}],
}
# Differences from configs/digits.yaml.
PHOTOS: dict[str, dict[str, Any]] = {
    # In 768 dimensions a fresh plan with sampled targets uses all photographs evenly; a persistent potential with
    # argmax targets does not (a distance of 360 instead of 19). Without the structure term and with a loose
    # tolerance a fresh plan takes a tenth of a step.
    "ours": {
        "transport.dual": "fresh",
        "transport.target": "sample",
        "transport.epsilon_end": 0.02,
        **NO_STRUCTURE,
        "transport.tolerance": 0.05,
        "generator.correlation": 0.2,
        "optimizer.lr": 5e-3,
    },
    "ect": {"optimizer.lr": 5e-3},
}
# A smaller network than that of photographs, so that a minute of CPU time is some hundred steps.
SMALL = {
    "generator.channel_mult": [1, 2, 2],
    "generator.model_channels": 8,
    "train.batch_size": 64,
    "train.cell_size": 64,
}
# Noise is coupled with all pictures before training. The correlation is about that which a run measures on glyphs.
FITTED = {
    "transport.dual": "fitted",
    "transport.target": "argmax",
    "transport.noise_weight": 0.0,
    "transport.epsilon": 0.003,
    "transport.epsilon_end": 0.003,
    **NO_STRUCTURE,
    "generator.correlation": 0.1,
}
IN_EACH_BATCH = {
    "transport.scope": "subset",
    "transport.subset_rows": 2048,
    "transport.dual": "fresh",
    "transport.target": "sample",
    "transport.noise_weight": 4.0,
    "transport.epsilon": 0.02,
    "transport.epsilon_end": 0.02,
    "generator.correlation": 0.2,
}
# Found by ``--tune`` on emoji of 16 pixels.
TUNED: dict[str, dict[str, Any]] = {
    "ours": {**PHOTOS["ours"], **STRUCTURE, "optimizer.lr": 4e-3},
    "independent": {"optimizer.lr": 4e-3},
    "ect": {"optimizer.lr": 2e-3, "location": -0.5},
    "meanflow": {"optimizer.lr": 8e-3, "location": -0.4, "scale": 1.0, "power": 1.0},
    "drifting": {"optimizer.lr": 8e-3},
    "sinkhorn-drifting": {"optimizer.lr": 16e-3, "temperatures": [0.05], "iterations": 10},
}
PICTURES = {name: {**TUNED.get(name, {}), **SMALL} for name in METHODS}
PICTURES["ours"] |= FITTED
# On digits ours and ECT were tuned with the preset, which the next two take too; drifting is as on emoji.
AS_THE_PRESET: dict[str, dict[str, Any]] = {"ours": {}, "ect": {}, "independent": {}, "meanflow": {}}
OPTIONS = {"digits": TUNED | AS_THE_PRESET, "photos": PHOTOS, "photos-halved": PHOTOS}
# In the features of a network, noise and pixels take no part in the coupling: ours couples as with ``IN_EACH_BATCH``.
IN_NETWORK: dict[str, Any] = {
    "features.extractor": "timm",
    "features.network": LITE0,
    "features.image_size": 64,
    "features.pixel_constant": 0.0,
    "consistency.coupled_by": "samples",
    "transport.noise_weight": 0.0,
    "generator.correlation": 0.0,
}
ALWAYS: dict[str, dict[str, Any]] = {
    # Noise and images are independent, so the preconditioning must not assume a correlation.
    "independent": {"transport.target": "independent", "generator.correlation": 0.0},
    "ours-lambda-0": NO_STRUCTURE,
    "ours-subset": {**IN_EACH_BATCH, **NO_STRUCTURE},
    "ours-structure": {**IN_EACH_BATCH, **STRUCTURE},
}


def options_of(data: str, name: str, *, in_network: bool = False) -> dict[str, Any]:
    """What a method was tuned to on a data set; folders of pictures share settings, and so do our variants."""
    tuned = OPTIONS.get(data, PICTURES)
    found = {**tuned.get("ours" if name.startswith("ours") else name, {}), **ALWAYS.get(name, {})}
    if not in_network:
        return found
    return {**found, **(IN_EACH_BATCH if name.startswith("ours") else {}), **IN_NETWORK}
