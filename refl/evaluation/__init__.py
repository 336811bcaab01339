"""Is an explanation faithful? What is known about an input, or what the model does when the input
is changed, held against what the explanation says. A file per question.

    perturbation    dA: the output while units are replaced in the order of their scores
    evidence        the data says which tokens decide: are they found?
    leave_one_out   do the scores agree with what the model does without a token?
    patching        activation patching, attribution patching and RelP on pairs of inputs
    sanity          does the explanation change when the weights are randomized?

and what they stand on

    subject         items of data, the same as a model reads them, what a metric is
    datasets        readers of published data with known evidence
    units           tokens, words, patches
    perturbed       copies of inputs with units at a baseline, in batches
    scores          scores from elsewhere: arrays, files
    judging         methods and metrics, in a plain loop
    statistics      means, standard errors, paired bootstrap intervals
    correlation     Pearson, Spearman and Kendall, with ties
    components      where blocks, attention outputs and MLP outputs are
    tuning          options chosen on a part of the data that is not judged

many inputs, in shards, by as many workers as there are

    corpus          explain_corpus: every input of a file explained
    run             evaluate: methods judged on every input of a file
    data            lines of a file as items
    shards          a folder that holds one run; what is finished stays
    workers         anything with submit and result; processes that may die
    held_out        tuning on a part of a file
    results         the numbers of a run, and all together
    tables, page, figures    what is shown of them
"""

from __future__ import annotations

from refl.evaluation.corpus import explain_corpus
from refl.evaluation.evidence import Evidence
from refl.evaluation.judging import METRICS, Row, judged, metric
from refl.evaluation.perturbation import Perturbation
from refl.evaluation.results import Results
from refl.evaluation.run import evaluate
from refl.evaluation.subject import Case, Item, Judged, Metric, Subject

__all__ = [
    "METRICS",
    "Case",
    "Evidence",
    "Item",
    "Judged",
    "Metric",
    "Perturbation",
    "Results",
    "Row",
    "Subject",
    "evaluate",
    "explain_corpus",
    "judged",
    "metric",
]
