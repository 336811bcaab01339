"""Train the language model that ships with refl, and write its whole folder.

    python -m refl.verification.training.train_shipped --out refl/shipped

A Llama of four small layers learns the texts of `grammar`, whose right explanations are known.
Everything random is seeded, one thread works and torch is held to deterministic kernels, so two
runs with the same versions on one machine write the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save
from tokenizers import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm  # type: ignore[import-untyped, import-not-found, unused-ignore]
from transformers import LlamaConfig, LlamaForCausalLM

from refl.verification.training.grammar import (
    PLURAL_VERBS,
    SINGULAR_VERBS,
    Document,
    Sentence,
    echo_document,
    held_out_agreement,
    held_out_questions,
    shortcut,
    telegram_document,
    training_document,
    vocabulary,
)

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNKNOWN, START, END = range(4)
DETERMINED_WEIGHT = 8.0
"""How much more a word counts that the text determines
(a verb's number, an answer) than one it does not.
"""
EXAMPLES_PER_TASK = 200
CHECKED_PER_TASK = 1800
TRAINING_SEED, CHECK_SEED, EXAMPLE_SEED = 1, 2, 3
"""The checked sentences and the shipped examples are drawn apart; both are held out."""
PREFIXES = (
    "the keys to the cabinet",
    "the key to the cabinets",
    "near the houses , the boy who likes the dogs",
    "the box that the girls like",
    "mary has the ball . john has the cup . who has the ball ?",
    "mary has the ball . the cup is with john . anna has the key . who has the cup ?",
)


def configuration() -> dict[str, Any]:
    """The architecture, as it is written to config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": START,
        "eos_token_id": END,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.125,
        "intermediate_size": 176,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": PAD,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": len(SPECIAL) + len(vocabulary()),
    }


CARD = """---
license: mit
language: en
---

# The model that ships with refl

A Llama of {parameters:,} parameters: {num_hidden_layers} layers of width {hidden_size}, with
{num_attention_heads} query heads over {num_key_value_heads} key-value heads of width {head_dim}
and a gated feed-forward of width {intermediate_size}; {vocab_size} words, whose embeddings are
also the output matrix. It was trained from scratch for refl on texts from a grammar of its own,
and exists for one purpose: to teach and to test explanations. Its texts are built around a
known piece of evidence, so an explanation of what it predicts can be called right or wrong.

## Data

`verification/training/grammar.py` writes all texts; no other data was used. Two tasks:

- *Agreement*: `the keys to the cabinet are on the table .` The verb has the number of the
  subject noun, whatever the numbers of the nouns between or before.
- *Questions*: `mary has the ball . the cup is with john . who has the cup ? john .` Two to four
  facts in random order, one of them asked about.

Held out are combinations of words: one in eight of the pairs (subject, other noun before the
verb), (subject, adjective) and (person, thing), chosen by a hash, is in no training text. Every
held-out sentence turns on such a pair. The pairs key with cabinet and mary with ball are among
them.

## Training

{steps} steps of {batch} fresh texts each, AdamW with a learning rate of at most {rate}. The
first {lessons} steps are lessons: lists said twice, then questions in telegraph style,
`cup john . ball mary . ball ? mary .` Without them the model does not learn in the same time to
answer questions. All others are texts of the grammar, seven in ten of them facts with three
questions. The loss counts every word, and {weight:.0f}-fold those that the text determines: the
verb of an agreement sentence and the answer to a question. All seeds are fixed, one thread,
deterministic kernels; torch {torch}, transformers {transformers}.

    python -m refl.verification.training.train_shipped --out refl/shipped

builds this whole folder again. With the same versions on one machine the bytes of
`model.safetensors` are the same; elsewhere rounding may differ, and with it the weights.

## Held-out numbers

As measured by the run that wrote these weights. *Right over wrong*: the target's logit is above
that of the foil (the verb in the wrong number; another person of the text). *First choice
right*: the highest logit of the whole vocabulary is a verb of the right number, or the right
person. Other held-out questions on the same reserved pairs were looked at while the lessons
were devised, so the numbers for questions are not those of a test set never seen.

{report}

## Files

- `config.json`, `model.safetensors` (float32), `tokenizer.json`, `tokenizer_config.json`: as
  `transformers` reads them.
- `evidence.jsonl`: {examples} held-out sentences of each task, drawn apart from those measured
  above, one per line. Fields: `task`, `text`, `prefix` (the part to explain), `target` and
  `foil` (the next word, and the wrong one to hold against it), `evidence_words` and
  `evidence_tokens` (positions of the subject noun, or of the person's name in the fact asked
  about; words count from 0 in the prefix, tokens count `<s>` as 0), `support_words` and
  `support_tokens` (the thing in that fact and in the question; a verb in a relative clause that
  agrees with the subject as well; else empty), `construction`, `distractors` (other nouns
  before the verb, or other facts), `misleading` (those of the wrong number; all other facts).

## What it cannot do

- It knows {words} words and the sentences of its grammar. Every other word is `<unk>`; other
  sentences, longer texts, more than four facts and questions other than `who has the ... ?` get
  nonsense.
- It knows nothing of the world and is of no use for anything but teaching and testing
  explanations.
- The evidence is what determines the word *in the grammar*. That the model uses it is likely
  (see the rows with misleading distractors, and what guessing by position gets), but not
  certain for every sentence: an explanation that differs may have found how this model really
  does it.
- In most agreement sentences the subject is also the first noun; only in the `fronted` ones is
  it not.

## License

MIT.
"""


