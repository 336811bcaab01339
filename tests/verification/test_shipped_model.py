"""What ships with refl is what `train_shipped` and its grammar write, without training again: the
card with the numbers of its run, the vocabulary, the sentences with known evidence.
"""

from __future__ import annotations

import ast
import json
import re

from checkpoints import ROOT

from refl.verification.training import grammar

SHIPPED = ROOT / "refl" / "shipped"
SPECIAL, EXAMPLE_SEED, EXAMPLES_PER_TASK = 4, 3, 200


def template() -> str:
    """CARD, read from the source: the module itself needs torch."""
    source = (ROOT / "verification" / "training" / "train_shipped.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD":
            return str(ast.literal_eval(node.value))
    raise AssertionError("train_shipped has no CARD")


def pattern(template: str) -> str:
    """Text as it stands; a field holds anything, and the same wherever it stands again."""
    parts, known = [], set[str]()
    for piece in re.split(r"(\{\w+(?::[^}]*)?\})", template):
        field = re.match(r"\{(\w+)", piece)
        if field is None:
            parts.append(re.escape(piece))
        else:
            name = field[1]
            parts.append(f"(?P={name})" if name in known else f"(?P<{name}>.+?)")
            known.add(name)
    return "".join(parts)


def test_the_card_is_the_template_filled_in() -> None:
    card = (SHIPPED / "CARD.md").read_text(encoding="utf-8")
    found = re.fullmatch(pattern(template()), card, re.DOTALL)
    assert found is not None
    assert found["parameters"] == "195,712" and found["hidden_size"] == "64"


def test_the_vocabulary_is_the_grammars() -> None:
    tokenizer = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"]
    assert sorted(ids, key=ids.__getitem__)[SPECIAL:] == list(grammar.vocabulary())


def test_the_evidence_is_the_grammars() -> None:
    lines = (SHIPPED / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [
        *grammar.held_out_agreement(EXAMPLE_SEED, EXAMPLES_PER_TASK),
        *grammar.held_out_questions(EXAMPLE_SEED, EXAMPLES_PER_TASK),
    ]
    for line, sentence in zip(map(json.loads, lines), sentences, strict=True):
        assert line["text"] == sentence.text and line["prefix"] == sentence.prefix
        assert (line["target"], line["foil"]) == (sentence.target, sentence.foil)
        assert line["evidence_words"] == list(sentence.evidence)
        assert line["support_words"] == list(sentence.support)
