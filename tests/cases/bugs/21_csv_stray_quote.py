"""One stray quote in a CSV or TSV. Right: at most that row is lost (told), as with a row of too few fields; not all that follow."""
from _tiny import folder, told
from whet.data.documents import iter_documents

where, faults = folder(), []
good = "".join(f"row {i},{i}\n" for i in range(20))
for name, line in (("after the closing one", '"bees" dance,7\n'), ("inches", '"5" pipe",7\n'), ("in a .tsv", '"Hello," she said.\t7\n'), ("not closed", '"bees dance,7\n'), ("by a backslash", '"bees \\"dance\\"",7\n')):
    tsv = name.endswith("tsv")
    path = where / ("a.tsv" if tsv else "a.csv")
    text = "text,n\nfirst,0\n" + line + good
    if tsv:  # the text of the stray row has a comma of its own
        path.write_text("text\tn\nfirst\t0\n" + line + good.replace(",", "\t"))
    else:
        path.write_text(text)
    found = [d for d in iter_documents(path) if not isinstance(d, Exception)]
    if len(found) < 21:
        faults.append(f"{name}: {len(found)} of 22 rows")
told(faults)
