"""Ten documents go through the presets that are for documents, with the real small model."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from conftest import Cli
from real_model import engine_of_the_module  # noqa: F401  (the fixture `engine`)
from ten_documents import TEN

from localai import documents, presets
from localai.commands import question as questions
from localai.domain.generation import AnswerEnd, GenerationRequest, Sampling
from localai.engine.model import LlamaEngine

EXPECTED = {
    "facture.pdf": "Pénalité de retard : 1,5 % par mois",
    "invoice.docx": "| Total | 1,250.00 USD |",
    "facture.html": "| Réparation de l'évier | 95,50 € |",
    "facture.txt": "Total à payer TTC : 288,00 €",
    "bail.docx": "3. Le locataire peut résilier avec un préavis de trois mois.",
    "contract.pdf": "3. Either party may terminate with 60 days' notice.",
    "report.html": "Revenue rose by 12 % to 3.4 million euros",
    "lettre.txt": "Hélène Garçon",
    "notes.md": "| offer | Ana | Friday |",
    "long.txt": "on day 9",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in TEN.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def answer(engine: LlamaEngine, folder: Path, name: str, preset: str, limit: int) -> AnswerEnd:
    question = questions.compose("", "", None, preset, language="en", files=[folder / name])
    assert EXPECTED[name] in question.messages()[-1].content
    grammar = question.schema.grammar if question.schema else None
    sampling = Sampling(**{"seed": 1, **question.sampling})
    request = GenerationRequest(question.messages(), sampling, limit, think=False, grammar=grammar)
    end = list(engine.generate(request, lambda: False))[-1]
    assert isinstance(end, AnswerEnd)
    return end


@pytest.mark.parametrize("name", TEN)
def test_an_invoice_is_json_of_its_schema_whatever_the_document(engine: LlamaEngine, folder: Path, name: str) -> None:
    end = answer(engine, folder, name, "invoice", 400)
    assert end.finish_reason == "stop"
    jsonschema.validate(json.loads(end.text), json.loads(presets.find("invoice").schema or ""))


@pytest.mark.parametrize(("number", "name"), list(enumerate(TEN)))
def test_every_document_is_read_by_the_other_presets(engine: LlamaEngine, folder: Path, number: int, name: str) -> None:
    end = answer(engine, folder, name, ("document-analyst", "summarize")[number % 2], 8)
    assert end.usage.prompt_tokens > len(documents.read(folder / name).text) // 6
    assert len(end.text.split()) > 2


def test_run_reads_an_invoice_in_french(cli: Cli, folder: Path) -> None:
    told = cli(
        "run", "-m", "smollm2-135m", "--preset", "invoice", "--language", "fr", "-f", str(folder / "facture.pdf")
    )
    assert told.returncode == 0, told.stderr
    jsonschema.validate(json.loads(told.stdout), json.loads(presets.find("invoice").schema or ""))
