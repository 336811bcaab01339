"""The inputs of the report, each checkpoint's of the kind that it was trained on; all drawn from
seeded generators.

    shipped              its own held-out sentences (evidence.jsonl): target less foil
    stories260K          beginnings of TinyStories, 16 to 48 tokens; the likeliest next token
    babyllama105         the same in characters, 40 to 80
    capp_gpt2            combinations of the six attributes of a part, and none to two steps of the
                         chain of processes that the model writes
    rxnmapper_albert     reactions of a few textbook kinds (esters, amides, ethers, Suzuki
                         couplings), one atom of the product masked
    vit_*                the digits 0, 1 and 2 from fonts, moved, turned and blurred; and the MNIST
                         digits that lie beside the checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refl.evaluation.subject import Item
from refl.model import SHIPPED, Model
from refl.verification.quality.import_graph import PROJECT

SHARED = PROJECT.parent / "shared"


def shipped(model: Model, count: int) -> list[Item]:
    """Half of each task."""
    lines = (SHIPPED / "evidence.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line) for line in lines]
    names = list(dict.fromkeys(s["task"] for s in said))
    tasks = [[s for s in said if s["task"] == name] for name in names]
    alternating = [s for pair in zip(*tasks, strict=True) for s in pair]
    return [
        Item(
            f"{n}",
            s["prefix"],
            contrast=(s["target"], s["foil"]),
            evidence=tuple(s["evidence_tokens"]),
            facts={"task": s["task"], "support": tuple(s["support_tokens"])},
        )
        for n, s in enumerate(alternating[:count])
    ]


# -- beginnings of stories -------------------------------------------------------------------------


def beginnings(model: Model, count: int, least: int, most: int) -> list[Item]:
    """Of stories without broken encoding, cut anywhere."""
    path = SHARED / "data" / "tinystories" / "tinystories_1000.json"
    stories = [s for s in json.loads(path.read_text(encoding="utf-8")) if s.isascii()]
    random, found = Random(11), []
    for n, story in enumerate(stories[:count]):
        ids = model.encode(" ".join(story.split())[: 3 * most])
        found.append(Item(f"{n}", ids[: random.randint(least, most)]))
    return found


# -- parts to be made ------------------------------------------------------------------------------

ATTRIBUTES = (
    ("geometry", 0, 7),
    ("holes", 7, 14),
    ("threads", 14, 16),
    ("surface", 16, 20),
    ("tolerance", 20, 24),
    ("batch", 24, 29),
)
"""Name, first id and the id after the last."""
BEGIN, END = 49, (50, 51)


def parts(model: Model, count: int) -> list[Item]:
    """Distinct ones, drawn among all 7,840 combinations."""
    every = list(product(*(range(first, end) for _, first, end in ATTRIBUTES)))
    random, found = Random(12), []
    for n, attributes in enumerate(random.sample(every, count)):
        ids = [*attributes, BEGIN]
        chain = model.generate(list(ids), n % 3)
        found.append(Item(f"{n}", chain[:-1] if chain[-1] in END else chain))
    return found


# -- reactions -------------------------------------------------------------------------------------

ALKYL = ("C", "CC", "CCC", "CC(C)C", "CCCC", "C1CCCC1", "C1CCCCC1", "CCOC", "CC(C)", "CCCCC")
ACYL = ("CC", "CCC", "c1ccccc1", "c1ccc(F)cc1", "c1ccc(OC)cc1", "C1CC1", "CC(C)C", "c1ccncc1")
ARYL = ("c1ccccc1", "c1ccc(C)cc1", "c1ccc(F)cc1", "c1ccc(OC)cc1", "c1ccncc1", "c1ccc(C#N)cc1")


def reactions() -> list[str]:
    """Reactants >> product, as SMILES."""
    return [
        *(f"{r}C(=O)Cl.{a}O>>{r}C(=O)O{a}" for r, a in product(ACYL[:2] + ACYL[5:7], ALKYL)),
        *(f"O=C(Cl){r}.N{a}>>O=C(N{a}){r}" for r, a in product(ACYL, ALKYL)),
        *(f"Br{b}.O{a}>>{b}O{a}" for b, a in product(ALKYL[:6], ARYL)),
        *(f"Br{a}.OB(O){b}>>{a}-{b}" for a, b in product(ARYL, ARYL)),
        *(f"O=C(O){r}.N{a}>>O=C(N{a}){r}" for r, a in product(ACYL, ALKYL)),
    ]


def masked_reactions(model: Model, count: int) -> list[Item]:
    """One token of the product masked, a letter: an atom."""
    random, found = Random(13), []
    for n, reaction in enumerate(random.sample(reactions(), count)):
        ids = model.encode(reaction)
        tokens = model.tokens(ids)
        after = tokens.index(">>")
        atoms = [t for t in range(after + 1, len(ids) - 1) if tokens[t].isalpha()]
        ids[random.choice(atoms)] = int(model.mask_id or 0)
        found.append(Item(f"{n}", ids, facts={"reaction": reaction}))
    return found


# -- digits ----------------------------------------------------------------------------------------

FONTS = "DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf", "cmr10.ttf", "cmtt10.ttf"
"""Those that come with Matplotlib."""


def digits(model: Model, count: int) -> list[Item]:
    """The MNIST digits beside the checkpoint, then digits of fonts; those alone whose class the
    model says, so that there is something to explain.
    """
    golden = np.load(SHARED / "checkpoints" / "vit_mnist_012_hf" / "golden.npz")
    pictures = [
        (image, int(label)) for image, label in zip(golden["images"], golden["labels"], strict=True)
    ]
    found: list[Item] = []
    drawn = drawn_digits(Random(14))
    while len(found) < count:
        image, label = pictures.pop(0) if pictures else next(drawn)
        if int(model.explain(image[..., None], "random", keep=()).target_id) == label:
            found.append(Item(f"{len(found)}", image[..., None], facts={"digit": label}))
    return found


def drawn_digits(random: Random) -> Iterator[tuple[Any, int]]:
    """White on black, 28 by 28, as MNIST has them: 20 pixels high around the center of mass."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted({path for pattern in FONTS for path in folder.glob(pattern)})
    while True:
        label, font = random.randrange(3), random.choice(fonts)
        large = Image.new("L", (112, 112))
        letter = ImageFont.truetype(str(font), 96)
        ImageDraw.Draw(large).text((56, 56), str(label), fill=255, font=letter, anchor="mm")
        large = large.rotate(random.uniform(-15, 15)).filter(
            ImageFilter.GaussianBlur(random.uniform(0, 4))
        )
        cut = large.crop(large.getbbox())
        scale = 20 / max(cut.size)
        small = cut.resize([max(1, round(side * scale)) for side in cut.size])
        picture = np.zeros((28, 28), dtype=np.uint8)
        top, left = (28 - small.height) // 2, (28 - small.width) // 2
        picture[top : top + small.height, left : left + small.width] = np.asarray(small)
        yield picture, label


# -- by checkpoint ---------------------------------------------------------------------------------

INPUTS: dict[str, Callable[[Model, int], list[Item]]] = {
    "shipped": shipped,
    "stories260K": lambda model, count: beginnings(model, count, 16, 48),
    "babyllama105": lambda model, count: beginnings(model, count, 40, 80),
    "capp_gpt2": parts,
    "rxnmapper_albert": masked_reactions,
    "vit_mnist_012_hf": digits,
    "vit_455_hf": digits,
}
