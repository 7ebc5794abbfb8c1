"""Settings of the times at which the generator is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.setting_types import NonNegative, Positive, Real, Section, TimeRange, Whole


class TimeSettings(Section):
    location: Annotated[Real, Field(ge=-100, le=100)] = Field(
        0.0, description="location of the logit-Student-t distribution of t"
    )
    scale: Annotated[Real, Field(gt=0, le=100)] = Field(
        1.0, description="scale of the logit-Student-t distribution of t"
    )
    freedom: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        4, description="degrees of freedom of the logit-Student-t distribution of t"
    )
    stage1_kimg: NonNegative = Field(10.0, description="length of the first stage, kimg")
    stage1_range: TimeRange = Field((0.7, 1.0), description="range of t in the first stage")
    stage2_range: TimeRange = Field((0.0, 1.0), description="range of t afterwards")


class ConsistencySettings(Section):
    stages: Annotated[Whole, Field(ge=0, le=12)] = Field(
        0,
        description="at t < 1, regress on what the generator makes of the same line at a time nearer to the image, "
        "in so many stages that draw the two together; 0 regresses on the image itself",
    )
    kimg: Positive = Field(1000.0, description="length of all stages, kimg; the last one stays")
    ratio: Annotated[Real, Field(gt=1, le=4)] = Field(
        2.0, description="by which the distance of the two times shrinks from one stage to the next"
    )
    huber: Annotated[Real, Field(gt=0, le=1e3)] = Field(
        0.001, description="pseudo-Huber radius per pixel of what is compared, units of [-1, 1] images"
    )
    coupled_by: Literal["samples", "noise"] = Field(
        "samples",
        description="what stands for a slot of such a step in the coupling: its sample, or its noise, a pass less",
    )
