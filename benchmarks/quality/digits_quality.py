"""Quality of a digits run: Fréchet distance, class shares and a classifier's confidence on 2,000 samples."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.evaluation.distances import frechet_distance, moments_of
from gfgw_prod.generator import build_generator
from gfgw_prod.sampling.pictures import draw_samples
from gfgw_prod.settings.reading import resolve

SAMPLES = 2_000


def ema_samples(run_dir: Path, seed: int) -> np.ndarray:
    """One-step samples of the newest checkpoint's EMA, ``(SAMPLES, 64)`` in [-1, 1]."""
    found = find_checkpoints(run_dir)[-1]
    config = resolve(found.manifest["config"])
    shape = tuple(found.manifest["image_shape"])
    generator = build_generator(config.generator, shape, found.manifest["num_classes"], config.seed)
    generator.load_state_dict({k.removeprefix("ema."): v for k, v in found.read_tensors("ema.").items()})
    images, _ = draw_samples(
        generator, shape, range(10), count=SAMPLES, seed=seed, stream="quality", device=torch.device("cpu")
    )
    return images.flatten(1).double().numpy()


def pixel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of pixels ``(n, d)``."""
    return frechet_distance(*(moments_of(torch.from_numpy(rows)) for rows in (first, second)))


def main(run_dir: Path = Path("runs/digits")) -> None:
    if not (run_dir / "checkpoints").is_dir():
        print(f"no run in {run_dir}: make train first", file=sys.stderr)
        return
    digits = load_digits()
    data = digits.data / 8 - 1
    shuffled = np.random.default_rng(0).permutation(len(data))
    halves = pixel_distance(data[shuffled[::2]], data[shuffled[1::2]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = LogisticRegression(max_iter=5_000).fit(data, digits.target)
    print(f"{'':<12}{'Fréchet':>9}{'rarest class':>13}{'confidence':>12}")
    print(f"{'two halves':<12}{halves:>9.3f}")
    for seed in range(3):
        drawn = ema_samples(run_dir, seed)
        probabilities = classifier.predict_proba(drawn)
        shares = np.bincount(probabilities.argmax(axis=1), minlength=10) / SAMPLES
        confidence = probabilities.max(axis=1).mean()
        print(f"noise {seed:<6}{pixel_distance(drawn, data):>9.3f}{shares.min():>13.1%}{confidence:>12.3f}")
