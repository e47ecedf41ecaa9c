"""Ten documents such as people have: invoices, contracts, letters, reports; in every form and encoding that is read."""

from __future__ import annotations

from document_files import FOOTNOTES, NOTE, NUMBERED, NUMBERING, STYLES, docx, paragraph, pdf_of_lines

FACTURE = """FACTURE n° 2026-118 du 15 novembre 2026
Vendeur : Rivière & Fils SARL, 12 rue Mercière, 69002 Lyon
Client : Northwind Ltd, Leeds
Désignation : révision de la chaudière, 3 heures à 80,00 €
Total HT : 240,00 €
TVA 20 % : 48,00 €
Total à payer TTC : 288,00 €
Échéance : 15 décembre 2026
Pénalité de retard : 1,5 % par mois"""

LETTRE = """Chère Madame,

Je vous écris au sujet du chêne qui dépasse de votre jardin. Ses branches touchent notre toit, et les gouttières
sont bouchées par ses feuilles à chaque automne. Pourriez-vous le faire élaguer avant Noël ? L'élagueur du village,
M. Lefèvre, le ferait pour 150 €, et nous en paierions volontiers la moitié.

Veuillez agréer, chère Madame, l'expression de mes sentiments les meilleurs.

Hélène Garçon"""

NOTES = """# Meeting of 3 November

- **Budget**: the new server costs 4,200 euros; approved.
- The move to the new office is put off to *March*.
- Ana writes the offer for Contoso until Friday.

| task | who | until |
|---|---|---|
| offer | Ana | Friday |
| server | Li | Monday |
"""

REPORT = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Quarterly report</title><style>td { color: red }</style>
<script>track("reader");</script></head><body>
<nav><ul><li><a href="/">Home</a><li><a href="/reports">Reports</a></ul></nav>
<main><h1>Third quarter</h1><p>Revenue rose by 12&nbsp;% to 3.4 million euros, helped by the contract with Fabrikam.
<p>Costs rose by 4&nbsp;%. The largest risk is the price of copper.
<table><tr><th>Quarter<th>Revenue<tr><td>Q2<td>3.0 M€<tr><td>Q3<td>3.4 M€</table></main></body></html>"""

FACTURE_HTML = """<html><head><meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"></head><body>
<h2>Facture F-77</h2><p>Société Générale de Plomberie, Nîmes<br>pour : Café de la Gare, Béziers</p>
<table><tr><td>Réparation de l'évier</td><td>95,50 €</td></tr><tr><td>Total</td><td>95,50 €</td></tr></table>
<p>À régler avant le 01/12/2026.</p></body></html>"""

BRIDGE = (
    "The bridge over the river Lune was closed again on day {day}, because the water stood {level} centimetres high. "
    "Farmers brought their milk to the other bank by boat, and the school bus took the long way by Halton. "
)


def long_text() -> str:
    """Some 600 tokens."""
    return "\n\n".join(BRIDGE.format(day=day, level=180 + 7 * day % 50) for day in range(1, 10))


def _table(*rows: tuple[str, ...]) -> str:
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in cells) + "</w:tbl>"


def _invoice_docx() -> bytes:
    body = paragraph("Invoice 4711", '<w:pStyle w:val="Titre1"/>')
    body += paragraph("Contoso GmbH, Hamburg, to Fabrikam Inc, Boston")
    body += _table(
        ("Item", "Price"), ("20 chairs", "1,000.00 USD"), ("Transport", "250.00 USD"), ("Total", "1,250.00 USD")
    )
    body += paragraph("Due on 31 January 2027.", after=NOTE)
    notes = FOOTNOTES.replace("hors taxes", "A fee of 2 % a month is charged for late payment.")
    return docx(body, styles=STYLES, footnotes=notes)


def _lease_docx() -> bytes:
    body = paragraph("Bail d&#8217;habitation", '<w:pStyle w:val="Titre1"/>')
    for clause in (
        "Le loyer est de 900 € par mois, payable le 5.",
        "Le dépôt de garantie est d&#8217;un mois de loyer.",
        "Le locataire peut résilier avec un préavis de trois mois.",
    ):
        body += paragraph(clause, NUMBERED, NOTE if "900" in clause else "")
    return docx(body, styles=STYLES, numbering=NUMBERING, footnotes=FOOTNOTES)


def _contract_pdf() -> bytes:
    return pdf_of_lines(
        ["Service agreement", "between Adatum Corp and Litware Ltd", "1. Litware maintains the servers of Adatum."],
        ["2. The fee is 3,000 euros a month.", "3. Either party may terminate with 60 days' notice."],
        ["4. Liability is limited to the fees of one year.", "5. Disputes are settled in Lisbon."],
    )


TEN = {
    "facture.pdf": pdf_of_lines(FACTURE.split("\n")),
    "invoice.docx": _invoice_docx(),
    "facture.html": FACTURE_HTML.encode("cp1252"),
    "facture.txt": FACTURE.encode("utf-16"),
    "bail.docx": _lease_docx(),
    "contract.pdf": _contract_pdf(),
    "report.html": REPORT.encode(),
    "lettre.txt": LETTRE.encode("cp1252"),
    "notes.md": NOTES.encode(),
    "long.txt": long_text().encode(),
}
