"""Settings of the coupling."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gfgw_prod.settings.types import Count, Epsilon, Fraction, NonNegative, Positive, Real, Section


class TransportSettings(Section):
    scope: Literal["subset", "full"] = Field("subset", description="couple to drawn bank rows or to the whole bank")
    subset_rows: Count = Field(2048, description="bank rows drawn per step in subset scope, rows")
    backend: Literal["native", "pot"] = Field("native", description="solver")
    target: Literal["argmax", "sample", "barycentric", "independent"] = Field(
        "argmax", description="how a row of the plan names its target; independent ignores the plan"
    )
    structure_weight: Fraction = Field(0.1, description="lambda, weight of the Gromov-Wasserstein term, at the start")
    structure_weight_end: Fraction = Field(0.5, description="lambda at the end of its linear rise")
    structure_weight_kimg: NonNegative = Field(1600.0, description="length of the rise of lambda, kimg")
    epsilon: Epsilon = Field(0.1, description="entropic regularisation at the start, units of the cost")
    epsilon_end: Epsilon = Field(0.01, description="entropic regularisation at the end of its exponential decay")
    epsilon_kimg: NonNegative = Field(1600.0, description="length of the decay of epsilon, kimg")
    noise_weight: Annotated[Real, Field(ge=0, le=100)] = Field(
        0.0, description="weight of 1 - cosine between a slot's noise and its target's pixels; features pixels only"
    )
    outer_iterations: Count = Field(10, description="most linearisations per step; annealing's come before")
    inner_iterations: Count = Field(200, description="most Sinkhorn iterations per linearisation")
    iterations: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="stop at the tolerance, or make all iterations without a look at any value"
    )
    tolerance: Annotated[Real, Field(gt=0, le=2)] = Field(
        1e-3, description="L1 marginal error and relative error of S at which to stop"
    )
    geometry: Literal["cosine", "euclidean"] = Field(
        "cosine", description="distance of features; euclidean is dense, for subset scope"
    )
    marginal: Literal["balanced", "semi_relaxed"] = Field(
        "balanced", description="bank rows share the mass evenly, or as it comes"
    )
    dual: Literal["fresh", "persistent"] = Field(
        "fresh", description="find the bank's potential in every batch, or keep it and correct it from step to step"
    )
    dual_balance: Fraction = Field(
        0.95, description="how far a batch's own marginal is enforced from a persistent potential: 1 fully, 0 not"
    )
    dual_epochs: Positive = Field(0.25, description="length of a persistent potential's memory, epochs")
    anneal_from: Epsilon | None = Field(
        None, description="larger epsilon at which each coupling begins, halved per linearisation; off if null"
    )

    @model_validator(mode="after")
    def _can_be_solved(self) -> Self:
        if self.geometry == "euclidean" and self.scope == "full":
            raise ValueError("geometry euclidean needs dense distances; use scope subset")
        if self.dual == "persistent" and self.geometry != "cosine":
            raise ValueError("dual persistent keeps a state of geometry cosine; use that, or dual fresh")
        if self.dual == "persistent" and (self.marginal == "semi_relaxed" or self.anneal_from is not None):
            raise ValueError("dual persistent goes with marginal balanced and without anneal_from")
        if self.noise_weight and (self.geometry != "cosine" or self.backend == "pot"):
            raise ValueError("noise_weight needs geometry cosine and backend native")
        plain = (self.marginal, self.dual, self.iterations, self.anneal_from)
        if self.backend == "pot" and plain != ("balanced", "fresh", "adaptive", None):
            raise ValueError("backend pot is balanced, fresh, adaptive and without anneal_from; use native")
        return self
