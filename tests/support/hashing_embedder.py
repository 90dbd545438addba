"""A small embedder: each word adds its own random direction."""

import os
import signal
import zlib
from pathlib import Path

import numpy as np


class HashingEmbedder:
    def __init__(self, dimension=16, seed=0):
        self.name, self.dimension = "hashing", dimension
        self.fingerprint = f"hashing {dimension} {seed}"
        self._seed = seed

    def encode(self, texts):
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                rng = np.random.default_rng([self._seed, zlib.crc32(word.encode())])
                row += rng.standard_normal(self.dimension).astype(np.float32)
            length = np.linalg.norm(row)
            row /= length if length > 0 else 1
        return rows


class DyingOnce(HashingEmbedder):
    """An embedder that kills its process the first time it is called."""

    def __init__(self, mark):
        super().__init__()
        self.mark = Path(mark)

    def encode(self, texts):
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)
