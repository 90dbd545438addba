"""A filter in a space with an index (50,000 rows or more). Right: the k nearest of what passes, as docs/space.md says
("applied before the search"), at about the recall that `whet space info` tells; never fewer than k while k pass."""
import zlib
import numpy as np
from _tiny import folder, told
from whet import DataSpace, Retriever, SelectionConfig

CENTRES = np.random.default_rng(0).standard_normal((16, 64))
CENTRES /= np.linalg.norm(CENTRES, axis=1, keepdims=True)

class Groups:  # texts "3 17": topic 3, some noise
    name, dimension, fingerprint = "groups", 64, "groups 64"
    def encode(self, texts):
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts):
            row[:] = CENTRES[int(text.split()[0])] + 0.09 * np.random.default_rng(zlib.crc32(text.encode())).standard_normal(64)
            row /= np.linalg.norm(row)
        return rows

def made(path):
    return DataSpace.build(({"id": str(i), "text": f"{i % 16} {i}", "topic": i % 16} for i in range(51_200)), path, Groups())

if __name__ == "__main__":
    space, faults = made(folder() / "s"), []
    query = space.embedder.encode(["0 a prompt"])
    for where in (None, "topic == 1", "topic != 0", "topic >= 8", "topic in [3, 4, 5]", "topic == 0"):
        [fast], [exact] = space.search(query, 200, where=where), space.search(query, 200, where=where, exact=True)
        share = len(set(fast.rows) & set(exact.rows)) / 200
        if len(fast.rows) < 200 or share < 0.8:
            faults.append(f"where {where!r}: {len(fast.rows)} of k = 200 found, recall {share:.2f}")
    try:
        Retriever(space, SelectionConfig(where="topic >= 8")).select("0 a prompt", n=3)
    except ValueError as error:
        faults.append(f"Retriever(where='topic >= 8'): {error}")
    told(faults)
