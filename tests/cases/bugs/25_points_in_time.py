"""Filters over points in time, as JSON, Python and Parquet write them. Right: compared as times, or refused, or the docs say that texts
compare letter by letter and Parquet's are written as in JSON (2024-01-01T00:00:00Z), so that one spelling finds them all."""
import datetime as dt
import pyarrow as pa, pyarrow.parquet as pq
from _tiny import folder, told
from whet import DataSpace
from whet.data.documents import read_documents
from whet.data.filters import as_filter

where = folder()
noon = dt.datetime(2024, 6, 1, 12, tzinfo=dt.timezone.utc)
pq.write_table(pa.table({"id": ["parquet"], "text": ["bees dance"], "at": pa.array([noon], pa.timestamp("us", "UTC"))}), where / "a.parquet")
(where / "b.jsonl").write_text('{"id": "z", "text": "bees dance z", "at": "2024-06-01T12:00:00Z"}\n{"id": "offset", "text": "bees dance o", "at": "2024-06-01T14:00:00+02:00"}\n')
space = DataSpace.build([*read_documents(where), {"id": "python", "text": "bees dance p", "at": noon}], where / "s")
faults = []
for text in ('at >= "2024-06-01T12:00:00Z"', 'at == "2024-06-01T12:00:00Z"', 'at < "2024-06-01T13:00:00Z"', 'at > "2024-06-01T00:00:00"'):
    found = sorted(d.id for d in space.documents(space.store.ids(as_filter(text))))
    if found != ["offset", "parquet", "python", "z"]:
        faults.append(f"{text} finds {found}")
told(faults)