# --- Tokenizer ------------------------------------------------------------------------------------


def build_tokenizer() -> Tokenizer:
    """One token per word, in lower case, with the start token before the text."""
    words = {word: index for index, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", START)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tokenizer_settings() -> dict[str, Any]:
    """What transformers wants to know beside tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": configuration()["max_position_embeddings"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }


# --- Training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Token ids padded on the right, with the weight of every token as something to predict."""

    ids: Tensor
    weights: Tensor


def _encoded(document: Document, ids: dict[str, int]) -> tuple[list[int], list[float]]:
    """Ids and weights of one text between its start and end tokens."""
    tokens = [START, *(ids[word] for word in document.words), END]
    weights = [0.0, *([1.0] * (len(document.words) + 1))]
    for position in document.determined:
        weights[position + 1] = DETERMINED_WEIGHT
    return tokens, weights


def _batch(documents: Iterable[Document], ids: dict[str, int]) -> Batch:
    rows = [_encoded(document, ids) for document in documents]
    width = max(len(tokens) for tokens, _ in rows)
    return Batch(
        torch.tensor([tokens + [PAD] * (width - len(tokens)) for tokens, _ in rows]),
        torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in rows]),
    )


@dataclass(frozen=True)
class Lesson:
    """A kind of text, and the share of determined words to get
    right before the next lesson starts.
    """

    documents: Callable[[random.Random], Document]
    enough: float


LESSONS = (
    Lesson(echo_document, 0.85),
    Lesson(telegram_document, 0.95),
    Lesson(training_document, math.inf),
)
"""Without the first two, the questions of the last one stay a mystery for very long."""


def loss_and_score(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, float]:
    """The weighted mean of the cross entropy, and the share
    of determined words that are predicted.
    """
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits.flatten(0, 1)
    targets, weights = batch.ids[:, 1:].flatten(), batch.weights[:, 1:].flatten()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    right = (logits.argmax(-1) == targets)[weights > 1]
    return (losses * weights).sum() / weights.sum(), float(right.float().mean())


RESIDUAL_SCALE = 0.1
"""Layers start by adding little, so that what a word is can still be read after all of them."""


def new_model(seed: int) -> LlamaForCausalLM:
    """The untrained model, the same for the same seed."""
    torch.manual_seed(seed)
    settings = configuration() | {"attn_implementation": "eager"}
    config = LlamaConfig(**settings)  # type: ignore[no-untyped-call, unused-ignore]
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call, unused-ignore]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.mul_(RESIDUAL_SCALE)
    return model


def rate_at(step: int, steps: int) -> float:
    """The share of the highest learning rate: a short rise, a plateau, and a fall from 60 % on."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.02, (1 - step / steps) / 0.4))


def train(model: LlamaForCausalLM, options: argparse.Namespace, ids: dict[str, int]) -> list[int]:
    """AdamW on fresh texts, lesson by lesson; returns the number of steps that each lesson took."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_at(step, options.steps)
    )
    rng, steps_of_lessons, score = random.Random(TRAINING_SEED), [0], 0.0
    for _ in (progress := tqdm(range(options.steps), desc="training", mininterval=5)):
        lesson = LESSONS[len(steps_of_lessons) - 1]
        batch = _batch((lesson.documents(rng) for _ in range(options.batch)), ids)
        score += 0.1 * (_step(model, batch, optimizer) - score)
        schedule.step()
        progress.set_postfix(lesson=len(steps_of_lessons), score=f"{score:.3f}", refresh=False)
        steps_of_lessons[-1] += 1
        if score > lesson.enough:
            steps_of_lessons, score = [*steps_of_lessons, 0], 0.0
    return steps_of_lessons


