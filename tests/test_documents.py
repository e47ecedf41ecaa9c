"""Files become text, whatever they are and whoever made them; what has no text is told."""

from __future__ import annotations

import codecs
import io
import json
import zipfile
from pathlib import Path

import pytest
from conftest import Cli
from document_files import FOOTNOTES, NOTE, NUMBERED, NUMBERING, STYLES, WORD, docx, paragraph, pdf
from hypothesis import given
from hypothesis import strategies as st

from localai import documents, readers
from localai.errors import NotFound, UsageError
from localai.readers import docx as docx_reader
from localai.readers import html as html_reader

CONTRACT = "The tenant pays 900 euros a month."


def made(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("é à 日本\n".encode(), "é à 日本"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("é".encode("utf-16"), "é"),
        ("Été, lettre".encode("utf-16-le"), "Été, lettre"),
        ("Été, lettre".encode("utf-16-be"), "Été, lettre"),
        ("é".encode("utf-32"), "é"),
        ("Montant dû : 3 €".encode("cp1252"), "Montant dû : 3 €"),
        ("Été à Évian, ".encode() + b"\xe9t", "Été à Évian, \ufffdt"),
        ("cut é".encode() + b"\xc3", "cut é\ufffd"),
        (b"# Title\n\n- a <b>\n", "# Title\n\n- a <b>"),
        (b"\x1b[31mred", "\x1b[31mred"),
    ],
)
def test_plain_text_in_any_encoding(tmp_path: Path, content: bytes, text: str) -> None:
    assert documents.read(made(tmp_path, "a.md", content)) == documents.Document("a.md", text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Été".encode(), "Été"),
        ("Été : 3 €".encode("cp1252"), "Été : 3 €"),
        (codecs.BOM_UTF8 + b"marked", "marked"),
        ("Été".encode("utf-16"), "Été"),
        (b"./docs/a file name.txt\0./docs/another one.txt\0", "./docs/a file name.txt\0./docs/another one.txt\0"),
        (b"\x1b]0;title\x07 of a log", "\x1b]0;title\x07 of a log"),
        (b"a\0\0b\0c\x01", "a\0\0b\0c\x01"),
    ],
)
def test_what_is_piped_in_is_decoded_as_files_are(content: bytes, text: str) -> None:
    assert documents.piped(content) == text


def test_what_is_piped_in_and_no_text_is_refused(cli: Cli) -> None:
    for content in (docx(paragraph("x")), bytes(range(256)) * 3, b"\x89PNG\r\n\x1a\n" + bytes(90)):
        with pytest.raises(UsageError, match="no text"):
            documents.piped(content)
    told = cli("run", "-m", "smollm2-135m", "Summarise it.", input=pdf("x").decode())
    assert told.returncode == 2
    assert "--file - reads PDF" in told.stderr


def test_pdf(tmp_path: Path) -> None:
    path = made(tmp_path, "contrat.pdf", pdf("Loyer : 900 € par mois.", "Durée : trois ans."))
    assert documents.read(path).text == "Loyer : 900 € par mois.\n\nDurée : trois ans."


def test_a_pdf_of_pictures_is_told_to_be_a_scan(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 pages and no text: it is a scan"):
        documents.read(made(tmp_path, "scan.pdf", pdf("", "")))


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_an_encrypted_pdf_is_told_and_one_that_anybody_may_open_is_read(tmp_path: Path, algorithm: str) -> None:
    from pypdf import PdfReader, PdfWriter

    for password in ("password", ""):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("secret"))))
        writer.encrypt(password, "the owner's", algorithm=algorithm)
        path = tmp_path / "secret.pdf"
        writer.write(path)
        if password:
            with pytest.raises(UsageError, match="is encrypted") as caught:
                documents.read(path)
            assert "qpdf --decrypt secret.pdf" in caught.value.hint
        else:
            assert documents.read(path).text == "secret"


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_damaged_docx_is_told(noise: bytes, at: int) -> None:
    whole = docx(paragraph("hello"))
    try:
        docx_reader.read(whole[:at] + noise + whole[at + len(noise) :])
    except readers.Unreadable as error:
        assert error.hint


