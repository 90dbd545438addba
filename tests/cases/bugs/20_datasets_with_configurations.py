"""hf:NAME of a data set with configurations (as wikipedia, wikitext, c4, gsm8k). Right: there is a way to name one, and the error lists
them; errors while streaming are SourceErrors."""
from _tiny import folder, told
from whet.data.documents import read_documents

where, faults = folder(), []
for name, text in (("en", "english one"), ("de", "deutsch eins")):
    (where / name).mkdir()
    (where / name / "train.jsonl").write_text('{"text": "%s"}\n' % text)
(where / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: en/*.jsonl\n- config_name: de\n  data_files: de/*.jsonl\n---\n")
ways = {}
for spec in (f"hf:{where}:de", f"hf:{where}:de:train", f"hf:{where}@de"):
    try:
        ways[spec] = [d.text for d in read_documents(spec)]
    except Exception as error:
        ways[spec] = str(error)
if ["deutsch eins"] not in ways.values():
    faults.append("no spelling names a configuration; told is " + ways[f"hf:{where}:de"].split("cannot be read as a data set: ")[-1][:40])
mixed = folder()
(mixed / "a.jsonl").write_text('{"text": "one", "x": 1}\n' * 3)
(mixed / "b.jsonl").write_text('{"text": "two", "x": {"y": 1}}\n')
for spec in (f"hf:{mixed}", "hf:"):
    try:
        list(read_documents(spec))
    except Exception as error:
        if type(error).__name__ != "SourceError":
            faults.append(f"{'hf:' if spec == 'hf:' else 'a file of other types'}: {type(error).__name__} {str(error)[:50]}")
told(faults)
