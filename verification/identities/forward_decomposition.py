"""Identity 11: the net taken apart forwards, token by token, is CP-LRP.

With attention, norms, gates and activation ratios frozen the net is affine in its input: the part
of each token (or patch) in the output, computed forwards as f(that token alone) - f(nothing), is
its CP-LRP relevance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refl.verification.definitions import surrogate
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.identities.model_under_test import ModelUnderTest, input_scores
from refl.verification.identities.rows import Row, WorstDeviation


def forward_decomposition(m: ModelUnderTest) -> Iterator[Row]:
    m, worst = m.within("float64"), WorstDeviation()
    e, (edits, count) = m.explain("cp-lrp", keep=()), _each_token_alone(m)
    how = {"variant": "cp-lrp", "edits": edits} | m.forward
    z = surrogate.logits(m.model, m.item, m.records_by_site, **how)[:, m.target]
    got = e.patches.ravel() if m.model.takes_images else input_scores(e)
    worst.compare(got, z[:count] - z[count], rounding_bound(e))
    yield worst.row(
        11,
        "forward decomposition = CP-LRP",
        "the same relevance is found without any sweep, forwards",
        f"{count} {'patches' if m.model.takes_images else 'tokens'}, each run alone "
        "through the frozen net, in float64",
    )


def _each_token_alone(m: ModelUnderTest) -> tuple[dict[str, surrogate.Edit], int]:
    """Edits of the inputs that make a batch in which each example keeps one token or patch, and the
    last none; and their number.
    """
    if m.model.takes_images:
        (record,) = m.embedded
        keep = _patches(m.model.config)
        return {record.output.site: _times(np.concatenate([keep, 0 * keep[:1]]))}, len(keep)
    lengths = [len(m.item), *([] if m.decoder is None else [len(m.decoder)])]
    count, edits, start = sum(lengths), dict[str, surrogate.Edit](), 0
    for record, length in zip(m.embedded, lengths, strict=True):
        edits[record.output.site] = _times(np.eye(count + 1)[:, start : start + length, None])
        start += length
    return edits, count


def _times(keep: Any) -> surrogate.Edit:
    return lambda x: keep * x


def _patches(c: Any) -> Any:  # -> (N, 1, H, W), 1.0 in one patch each
    (height, width), rows, columns = c.patch, c.image[0] // c.patch[0], c.image[1] // c.patch[1]
    keep = np.zeros((rows * columns, 1, *c.image))
    for n in range(rows * columns):
        i, j = divmod(n, columns)
        keep[n, :, i * height : (i + 1) * height, j * width : (j + 1) * width] = 1
    return keep