@pytest.mark.parametrize("content", [b"%PDF-1.4\n" + b"<<" * 50_000, b"%PDF-1.7", pdf("x")[:200]])
def test_a_damaged_pdf_is_told(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError):
        documents.read(made(tmp_path, "x.pdf", content))


def test_a_pdf_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_SECONDS", 0.001)
    with pytest.raises(UsageError, match="to read"):
        documents.read(made(tmp_path, "x.pdf", pdf("x")))


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>Prix</title><style>p {}</style>
<script>if (a<b) alert("no")</script></head>
    <body><h1>Caf&eacute;</h1><p>Un   <b>caf&#233;</b>:
    2&nbsp;&euro;</p><ul><li>noir<li>cr&egrave;me</ul><table><tr><td>a<td>b</table><!-- hidden --></body></html>"""
    text = documents.read(made(tmp_path, "page.bin", page.encode())).text
    assert text.split("\n") == ["Prix", "", "# Café", "", "Un café: 2 €", "", "- noir", "- crème", "", "| a | b |"]


@given(st.text())
def test_any_html_gives_some_text(source: str) -> None:
    assert "\n\n\n" not in html_reader.text(source)


def test_docx_with_paragraphs_and_a_table(tmp_path: Path) -> None:
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("Loyer", "900 €"))
    body = paragraph("Contrat d&#8217;été") + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>" + paragraph("fin<!-- x -->")
    text = documents.read(made(tmp_path, "contrat.docx", docx(body))).text
    assert text == "Contrat d’été\n\n| Loyer | 900 € |\n\nfin"


def test_docx_with_headings_lists_and_footnotes() -> None:
    body = paragraph("Bail", '<w:pStyle w:val="Titre1"/>') + paragraph("900 € par mois", after=NOTE)
    body += paragraph("un", NUMBERED) + paragraph("deux", NUMBERED)
    content = docx(body, styles=STYLES, numbering=NUMBERING, footnotes=FOOTNOTES)
    lines = docx_reader.read(content)[0]["text"].split("\n")
    assert lines == ["# Bail", "", "900 € par mois[1]", "", "1. un", "2. deux", "", "1. hors taxes"]


def test_docx_with_a_letterhead_and_a_foot() -> None:
    city = paragraph("Lyon")  # a text box, in the words of two versions
    box = f'<w:r xmlns:x="m"><x:Choice>{city}</x:Choice><x:Fallback>{city}</x:Fallback></w:r>'
    head, foot = paragraph("Rivière &amp; Fils") + paragraph("", after=box), paragraph("SIRET 123")
    content = docx(paragraph("Facture"), header2=head, header3=head, footer1=foot)
    assert docx_reader.read(content)[0]["text"] == "Rivière & Fils\nLyon\n\nFacture\n\nSIRET 123"


def test_html_keeps_its_structure() -> None:
    page = """<p>un<p>deux<ul><li>a<ul><li>b<li>c</ul><li>d</ul><ol start=3><li>x<li>y</ol><div hidden>no</div>
    <p style="display: none">no</p><pre>  if x:
    y
