"""Documents near the prompt were deleted from a space with an index. Right: the k nearest of those that are left."""
import importlib
from _tiny import folder, told
from whet import DataSpace, Retriever
from whet.space.store.writer import delete_documents
case = importlib.import_module("01_filter_in_indexed_space")

path, faults = folder() / "s", []
case.made(path)
delete_documents(path, where="topic in [0, 1]")
space = DataSpace.open(path, case.Groups())
[fast] = space.search(space.embedder.encode(["0 a prompt"]), 200)
if len(fast.rows) < 200:
    faults.append(f"{len(fast.rows)} of k = 200 found though {len(space):,} documents are left")
try:
    Retriever(space).select("0 a prompt", n=3)
except ValueError as error:
    faults.append(f"select: {error}")
told(faults)