def _step(model: LlamaForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """One step of the optimizer; returns the share of determined
    words that were predicted before it.
    """
    loss, score = loss_and_score(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return score


# --- Held-out numbers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What the model says of one sentence:
    whether it prefers the target to the foil, and its first choice.
    """

    sentence: Sentence
    preferred: bool
    choice: str

    @property
    def correct(self) -> bool:
        """Whether the first choice among all words is the person,
        or any verb of the right number.
        """
        if self.sentence.task == "question":
            return self.choice == self.sentence.target
        singular = self.sentence.target in SINGULAR_VERBS
        return self.choice in (SINGULAR_VERBS if singular else PLURAL_VERBS)


def last_logits(model: LlamaForCausalLM, tokenizer: Tokenizer, prefix: str) -> Tensor:
    """The logits of the word after the prefix."""
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=torch.tensor([tokenizer.encode(prefix).ids]), use_cache=False
        ).logits
    return logits[0, -1]


def judge(model: LlamaForCausalLM, tokenizer: Tokenizer, sentence: Sentence) -> Judged:
    logits = last_logits(model, tokenizer, sentence.prefix)
    target, foil = (
        logits[tokenizer.token_to_id(word)] for word in (sentence.target, sentence.foil)
    )
    return Judged(sentence, bool(target > foil), str(tokenizer.id_to_token(int(logits.argmax()))))


def held_out(seed: int, count: int) -> list[Sentence]:
    return held_out_agreement(seed, count) + held_out_questions(seed, count)


def _row(name: str, judged: Sequence[Judged]) -> str:
    preferred = sum(each.preferred for each in judged) / len(judged)
    right = sum(each.correct for each in judged) / len(judged)
    return f"| {name} | {len(judged)} | {preferred:.2%} | {right:.2%} |"


def _groups(sentence: Sentence) -> tuple[str, ...]:
    """The rows of the table in which a sentence counts."""
    if sentence.task == "question":
        count = f"question, {sentence.distractors + 1} facts"
        return ("question", f"question, {sentence.construction}", count)
    numbers = f"{sentence.distractors} distractors, {sentence.misleading} of the wrong number"
    return ("agreement", f"agreement, {sentence.construction}", f"agreement, {numbers}")


def table(judged: Sequence[Judged]) -> str:
    """The held-out accuracies in Markdown, by construction and by number of distractors."""
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        for name in _groups(each.sentence):
            groups.setdefault(name, []).append(each)
    head = "| sentences | number | right over wrong | first choice right |\n|---|---|---|---|\n"
    return head + "\n".join(_row(name, groups[name]) for name in sorted(groups))


def shortcuts(sentences: Sequence[Sentence]) -> str:
    """How far guessing by position alone would get, for comparison."""
    lines = []
    for task, index in itertools.product(("agreement", "question"), (0, -1)):
        chosen = [sentence for sentence in sentences if sentence.task == task]
        right = sum(shortcut(sentence, index) == sentence.target for sentence in chosen) / len(
            chosen
        )
        what = ("first " if index == 0 else "last ") + ("noun" if task == "agreement" else "person")
        lines.append(f"- {task}, going by the {what}: {right:.1%}")
    return "\n".join(lines)


def perplexity(model: LlamaForCausalLM, seed: int, ids: dict[str, int]) -> float:
    """Of fresh training texts, all words counted alike:
    how good a language model of its grammar it is.
    """
    rng = random.Random(seed)
    batch = _batch((training_document(rng) for _ in range(500)), ids)
    with torch.no_grad():
        loss, _ = loss_and_score(model, Batch(batch.ids, (batch.weights > 0).float()))
    return float(loss.exp())


def greedy(model: LlamaForCausalLM, tokenizer: Tokenizer, prefix: str, most: int = 8) -> str:
    """The likeliest next words, up to the end of the sentence."""
    words: list[str] = []
    while len(words) < most and words[-1:] not in (["."], ["</s>"]):
        logits = last_logits(model, tokenizer, " ".join([prefix, *words]))
        words.append(str(tokenizer.id_to_token(int(logits.argmax()))))
    return " ".join(words)


# --- Files ----------------------------------------------------------------------------------------


def evidence_record(tokenizer: Tokenizer, sentence: Sentence) -> dict[str, Any]:
    """One line of evidence.jsonl; token positions count the start token as 0."""
    words, tokens = sentence.prefix.split(), tokenizer.encode(sentence.prefix).tokens
    if tokens != ["<s>", *words]:
        raise ValueError(f"words and tokens differ: {sentence.prefix!r}")
    return {
        "task": sentence.task,
        "construction": sentence.construction,
        "distractors": sentence.distractors,
        "misleading": sentence.misleading,
        "prefix": sentence.prefix,
        "target": sentence.target,
        "foil": sentence.foil,
        "text": sentence.text,
        "evidence_words": list(sentence.evidence),
        "evidence_tokens": [position + 1 for position in sentence.evidence],
        "support_words": list(sentence.support),
        "support_tokens": [position + 1 for position in sentence.support],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_evidence(path: Path, tokenizer: Tokenizer) -> None:
    sentences = held_out(EXAMPLE_SEED, EXAMPLES_PER_TASK)
    lines = [json.dumps(evidence_record(tokenizer, sentence)) for sentence in sentences]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_weights(path: Path, model: LlamaForCausalLM) -> None:
    """The parameters by name; the output matrix is the embedding and so is not stored again."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    path.write_bytes(save(dict(sorted(tensors.items())), metadata={"format": "pt"}))


def card(
    model: LlamaForCausalLM, options: argparse.Namespace, steps_of_lessons: list[int], report: str
) -> str:
    """The model card, with what this run chose and measured."""
    return CARD.format(
        **configuration(),
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        lessons=" + ".join(map(str, steps_of_lessons[:-1])),
        weight=DETERMINED_WEIGHT,
        torch=torch.__version__,
        transformers=transformers.__version__,
        examples=EXAMPLES_PER_TASK,
        words=len(vocabulary()),
        report=report,
    )


def write_folder(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, text: str) -> None:
    """Everything that a reader of the folder needs, with the text of the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", configuration())
    write_json(folder / "tokenizer_config.json", tokenizer_settings())
    tokenizer.save(str(folder / "tokenizer.json"))
    write_weights(folder / "model.safetensors", model)
    write_evidence(folder / "evidence.jsonl", tokenizer)
    (folder / "CARD.md").write_text(text, encoding="utf-8")


# --- Command --------------------------------------------------------------------------------------


def report_on(model: LlamaForCausalLM, tokenizer: Tokenizer) -> str:
    """The measured part of the model card."""
    sentences = held_out(CHECK_SEED, CHECKED_PER_TASK)
    progress = tqdm(sentences, desc="held out", mininterval=5)
    judged = [judge(model, tokenizer, sentence) for sentence in progress]
    fresh = perplexity(model, CHECK_SEED, tokenizer.get_vocab())
    lines = [f"- `{prefix}` **{greedy(model, tokenizer, prefix)}**" for prefix in PREFIXES]
    return "\n".join(
        [table(judged), "", "Guessing by position alone would get, on the same sentences:", ""]
        + [
            shortcuts(sentences),
            "",
            f"Perplexity per word on fresh training texts: {fresh:.2f}",
            "",
        ]
        + ["Greedy continuations (in bold):", "", *lines]
    )


def show_examples(tokenizer: Tokenizer, count: int = 5) -> None:
    """A few held-out sentences with their evidence, so that a reader sees what is learned."""
    for sentence in held_out(EXAMPLE_SEED, count):
        record = evidence_record(tokenizer, sentence)
        words = sentence.prefix.split()
        evidence = " ".join(words[position] for position in record["evidence_words"])
        print(f"{sentence.text}   [{sentence.target}, not {sentence.foil}, because of: {evidence}]")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the language model that ships with refl.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write (made if missing)")
    parser.add_argument("--steps", type=int, default=2400, help="training steps")
    parser.add_argument("--batch", type=int, default=48, help="texts per step")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer()
    show_examples(tokenizer)
    model = new_model(TRAINING_SEED)
    steps_of_lessons = train(model, options, tokenizer.get_vocab())
    model.eval()
    report = report_on(model, tokenizer)
    print(report)
    write_folder(options.out, model, tokenizer, card(model, options, steps_of_lessons, report))


if __name__ == "__main__":
    main()