</pre><table><tr><th>Poste<th>Prix<tr><td>a<br>b<td><p>3 €</p><p>net</p></table><img alt="un chat"><h2>Fin</h2>"""
    assert html_reader.text(page).split("\n") == [
        *("un", "", "deux", "", "- a", "  - b", "  - c", "- d", "", "3. x", "4. y", "", "  if x:", "    y", ""),
        *("| Poste | Prix |", "| a b | 3 € net |", "", "[un chat]", "", "## Fin"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "<html><p>é €</p>".encode(),
        "<html><p>é €</p>".encode("utf-8-sig"),
        "<html><p>é €</p>".encode("utf-16"),
        b'<html><meta charset="windows-1252"><p>\xe9 \x80</p>',
        b'<html><meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"><p>\xe9 \x80</p>',
        b'<?xml version="1.0" encoding="iso-8859-15"?><html><p>\xe9 \xa4</p></html>',
        b"<html><p>\xe9 \x80</p>",
        b'<html><meta charset="nonsense"><p>\xc3\xa9 &euro;</p>',
        b'<html><meta charset="utf-16"><p>\xc3\xa9 &euro;</p>',
    ],
)
def test_html_in_the_encoding_that_it_declares(content: bytes) -> None:
    assert html_reader.read(content)[0]["text"] == "é €"


def test_html_with_a_damaged_byte_is_still_what_it_is() -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        page = mark + '<html><meta charset="utf-8"><p>é € '.encode() + b"\xe9</p></html>"
        assert html_reader.read(page)[0]["text"] == "é € \ufffd"


def test_html_that_nests_without_end_is_read_or_told(tmp_path: Path) -> None:
    deep = made(tmp_path, "deep.html", b"<html>" + b"<div>" * 100_000 + b"text")
    try:
        assert "text" in documents.read(deep).text
    except UsageError as error:
        assert error.hint


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docx_reader, "LARGEST_UNPACKED_BYTES", 1_000_000)
    content = docx(paragraph("0" * 5_000_000))
    assert len(content) < 50_000
    with pytest.raises(readers.Unreadable, match="unpacks to more"):
        docx_reader.read(content)


def test_a_reader_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "sys", type("Other", (), {"executable": "false"}))
    with pytest.raises(UsageError, match=r"x\.pdf is a damaged PDF file"):
        documents.read(made(tmp_path, "x.pdf", pdf("x")))


def test_entities_are_refused(tmp_path: Path) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    with pytest.raises(UsageError, match="entities"):
        documents.read(made(tmp_path, "x.docx", docx(paragraph("&b;"), laughs)))


def test_what_has_no_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.txt", "hello")
    for name, content in {
        "a.zip": held.getvalue(),
        "a.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100,
        "a.bin": bytes(range(256)) * 10,
        "a.txt": b" \n\n",
        "a.docx": docx(f'<w:p xmlns:w="{WORD}"/>'),
    }.items():
        with pytest.raises(UsageError) as caught:
            documents.read(made(tmp_path, name, content))
        assert name in caught.value.message
    with pytest.raises(UsageError, match="folder"):
        documents.read(tmp_path)
    with pytest.raises(NotFound):
        documents.read(tmp_path / "nosuch.txt")
    monkeypatch.setattr(documents, "LARGEST_BYTES", 3)
    with pytest.raises(UsageError, match="larger"):
        documents.read(made(tmp_path, "b.txt", b"1234"))


def test_documents_stand_under_their_names(tmp_path: Path) -> None:
    names = ("a.txt", "b\x1b[2J.txt")
    held = documents.together(documents.read(made(tmp_path, name, b"text")) for name in names)
    assert held == "--- a.txt ---\ntext\n\n--- b?[2J.txt ---\ntext"


def test_run_reads_files(cli: Cli, in_process: Cli, isolated: Path) -> None:
    made(isolated, "bail.pdf", pdf(CONTRACT))
    made(isolated, "note.docx", docx(paragraph("The flat is in Lyon.")))
    words = ("run", "-m", "smollm2-135m", "--temperature", "0", "--max-tokens", "40")
    told = cli(*words, "-o", "json", "--file", "bail.pdf", "--file", "note.docx", "What?")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["usage"]["prompt_tokens"] > 60
    assert in_process(*words, "--file", "bail.pdf").returncode == 2  # no task
    assert in_process(*words, "--file", "nosuch.pdf", "x").returncode == 3
    assert cli(*words, "--file", "note.docx", "--preset", "summarize").returncode == 0


def test_an_input_beyond_the_context_is_cut_only_when_asked(cli: Cli, in_process: Cli, isolated: Path) -> None:
    made(isolated, "long.txt", b"The rent is 900 euros. " + b"Nothing happens on this page. " * 60)
    words = ("run", "-m", "smollm2-135m", "--temperature", "0", "--max-tokens", "4", "--context", "256")
    asked = ("--file", "long.txt", "How much is the rent?")
    assert cli(*words, *asked).returncode == 7
    cut = cli(*words, "--on-overflow", "truncate", *asked)
    assert cut.returncode == 0
    assert "warning: the input is cut to fit the context of 256 tokens" in cut.stderr
    piped = cli(*words, "--on-overflow", "truncate", "How much is the rent?", input="word " * 400)
    assert piped.returncode == 0
    assert in_process(*words, "--on-overflow", "wat", *asked).returncode == 2
