"""``pluralpref families``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from pluralpref.cli.options import importable_here, parse, show_progress
from pluralpref.diagnostics.families import FamilyFacts, describe_family
from pluralpref.errors import ConfigError, PluralPrefError
from pluralpref.models import (
    FAMILIES,
    CovariateStrength,
    GroupStrength,
    LogNormalStrength,
    StrengthModel,
    make_strength,
)

_FORMATS = ("table", "json")
# Their cv can't be chosen.
_WITHOUT_CV = ("fixed", "fixed_learned", "exponential", "half_normal")


@dataclass
class FamiliesOptions:
    """What is listed."""

    family: list[str] = field(
        default_factory=list,
        metadata={"help": "Only these: names from the list, or a class of your own as module:Class."},
    )
    beta: float = field(default=0.1, metadata={"help": "Mean of beta at which families are measured."})
    strength_cv: float = field(default=0.5, metadata={"help": "Coefficient of variation at which they are measured."})
    format: str = field(default="table", metadata={"help": f"One of {', '.join(_FORMATS)}."})


def main(argv: Sequence[str]) -> int:
    """List the families of beta: parameters, methods of integration, and how exact they are, measured now.

    ``error`` is the largest relative error of a choice probability by the first method, against SciPy's tanh-sinh
    quadrature, at margins of both signs from 0.03 to 100 over E|beta|; ``K=16`` the root mean square relative error of 16
    Monte Carlo draws at margins up to 3 over E|beta|.
    """
    (options,) = parse("families", (FamiliesOptions,), argv, main.__doc__ or "")
    if options.format not in _FORMATS:
        raise ConfigError(f"--format {options.format}: choose one of {', '.join(_FORMATS)}")
    names = options.family or [*FAMILIES, "covariate", "group"]
    models = {name: _make(name, options) for name in names}
    shown = tqdm(models.items(), desc="Measuring families", disable=not show_progress(), leave=False)
    facts = [describe_family(name, model) for name, model in shown]
    if options.format == "json":
        print(json.dumps([asdict(f) for f in facts], indent=2))
        return 0
    print(_as_table(facts))
    if not options.family:
        print(
            "\ncovariate and group depend on columns of the data and are made in Python: CovariateStrength(...), "
            "GroupStrength(...)\nof any family; zero_inflated, opposed and mixture take any families in Python as well."
        )
    return 0


def _make(name: str, options: FamiliesOptions) -> StrengthModel:
    mean, cv = options.beta, options.strength_cv
    if name == "covariate":
        return CovariateStrength(2, LogNormalStrength(mean, cv))
    if name == "group":
        return GroupStrength(2, LogNormalStrength(mean, cv))
    if ":" in name:
        return _import(name)
    return make_strength(name, mean, None if name in _WITHOUT_CV else cv)


def _import(name: str) -> StrengthModel:
    """An instance of a user's class, made without arguments."""
    module_name, _, class_name = name.partition(":")
    with importable_here():
        try:
            family = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"--family {name}: {error}") from error
    try:
        model = family()
    except PluralPrefError:
        raise
    except Exception as error:  # whatever a user's constructor may raise
        raise ConfigError(f"--family {name}: {class_name}() failed: {error}") from error
    if not isinstance(model, StrengthModel):
        raise ConfigError(f"--family {name}: {class_name}() must give a StrengthModel, not {type(model).__name__}")
    return model


def _as_table(facts: Sequence[FamilyFacts]) -> str:
    header = ("family", "parameters", "mean", "cv", "pairs", "panels", "error", "K=16")
    rows = [
        (
            f.name,
            ", ".join(f.parameters) or "(none)",
            f"{f.mean:.3g}",
            f"{f.cv:.3g}",
            _short(f.methods),
            _short(f.panel_methods),
            "-" if f.error is None else f"{f.error:.0e}",
            "-" if f.sampling_error is None else f"{f.sampling_error:.1%}",
        )
        for f in facts
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(
        [*lines, "", "methods: C closed form, Q quadrature, M Monte Carlo; the first is what 'auto' takes"]
    )


def _short(methods: Sequence[str]) -> str:
    return " ".join({"closed_form": "C", "quadrature": "Q", "monte_carlo": "M"}[m] for m in methods) or "none"
