"""The saturation frontier: upper hull, law, intervals, verdict, held-out error, recipe. Pure numpy.

Source: arXiv 2110.02095 (Lemma 2.1 for the hull, section 2 for the law).
"""

from orchestrator.frontier.bootstrap import Interval, bootstrap, percentile_bootstrap
from orchestrator.frontier.choices import METHODS, POINTS, Choice, Method, Points, fit_points
from orchestrator.frontier.find import Frontier, find_frontier
from orchestrator.frontier.held_out import MIN_HELD_OUT, MODEL_NAMES, MODELS, TRAIN_QUANTILE, Contest, HeldOut, hold_out
from orchestrator.frontier.hull import rising_part, upper_hull
from orchestrator.frontier.law import LOSSES, Law, Loss, fit_law
from orchestrator.frontier.noise import NumTest
from orchestrator.frontier.recipe import Recipe, find_recipe, find_recipes, round_steps
from orchestrator.frontier.verdict import REASONS, Fit, Reason, Seen, Verdict, interval_text, verdict

__all__ = [
    "LOSSES",
    "METHODS",
    "MIN_HELD_OUT",
    "MODELS",
    "MODEL_NAMES",
    "POINTS",
    "REASONS",
    "TRAIN_QUANTILE",
    "Choice",
    "Contest",
    "Fit",
    "Frontier",
    "HeldOut",
    "Interval",
    "Law",
    "Loss",
    "Method",
    "NumTest",
    "Points",
    "Reason",
    "Recipe",
    "Seen",
    "Verdict",
    "bootstrap",
    "find_frontier",
    "find_recipe",
    "find_recipes",
    "fit_law",
    "fit_points",
    "hold_out",
    "interval_text",
    "percentile_bootstrap",
    "rising_part",
    "round_steps",
    "upper_hull",
    "verdict",
]
