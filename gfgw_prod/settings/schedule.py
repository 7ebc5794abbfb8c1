"""Schedules as pure functions of images seen; one kimg is 1,000 images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gfgw_prod.settings.config import Config
from gfgw_prod.settings.training import TimeSettings


@dataclass(frozen=True)
class Schedules:
    """Values of one training step."""

    learning_rate: float  # of AdamW
    epsilon: float  # entropic regularisation of the coupling
    structure_weight: float  # lambda, weight of the Gromov-Wasserstein term
    ema_halflife_images: float  # half-life of the averaged weights
    ema_decay: float  # per step, with that half-life
    time_range: tuple[float, float]  # of t

    def values(self) -> dict[str, float]:
        """Values by tag of the metric catalogue."""
        return {
            "optimizer/learning_rate": self.learning_rate,
            "optimizer/ema_halflife_images": self.ema_halflife_images,
            "transport/epsilon": self.epsilon,
            "transport/structure_weight": self.structure_weight,
            "schedule/time_low": self.time_range[0],
            "schedule/time_high": self.time_range[1],
        }


def schedules_at(config: Config, images: int) -> Schedules:
    """Values of the step that begins after ``images`` images; those of the average are of the time after the step."""
    o, t, e = config.optimizer, config.transport, config.ema
    after = images + config.train.batch_size
    return Schedules(
        learning_rate=learning_rate(o.lr, o.final_lr_ratio, o.warmup_kimg, o.decay_kimg, images),
        epsilon=exponential(t.epsilon, t.epsilon_end, t.epsilon_kimg, images),
        structure_weight=linear(t.structure_weight, t.structure_weight_end, t.structure_weight_kimg, images),
        ema_halflife_images=ema_halflife(e.halflife_kimg, e.rampup_ratio, after),
        ema_decay=ema_decay(e.halflife_kimg, e.rampup_ratio, config.train.batch_size, after),
        time_range=time_range(config.time, images),
    )


def linear(start: float, end: float, length_kimg: float, images: int) -> float:
    """From ``start`` to ``end`` over ``length_kimg``, then constant."""
    return start + (end - start) * _progress(length_kimg, images)


def exponential(start: float, end: float, length_kimg: float, images: int) -> float:
    """Geometric interpolation from ``start`` to ``end`` over ``length_kimg``, then constant."""
    return float(start * (end / start) ** _progress(length_kimg, images))


def learning_rate(peak: float, final_ratio: float, warmup_kimg: float, decay_kimg: float, images: int) -> float:
    """Linear warm-up to ``peak``, then a cosine to ``final_ratio * peak`` at ``decay_kimg``."""
    kimg = images / 1000
    if kimg < warmup_kimg:
        return peak * kimg / warmup_kimg
    position = min((kimg - warmup_kimg) / max(decay_kimg - warmup_kimg, 1e-9), 1.0)
    return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * position)))


def ema_halflife(halflife_kimg: float, rampup_ratio: float, images: int) -> float:
    """Half-life of averaged weights in images, ``min(halflife_kimg, rampup_ratio * kimg seen)``, as in EDM."""
    halflife_images = halflife_kimg * 1000
    return min(halflife_images, images * rampup_ratio) if rampup_ratio > 0 else halflife_images


def ema_decay(halflife_kimg: float, rampup_ratio: float, batch_size: int, images: int) -> float:
    """Per-step decay of averaged weights with that half-life."""
    return float(0.5 ** (batch_size / max(ema_halflife(halflife_kimg, rampup_ratio, images), 1e-8)))


def time_range(settings: TimeSettings, images: int) -> tuple[float, float]:
    """Range of t in the stage of training after ``images`` images."""
    return settings.stage1_range if images < settings.stage1_kimg * 1000 else settings.stage2_range


def is_due(interval_kimg: float, batch_size: int, images: int) -> bool:
    """Whether the step that ended at ``images`` crossed a multiple of the interval."""
    interval = interval_kimg * 1000
    return images // interval != (images - batch_size) // interval


def is_one_step(share: float, step: int) -> bool:
    """Whether a step's cells are trained at ``t = 1``: a share of all steps, evenly spread.

    All cells of a step are alike, so that no rank waits for another that has a pass more to make.
    """
    return int((step + 1) * share) > int(step * share)


def is_record_due(config: Config, step: int) -> bool:
    """Whether the metrics of a step are recorded in full."""
    size = config.train.batch_size
    return is_due(config.telemetry.log_every_kimg, size, (step + 1) * size)


def is_first_of_its_kind(config: Config, step: int) -> bool:
    """Whether a step is the first of its kind, at t = 1 or before, since the last whose record was due.

    The two kinds have different losses, and one record in an interval would show them by chance.
    """
    share = config.train.one_step_share
    kind = is_one_step(share, step)
    for earlier in range(step - 1, -1, -1):
        if is_one_step(share, earlier) == kind:
            return False
        if is_record_due(config, earlier):
            return True
    return False


def _progress(length_kimg: float, images: int) -> float:
    return min(images / (1000 * length_kimg), 1.0) if length_kimg > 0 else 1.0
