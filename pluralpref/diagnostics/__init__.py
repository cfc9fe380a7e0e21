"""What a posterior and a run look like, and whether inference is calibrated: ArviZ data, figures, the HTML report."""

from pluralpref.diagnostics.agreement_plot import plot_agreement
from pluralpref.diagnostics.calibration import simulation_based_calibration
from pluralpref.diagnostics.calibration_result import CalibrationResult
from pluralpref.diagnostics.comparison import (
    Comparison,
    IndependentChoices,
    LikelihoodRatio,
    compare,
    default_models,
    likelihood_ratio_test,
)
from pluralpref.diagnostics.families import FamilyFacts, describe_family
from pluralpref.diagnostics.people_plots import plot_comparison, plot_groups, plot_people
from pluralpref.diagnostics.plots import (
    plot_calibration,
    plot_chains,
    plot_margins,
    plot_parameter,
    plot_strength,
    plot_training,
)
from pluralpref.diagnostics.predictive_checks import PredictiveChecks, predictive_checks
from pluralpref.diagnostics.rank_plot import plot_calibration_ranks
from pluralpref.diagnostics.report import Report, Table
from pluralpref.diagnostics.run_report import write_report
from pluralpref.inference.arviz_data import hdi, load_netcdf, loo, make_inference_data, save_netcdf, summary

__all__ = [
    "CalibrationResult",
    "Comparison",
    "FamilyFacts",
    "IndependentChoices",
    "LikelihoodRatio",
    "PredictiveChecks",
    "Report",
    "Table",
    "compare",
    "default_models",
    "describe_family",
    "hdi",
    "likelihood_ratio_test",
    "load_netcdf",
    "loo",
    "make_inference_data",
    "plot_agreement",
    "plot_calibration",
    "plot_calibration_ranks",
    "plot_chains",
    "plot_comparison",
    "plot_groups",
    "plot_margins",
    "plot_parameter",
    "plot_people",
    "plot_strength",
    "plot_training",
    "predictive_checks",
    "save_netcdf",
    "simulation_based_calibration",
    "summary",
    "write_report",
]
