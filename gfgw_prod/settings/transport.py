"""Settings of the coupling."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gfgw_prod.settings.types import Count, Epsilon, Fraction, NonNegative, Positive, Real, Section


class TransportSettings(Section):
    scope: Literal["subset", "full"] = Field(
        "subset", description="couple with bank rows drawn at each step, or with the whole bank"
    )
    subset_rows: Count = Field(2048, description="bank rows drawn per step in subset scope, rows")
    backend: Literal["native", "pot"] = Field("native", description="solver")
    target: Literal["argmax", "sample", "barycentric", "independent"] = Field(
        "argmax", description="how a row of the plan chooses its target; independent uses no plan"
    )
    structure_weight: Fraction = Field(0.1, description="lambda, weight of the Gromov-Wasserstein term, at the start")
    structure_weight_end: Fraction = Field(0.5, description="lambda at the end of its linear rise")
    structure_weight_kimg: NonNegative = Field(1600.0, description="length of the rise of lambda, kimg")
    epsilon: Epsilon = Field(0.1, description="entropic regularisation at the start, units of the cost")
    epsilon_end: Epsilon = Field(0.01, description="entropic regularisation at the end of its exponential decay")
    epsilon_kimg: NonNegative = Field(1600.0, description="length of the decay of epsilon, kimg")
    noise_weight: Annotated[Real, Field(ge=0, le=100)] = Field(
        0.0,
        description="weight of 1 - cosine of a slot's noise and its target's pixels; needs features.extractor pixels",
    )
    outer_iterations: Count = Field(10, description="largest number of linearisations per step")
    inner_iterations: Count = Field(200, description="largest number of Sinkhorn iterations per linearisation")
    iterations: Literal["adaptive", "fixed"] = Field(
        "adaptive",
        description="stop at the tolerance, or run all without host reads, for torch.compile and CUDA graphs",
    )
    tolerance: Annotated[Real, Field(gt=0, le=2)] = Field(
        1e-3, description="stop when the L1 marginal error and the relative error of S are below this"
    )
    geometry: Literal["cosine", "euclidean"] = Field(
        "cosine", description="distance of features; euclidean is dense and needs scope subset"
    )
    dual: Literal["fresh", "persistent"] = Field(
        "fresh", description="solve for the bank's potential in every batch, or keep it and correct it at each step"
    )
    dual_balance: Fraction = Field(
        0.95,
        description="how far a batch enforces its own marginal from a persistent potential: 1 fully, 0 not at all",
    )
    dual_epochs: Positive = Field(0.25, description="averaging time of a persistent potential, epochs")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.geometry == "euclidean" and self.scope == "full":
            raise ValueError("geometry euclidean needs dense distances; use scope subset")
        if self.dual == "persistent" and self.geometry != "cosine":
            raise ValueError("dual persistent needs geometry cosine; use that, or dual fresh")
        if self.noise_weight and (self.geometry != "cosine" or self.backend == "pot"):
            raise ValueError("noise_weight needs geometry cosine and backend native")
        if self.backend == "pot" and (self.dual, self.iterations) != ("fresh", "adaptive"):
            raise ValueError("backend pot needs dual fresh and iterations adaptive; use those, or backend native")
        return self
