"""Writes the fixtures of this folder anew, from pycocoevalcap and its Java tokenizer.

Needs a `java` and `pip install pycocoevalcap==1.2`, in an environment of its own; the tests need
neither. From the root of the checkout, with the shared data folder beside it:

    python tests/export/metrics/make_fixtures.py
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "fixtures"
COCO = HERE.parents[3].parent / "shared" / "data" / "photos" / "coco"
JAR = "stanford-corenlp-3.4.1.jar"
CONSTANT = "a man is standing in a field"

Texts = Mapping[int, Sequence[str]]


def tokenize(texts: Sequence[str]) -> list[str]:
    """Each text's tokens, joined by spaces, as pycocoevalcap has them; texts are single lines.

    Its own call passes Java no encoding, so that its result depends on the system; this is UTF-8.
    """
    tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    folder = Path(str(tokenizer.__file__)).parent
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(texts))
        file.flush()
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", JAR]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        out = subprocess.run(
            [*command, file.name],
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout.decode()
    lines = out.split("\n")[: len(texts)]
    assert len(lines) == len(texts)
    dropped = set(tokenizer.PUNCTUATIONS)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in dropped) for line in lines]


def tokenize_apart(texts: Sequence[str]) -> list[str]:
    """The same, of each text by itself: a last `K.` is another token where `A` begins the next."""
    return tokenize([line for text in texts for line in (text, "x")])[::2]


def tokenize_all(texts: Texts) -> dict[int, list[str]]:
    flat = iter(tokenize([text.replace("\n", " ") for many in texts.values() for text in many]))
    return {image: [next(flat) for _ in many] for image, many in texts.items()}


def score(candidates: Texts, references: Texts) -> dict[str, Any]:
    """Scores of the corpus and of each image."""
    result, truth = tokenize_all(candidates), tokenize_all(references)
    scorers = {
        "BLEU": importlib.import_module("pycocoevalcap.bleu.bleu").Bleu(4),
        "ROUGE-L": importlib.import_module("pycocoevalcap.rouge.rouge").Rouge(),
        "CIDEr-D": importlib.import_module("pycocoevalcap.cider.cider").Cider(),
    }
    corpus: dict[str, float] = {}
    images: dict[str, list[float]] = {}
    for name, scorer in scorers.items():
        whole, parts = scorer.compute_score(truth, result)
        named = (
            {f"BLEU-{n + 1}": (whole[n], parts[n]) for n in range(4)}
            if name == "BLEU"
            else {name: (whole, parts)}
        )
        for key, (total, each) in named.items():
            corpus[key] = float(total)
            images[key] = [round(float(one), 8) for one in each]
    return {"corpus": corpus, "ids": list(truth), "images": images}


def read_references(path: Path) -> dict[int, list[str]]:
    references: dict[int, list[str]] = {}
    for entry in json.loads(path.read_text())["annotations"]:
        references.setdefault(entry["image_id"], []).append(entry["caption"])
    return references


def read_results(path: Path) -> dict[int, list[str]]:
    return {entry["image_id"]: [entry["caption"]] for entry in json.loads(path.read_text())}


def oracle_sets() -> dict[str, Any]:
    """Scores on the shared data: no caption of it is written, only numbers."""
    full = read_references(COCO / "captions_val2017_full.json")
    fake = read_results(COCO / "fakecap_results.json")
    mini = read_references(COCO / "captions_val2017_subset.json")
    both = [image for image in fake if image in full]
    sets = {
        "fakecap": ({i: fake[i] for i in both}, {i: full[i] for i in both}),
        "first human caption": (
            {i: texts[:1] for i, texts in full.items()},
            {i: texts[1:] for i, texts in full.items()},
        ),
        "constant": ({i: [CONSTANT] for i in full}, full),
        "first human caption of the subset": (
            {i: texts[:1] for i, texts in mini.items()},
            {i: texts[1:] for i, texts in mini.items()},
        ),
    }
    scores = {name: score(*pair) for name, pair in sets.items()}
    for name, one in scores.items():
        one["count"] = len(one["ids"])
        if name != "fakecap":  # thousands of numbers
            del one["ids"], one["images"]
    tokens = tokenize_apart([text.replace("\n", " ") for many in full.values() for text in many])
    tokens += tokenize_apart([text for many in fake.values() for text in many])
    digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    return {"sets": scores, "captions": len(tokens), "tokens_sha256": digest}


def write(name: str, content: object) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    texts = (HERE / "hard_texts.txt").read_text().splitlines()
    write("hard_tokens.json", dict(zip(texts, tokenize_apart(texts), strict=True)))
    references = read_references(HERE / "references.json")
    write("scores.json", score(read_results(HERE / "results.json"), references))
    write("oracle_sets.json", oracle_sets())


if __name__ == "__main__":
    main()
