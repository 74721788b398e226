"""How good answers are, and how sure we can be of it: every metric comes with its 95 % interval.

intervals.py   what an interval is, how each is made, and whether two runs differ
rates.py       shares of successes, errors a unit, perplexity; metrics that are a function of sums over examples
classes.py     macro-F1, also of several labels at once, a report by class, calibration and temperature
entities.py    which entities tags mean, and F1 by the rules of CoNLL
texts.py       BLEU, chrF, ROUGE
numbers.py     correlation, squared error
"""

from minillm.metrics.classes import (
    calibration_error,
    class_report,
    fitted_temperature,
    label_macro_f1,
    label_report,
    macro_f1,
    micro_f1,
)
from minillm.metrics.entities import entities, entity_f1, entity_report, token_accuracy
from minillm.metrics.intervals import Interval, difference
from minillm.metrics.numbers import average, mean_squared_error, pearson, spearman, unexplained
from minillm.metrics.rates import (
    bits_per_character,
    edit_distance,
    mean,
    nats_per_token,
    of_sums,
    pass_at,
    perplexity,
    rate,
    ratio,
)
from minillm.metrics.texts import bleu, chrf, rouge

__all__ = [
    "Interval",
    "average",
    "bits_per_character",
    "bleu",
    "calibration_error",
    "chrf",
    "class_report",
    "difference",
    "edit_distance",
    "entities",
    "entity_f1",
    "entity_report",
    "fitted_temperature",
    "label_macro_f1",
    "label_report",
    "macro_f1",
    "mean",
    "mean_squared_error",
    "micro_f1",
    "nats_per_token",
    "of_sums",
    "pass_at",
    "pearson",
    "perplexity",
    "rate",
    "ratio",
    "rouge",
    "spearman",
    "token_accuracy",
    "unexplained",
]
