"""Convert text to training tokens: filter by license, fit a byte-level BPE, write one array.

    python benchmarks/pretrain/corpus.py PRETRAIN.jsonl.gz WORK

The folder WORK receives `tokenizer.json`, `tokens.npy` (uint16) and `meta.json`, which counts bytes
by set and by license, kept and dropped. Kept are the public domain, permissive code licenses, CC0
and CC BY. Dropped is everything non-commercial, share-alike or copyleft, and text whose authors
granted no license (Hacker News comments).
"""

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 8192
SEED = 0
KEEP = re.compile(
    r"public domain|public,|CC0|CC by/|CC BY \d|CC-BY |MIT|Apache|BSD|Crown copyright", re.I
)
DROP = re.compile(r"\bNC\b|-nc|\bSA\b|-sa|GPL|GFDL|user content", re.I)


def permitted(license: str) -> bool:
    return bool(KEEP.search(license)) and not DROP.search(license)


def fit_tokenizer(texts: list[str], budget: int = 30_000_000) -> Tokenizer:
    """Fit a byte-level BPE to the first `budget` characters of `texts`, 6,000 of each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()

    def sample() -> Iterator[str]:
        seen = 0
        for text in texts:
            if seen > budget:
                return
            seen += len(text[:6000])
            yield text[:6000]

    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
def main(source: Path, work: Path) -> None:
    texts: list[str] = []
    sizes: dict[str, Counter[str]] = {"kept": Counter(), "dropped": Counter(), "sets": Counter()}
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            text, license = document["text"], document["license"]
            size = len(text.encode())
            sizes["kept" if permitted(license) else "dropped"][license] += size
            if permitted(license):
                sizes["sets"][document["set"]] += size
                texts.append(text)
    random.Random(SEED).shuffle(texts)
    tokenizer = fit_tokenizer(texts)
    tokens = np.concatenate(
        [
            np.array([0, *encoding.ids], dtype=np.uint16)  # <|endoftext|> before every text
            for start in range(0, len(texts), 256)
            for encoding in tokenizer.encode_batch(texts[start : start + 256])
        ]
    )
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(work / "tokenizer.json"))
    np.save(work / "tokens.npy", tokens)
    meta = {name: dict(counter.most_common()) for name, counter in sizes.items()}
    meta |= {"tokens": len(tokens), "documents": len(texts)}
    (work / "meta.json").write_text(json.dumps(meta, indent=1))
    click.echo(json.dumps(meta, indent=1))


if __name__ == "__main__":
    main()
