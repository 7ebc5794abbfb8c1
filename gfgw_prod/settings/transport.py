"""Settings of the coupling."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from gfgw_prod.settings.types import Count, Epsilon, Fraction, NonNegative, Positive, Real, Section, Share, setting


class TransportSettings(Section):
    scope: Literal["subset", "full"] = setting("subset", "couple with bank rows drawn each step, or the whole bank")
    subset_rows: Count = setting(2048, "bank rows drawn per step in subset scope, rows")
    backend: Literal["native", "pot"] = setting("native", "solver")
    target: Literal["argmax", "sample", "independent"] = setting(
        "argmax", "how a row of the plan chooses its target; independent uses no plan"
    )
    structure_weight: Fraction = setting(0.1, "lambda, weight of the Gromov-Wasserstein term, at the start")
    structure_weight_end: Fraction = setting(0.5, "lambda at the end of its linear rise")
    structure_weight_kimg: NonNegative = setting(Share(), "length of the rise of lambda, kimg")
    epsilon: Epsilon = setting(0.1, "entropic regularisation at the start, units of the cost")
    epsilon_end: Epsilon = setting(0.01, "entropic regularisation at the end of its exponential decay")
    epsilon_kimg: NonNegative = setting(Share(), "length of the decay of epsilon, kimg")
    noise_weight: Real = setting(
        0.0,
        "weight of 1 - cosine of a slot's noise and its target's pixels; needs features.extractor pixels",
        ge=0,
        le=100,
    )
    outer_iterations: Count = setting(10, "largest number of linearisations per step")
    inner_iterations: Count = setting(200, "largest number of Sinkhorn iterations per linearisation")
    iterations: Literal["adaptive", "fixed"] = setting(
        "adaptive", "stop at the tolerance, or run all without host reads, for torch.compile and CUDA graphs"
    )
    tolerance: Real = setting(1e-3, "stop when L1 marginal error and relative error of S are below this", gt=0, le=2)
    geometry: Literal["cosine", "euclidean"] = setting(
        "cosine", "distance of features; euclidean is dense, for scope subset"
    )
    dual: Literal["fresh", "persistent", "fitted"] = setting(
        "fresh",
        "solve for the bank's potential in every batch; or keep it and correct it at each step; or, fitted, couple "
        "noise instead of generated images, by a potential that is fitted to noise before the first step",
    )
    dual_balance: Fraction = setting(
        0.95, "per-batch column correction with dual persistent: 1 is a full Sinkhorn column step, 0 is none"
    )
    dual_epochs: Positive = setting(0.25, "averaging time of a persistent potential, epochs")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.geometry == "euclidean" and self.scope == "full":
            raise ValueError("geometry euclidean needs dense distances; use scope subset")
        if self.dual == "persistent" and self.geometry != "cosine":
            raise ValueError("dual persistent needs geometry cosine; use that, or dual fresh")
        if self.is_fitted:
            fixed = (
                ("scope", "full"),
                ("target", "argmax"),
                ("geometry", "cosine"),
                ("backend", "native"),
                ("noise_weight", 0.0),
            )
            steady = ("structure_weight", 0.0), ("structure_weight_end", 0.0), ("epsilon_end", self.epsilon)
            if wrong := [f"{name} {value}" for name, value in fixed + steady if getattr(self, name) != value]:
                raise ValueError(f"dual fitted couples noise alone, at one epsilon; it needs {', '.join(wrong)}")
        if self.noise_weight and (self.geometry != "cosine" or self.backend == "pot"):
            raise ValueError("noise_weight needs geometry cosine and backend native")
        if self.backend == "pot" and (self.dual, self.iterations) != ("fresh", "adaptive"):
            raise ValueError("backend pot needs dual fresh and iterations adaptive; use those, or backend native")
        return self

    @property
    def noise_counts(self) -> bool:
        """Whether a slot's noise takes part in the coupling."""
        return bool(self.noise_weight) or self.is_fitted

    @property
    def is_fitted(self) -> bool:
        """Whether noise alone is coupled, by a potential that is fitted before the first step."""
        return self.dual == "fitted" and self.target != "independent"
