"""Schedules as pure functions of images seen; one kimg is 1,000 images."""

from __future__ import annotations

import math


def linear(start: float, end: float, length_kimg: float, images: int) -> float:
    """From ``start`` to ``end`` over ``length_kimg``, then constant."""
    return start + (end - start) * _progress(length_kimg, images)


def exponential(start: float, end: float, length_kimg: float, images: int) -> float:
    """Geometric interpolation from ``start`` to ``end`` over ``length_kimg``, then constant."""
    return float(start * (end / start) ** _progress(length_kimg, images))


def learning_rate(peak: float, final_ratio: float, warmup_kimg: float, total_kimg: float, images: int) -> float:
    """Linear warm-up to ``peak``, then a cosine to ``final_ratio * peak`` at ``total_kimg``."""
    kimg = images / 1000
    if kimg < warmup_kimg:
        return peak * kimg / warmup_kimg
    position = min((kimg - warmup_kimg) / max(total_kimg - warmup_kimg, 1e-9), 1.0)
    return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * position)))


def ema_halflife(halflife_kimg: float, rampup_ratio: float, images: int) -> float:
    """Half-life of averaged weights in images, ``min(halflife_kimg, rampup_ratio * kimg seen)``, as in EDM."""
    halflife_images = halflife_kimg * 1000
    return min(halflife_images, images * rampup_ratio) if rampup_ratio > 0 else halflife_images


def ema_decay(halflife_kimg: float, rampup_ratio: float, batch_size: int, images: int) -> float:
    """Per-step decay of averaged weights with that half-life."""
    return float(0.5 ** (batch_size / max(ema_halflife(halflife_kimg, rampup_ratio, images), 1e-8)))


def is_due(interval_kimg: float, batch_size: int, images: int) -> bool:
    """Whether the step that ended at ``images`` crossed a multiple of the interval."""
    interval = interval_kimg * 1000
    return images // interval != (images - batch_size) // interval


def _progress(length_kimg: float, images: int) -> float:
    return min(images / (1000 * length_kimg), 1.0) if length_kimg > 0 else 1.0
