"""What may be drawn: grammars that llama.cpp alone would abort over, penalties beside them, biased tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import random_models
from real_model import engine_of_the_module, plan

from localai.domain.engine import ChatEngine
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Sampling
from localai.engine.model import LlamaEngine, load
from localai.errors import EngineError

__all__ = ["engine_of_the_module"]  # the fixture `engine`

GREEDY = Sampling(temperature=0)
CAPITAL = Message("user", "Name the capital of France.")


def ask(engine: ChatEngine, grammar: str | None = None, sampling: Sampling = GREEDY, limit: int = 12) -> AnswerEnd:
    end = list(engine.generate(GenerationRequest((CAPITAL,), sampling, limit, grammar=grammar), lambda: False))[-1]
    assert isinstance(end, AnswerEnd)
    return end


@pytest.fixture(scope="module")
def speechless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    """A model whose vocabulary has ASCII alone: no tokens for single bytes."""
    path = random_models.write(tmp_path_factory.mktemp("m"), random_models.TINY["plain"], spells_bytes=False)
    engine = load(path, plan(512))
    yield engine
    engine.close()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1), Sampling(seed=1, top_k=0, top_p=1, min_p=0)])
def test_a_grammar_that_leaves_no_token_ends_the_answer(speechless: LlamaEngine, sampling: Sampling) -> None:
    end = ask(speechless, 'root ::= "ab" "\\u00e9"', sampling)
    assert (end.text, end.finish_reason) == ("ab", "stop")
    assert ask(speechless, 'root ::= "abc"', sampling).text == "abc", "the engine goes on"


def test_a_grammar_is_kept_to_and_the_penalty_counts_each_token_once(engine: LlamaEngine) -> None:
    assert ask(engine, 'root ::= "Lyon" | "Nice"').text in ("Lyon", "Nice")
    digits = ask(engine, "root ::= [0-9]{12}", Sampling(temperature=0, repeat_penalty=1.5), limit=20).text
    assert len(digits) == 12
    assert digits.isdigit()
    assert len(set(digits)) > len(set(ask(engine, "root ::= [0-9]{12}", limit=20).text)), "penalties bear on it"


def test_a_grammar_that_says_what_would_be_said_changes_nothing(engine: LlamaEngine) -> None:
    assert ask(engine, "root ::= [^\\x00]*").text == ask(engine).text == "The capital of France is Paris."


def test_a_grammar_that_llama_cpp_does_not_take_is_an_error(engine: LlamaEngine) -> None:
    with pytest.raises(EngineError, match="grammar"):
        ask(engine, 'root ::= root "a"')
    assert "Paris" in ask(engine).text


def test_a_biased_token_is_drawn_or_not(engine: LlamaEngine) -> None:
    usual = ask(engine).text
    (the,) = engine._vocabulary.tokenize("The")
    (paris,) = engine._vocabulary.tokenize(" Paris")
    assert not ask(engine, sampling=Sampling(temperature=0, logit_bias=((the, -100.0),))).text.startswith("The")
    assert ask(engine, sampling=Sampling(temperature=0, logit_bias=((paris, 100.0),))).text == " Paris" * 12
    assert ask(engine, sampling=Sampling(temperature=0, logit_bias=((10**9, 100.0), (-5, 1.0)))).text == usual


def test_a_character_that_a_vocabulary_cannot_spell_does_not_end_the_process(speechless: LlamaEngine) -> None:
    odd = GenerationRequest((Message("user", "é 你好 🙂"),), GREEDY, 2)
    end = list(speechless.generate(odd, lambda: False))[-1]
    assert isinstance(end, AnswerEnd)
