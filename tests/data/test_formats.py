import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pytest
from support.office import docx, encrypted_pdf, pdf

from whet.data.documents import Document, iter_documents, read_documents
from whet.data.files import iter_files
from whet.data.walk import FileOptions
from whet.errors import SourceError


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return next(read_documents(path))


def parts(document):
    """Each section's metadata and the first line of its text."""
    return [
        (section.meta, document.text[section.start :].partition("\n")[0])
        for section in document.sections
    ]


def error(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    [problem] = [item for file in iter_files(tmp_path, FileOptions(**options))
                 for item in file.documents()]  # fmt: skip
    assert isinstance(problem, SourceError), problem
    assert "\n" not in str(problem)
    return str(problem)


def test_markdown_has_the_path_of_its_headings(tmp_path):
    text = (
        "---\ntitle: x\n---\nIntro\n\n# Bees `x`\n\n```\n# not one\n```\nDance\n=====\n\n## Round\n"
    )
    document = read(tmp_path, "a.md", text)
    assert document.text == text
    assert parts(document) == [
        ({"heading": "Bees x"}, "# Bees `x`"),
        ({"heading": "Dance"}, "Dance"),
        ({"heading": "Dance > Round"}, "## Round"),
    ]


def test_restructured_text_has_the_path_of_its_titles(tmp_path):
    text = "====\nBees\n====\n\nDance\n-----\n\na\n\nRound\n~~~~~\n\nHoney\n-----\n\n- x\n---\n"
    assert [meta["heading"] for meta, _ in parts(read(tmp_path, "a.rst", text))] == [
        "Bees", "Bees > Dance", "Bees > Dance > Round", "Bees > Honey", "Bees > - x",
    ]  # fmt: skip


SCRIPTS = [
    "<script>evil()</script>",
    "<SCRIPT src=x>evil()</SCRIPT >",
    "<style>evil{}</style>",
    "<svg><script>evil()</script><style>evil{}</style></svg>",
    "<template><script>evil()</script></template>",
    "<a onclick='evil()' href='javascript:evil()'>k</a>",
    "<!-- evil() -->",
    "<noscript>evil()</noscript>",
    "<script>evil()",
    "<style>evil{",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_and_styles_of_html_never_become_text(tmp_path, script):
    page = f"<html><head>{script}</head><body><h1>Bees</h1><p>dance</p></body></html>"
    for content in (page, f"<h1>Bees</h1><p>dance</p>{script}"):
        try:
            document = read(tmp_path, "a.html", content)
        except SourceError as problem:  # a script that does not end takes the page with it
            assert "has no text" in str(problem)
        else:
            assert "evil" not in document.text
            assert "# Bees" in document.text and "dance" in document.text


def test_html_is_markdown_with_headings_and_without_addresses(tmp_path):
    page = (
        "<meta charset='iso-8859-1'><nav>menu</nav><h1>Käse<a class=headerlink href='#x'>¶</a></h1>"
        "<p>see <a href='https://example.org/x'>here</a></p><h2>Art</h2><ul><li>a<li>b</ul>"
    )
    document = read(tmp_path, "a.html", page.encode("latin-1"))
    assert document.text == "# Käse\n\nsee here\n\n## Art\n\n- a\n- b\n"
    assert document.meta == {"encoding": "iso-8859-1"}
    assert [meta["heading"] for meta, _ in parts(document)] == ["Käse", "Käse > Art"]


def test_pdf_has_pages(tmp_path):
    document = read(tmp_path, "a.pdf", pdf([["Bees dance", "in circles"], [], ["Honey keeps"]]))
    assert document.text.split() == "Bees dance in circles Honey keeps".split()
    pages = [({"page": 1}, "Bees dance"), ({"page": 2}, ""), ({"page": 3}, "Honey keeps")]
    assert parts(document) == pages
    assert document.meta == {"pages": 3}
    assert read(tmp_path, "b", pdf([["by content"]])).text.strip() == "by content"


def test_docx_has_headings(tmp_path):
    content = docx([("Heading1", "Bees"), ("", "dance"), ("Heading2", "Why"), ("", "flowers")])
    document = read(tmp_path, "a.docx", content)
    assert document.text == "# Bees\n\ndance\n\n## Why\n\nflowers\n"
    assert [meta["heading"] for meta, _ in parts(document)] == ["Bees", "Bees > Why"]


def test_notebooks_have_cells_without_outputs(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Bees\n", "dance"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"text": "secret"}]},
        {"cell_type": "code", "source": ""},
        {"cell_type": "markdown", "source": "## Honey"},
    ]
    for notebook in ({"cells": cells}, {"worksheets": [{"cells": cells}]}):
        document = read(tmp_path, "a.ipynb", json.dumps(notebook))
        assert document.text.rstrip() == "# Bees\ndance\n\n```python\n1 + 1\n```\n\n## Honey"
        assert [meta for meta, _ in parts(document)] == [
            {"heading": "Bees", "cell": 1},
            {"heading": "Bees", "cell": 2},
            {"heading": "Bees > Honey", "cell": 4},
        ]


def test_python_has_its_definitions(tmp_path):
    code = (
        "import os\n\n\n# about A\n@cache\nclass A:\n    x = '\x0c'\n\n    def f(self):\n"
        "        return 1\n\n    async def g(self): ...\n\n\nif x:\n    y = 1\n\ndef h(): ...\n"
    )
    document = read(tmp_path, "a.py", code.replace("\n", "\r\n"))
    assert [(meta.get("symbol"), line.strip()) for meta, line in parts(document)] == [
        ("A", "# about A"), ("A.f", "def f(self):"), ("A.g", "async def g(self): ..."),
        (None, "if x:"), ("h", "def h(): ..."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, code, symbols",
    [
        ("a.go", "package a\n\n// Add it.\nfunc (s *S) Add(x int) {\n\n\tx++\n}\n", {"Add"}),
        ("a.rs", "use a;\n\n#[inline]\npub fn f<T>(x: T) {}\n\nimpl A for B {\n}\n", {"f", "A"}),
        ("a.c", "/* A class of\n * things */\n\nstatic void\nrun(int x)\n{\n}\n", {"run"}),
        ("a.js", "import x\n\nexport function f() {\n  g()\n\n  h()\n}\n\ng();\n", {"f"}),
        ("a.java", "class A {\n\n    @Override\n    int f(int x) {\n    }\n}\n", {"A", "A.f"}),
        ("b.py", "def f(:\n    pass\n\ndef g():\n    pass\n", {"f", "g"}),
        ("a.sh", "set -e\n\nrun() {\n  ls\n}\n", {"run"}),
    ],
)
def test_other_languages_have_definitions_after_blank_lines(tmp_path, name, code, symbols):
    document = read(tmp_path, name, code)
    assert document.text == code
    assert {meta["symbol"] for meta, _ in parts(document) if "symbol" in meta} == symbols


@pytest.mark.parametrize(
    "ending, pack",
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", lambda c: pa.compress(c, codec="zstd", asbytes=True)),
    ],
)
def test_packed_files_are_read_like_the_others(tmp_path, ending, pack):
    document = read(tmp_path, f"a.md.{ending}", pack(b"# Bees\n"))
    assert document == Document(f"a.md.{ending}", "# Bees\n", {})
    assert document.sections[0].meta == {"heading": "Bees"}
    assert read(tmp_path, f"a.jsonl.{ending}", pack(b'{"text": "x"}\n')).text == "x"
    assert read(tmp_path, f"a.csv.{ending}", pack("text\nKäse\n".encode("cp1252"))).text == "Käse"
    with pytest.raises(SourceError, match=f"truncated or corrupt {ending} after byte"):
        read(tmp_path, f"b.md.{ending}", pack(b"# Bees\n" * 5000)[:-9])


TEXTS = [
    ("utf-8-sig", "Käse"),
    ("utf-16", "Käse — 二"),
    ("utf-16-le", "Bees dance to show flowers, Käse"),
    ("utf-16-be", "Bees dance to show flowers, Käse"),
    ("utf-32", "Käse — 二"),
    ("cp1252", "Größe der Straße, naïve café — “quoted”"),
    ("cp1251", "Пчелы танцуют, чтобы показать цветы и дорогу домой"),
    ("koi8_r", "Пчелы танцуют, чтобы показать цветы и дорогу домой"),
    ("cp932", "ミツバチは花の方向を示すために踊る。これは日本語の文章です。"),
    ("gb18030", "蜜蜂跳舞以指示花的方向,这是一个中文句子。"),
]


@pytest.mark.parametrize("encoding, text", TEXTS)
def test_texts_are_read_in_any_common_encoding(tmp_path, encoding, text):
    assert read(tmp_path, "a.txt", text.encode(encoding)).text == text
    table = f"n\ttext\r\n1\t{text}\r\n"
    assert read(tmp_path, "a.tsv", table.encode(encoding)).text == text
    if encoding.startswith("utf"):
        line = json.dumps({"text": text, "n": 1}, ensure_ascii=False) + "\n"
        assert read(tmp_path, "b.json", line.encode(encoding)).text == text
        assert read(tmp_path, "b.jsonl", (line * 2).encode(encoding)).text == text


def test_stray_bytes_of_a_text_in_utf8_are_letters(tmp_path):
    document = read(tmp_path, "a.txt", "Käse für, ".encode() + "Größe".encode("cp1252"))
    assert document == Document("a.txt", "Käse für, Größe", {"encoding": "utf-8 and cp1252"})


BOMB = gzip.compress(b"\0" * 3_000_000, mtime=0)
BAD = [
    ("a.pdf", encrypted_pdf(), "is encrypted: save a copy without a password"),
    ("a.pdf", pdf([[], []]), "has no text in its 2 pages: it is probably scanned"),
    ("a.pdf", pdf([["x"]])[:60], "is not a PDF that can be read"),
    ("a.pdf", b"plain", "is not a PDF that can be read"),
    ("a.docx", b"\xd0\xcf\x11\xe0" + b"\0" * 99, "is not a DOCX file: an old or encrypted Word"),
    ("a.docx", docx([("", "x" * 3_000_000)]), "unpacks to 3,00"),
    ("a.docx", docx([]), "has no text"),
    ("a.docx", docx([("", "<broken")]), "cannot be read as .docx"),
    ("a.md.gz", BOMB, "unpacks (gz) to more than the limit of 1,000,000 bytes: raise --max-file-mb"),
    ("a.jsonl.gz", BOMB, "line 1: is longer than the limit of 1,000,000 bytes"),
    ("a.parquet.gz", BOMB, "unpacks (gz) to more than the limit"),
    ("a.txt", b"x" * 1_000_001, "has 1,000,001 bytes, more than the limit of 1,000,000: raise"),
    ("a.ipynb", "{}", "is not a notebook: it has no list of cells"),
    ("a.ipynb", '{"cells": [3]}', "cannot be read as .ipynb"),
    ("a.ipynb", '{"cells": []}', "is a notebook without text"),
    ("a.html", "<script>x()</script>", "has no text outside of scripts"),
    ("a.xlsx", b"PK\3\4\0\0", "left out: whet does not read .xlsx: save it as"),
    ("a.rtf", b"{\\rtf1 x}", "left out: whet does not read .rtf: save it as"),
    ("a.txt", b"\x7fELF\2\1\1\0\0", "left out: binary"),
    ("a.tar.gz", gzip.compress(b"a.md\0\0\0" * 99, mtime=0), "left out: binary"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, message", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path, name, content, message):
    assert message in error(tmp_path, name, content, max_file_mb=1)


def test_a_large_sparse_file_is_refused_at_once(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2 * 2**30)
    with (tmp_path / "b.txt").open("wb") as file:
        file.write(b"bees " * 2000)
        file.truncate(2 * 2**30)
    left_out = []
    with pytest.raises(SourceError, match=r"b\.txt: has 2,147,483,648 bytes, more than the limit"):
        list(iter_documents(tmp_path, on_left_out=left_out.append))
    assert [each.path for each in left_out] == ["a.txt"]


def test_bad_files_do_not_stop_a_folder(tmp_path):
    for name, content, _ in BAD:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "z.md").write_text("bees")
    (tmp_path / "secret.md").write_text("bees")
    items = list(iter_documents(tmp_path))
    assert "z.md" in [item.id for item in items if isinstance(item, Document)]
    assert any(isinstance(item, SourceError) for item in items)
