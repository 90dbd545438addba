"""One word in two Unicode forms (macOS, PDFs and some keyboards give the decomposed one). Right: lsa and bm25 see one word."""
import unicodedata
from _tiny import folder, told
from whet import DataSpace, Retriever, SelectionConfig

facts = ["The café in Zürich serves crêpes", "Bees dance to tell where food is", "Trains run on rails", "Honey keeps for years"]
faults = []
for stored, asked in (("NFC", "NFD"), ("NFD", "NFC")):
    space = DataSpace.build([unicodedata.normalize(stored, fact) for fact in facts], folder() / "s")
    for word in ("café", "Zürich", "crêpes"):
        for kind in ("dense", "bm25"):
            try:
                found = Retriever(space, SelectionConfig(retriever=kind)).select(unicodedata.normalize(asked, word), n=1).documents[0].id
            except ValueError as error:
                found = f"{error}"[:44]
            if found != "0":
                faults.append(f"{word} {asked} in {stored}, {kind}: {found}")
if faults:
    faults = [f"{len(faults)} of 12 fail, as {faults[0]}"]
told(faults)
