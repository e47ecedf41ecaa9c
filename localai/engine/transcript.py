"""What was last said, as text and as the model's own tokens, which need not be those its text is split into."""

from __future__ import annotations

from collections.abc import Sequence


class Transcript:
    """A prompt with its answer. `borders` are where text and tokens are known to meet: ends of prompts and of answers.

    A later prompt that begins with the same text up to a border takes the tokens up to there over, so that they are
    those that the cache holds.
    """

    def __init__(self, text: str = "", tokens: Sequence[int] = (), borders: Sequence[tuple[int, int]] = ()) -> None:
        self.text = text
        self.tokens = list(tokens)
        self.borders = list(borders)  # characters, tokens

    def beginning(self, rendered: str) -> tuple[str, list[int]]:
        """The longest known beginning of `rendered`, and its tokens; nothing where there is none."""
        for characters, tokens in reversed(self.borders):
            if rendered.startswith(self.text[:characters]):
                return self.text[:characters], self.tokens[:tokens]
        return "", []

    def cut(self, rendered: str) -> None:
        """Forget what is not the beginning of `rendered`."""
        self.text, self.tokens = self.beginning(rendered)
        self.borders = [border for border in self.borders if border[0] <= len(self.text)]

    def say(self, text: str, tokens: Sequence[int], answer: str, answer_tokens: Sequence[int]) -> None:
        """Remember a prompt, made with the help of `beginning`, and its answer."""
        known, _ = self.beginning(text)
        self.borders = [border for border in self.borders if border[0] <= len(known)]
        self.text, self.tokens = text + answer, [*tokens, *answer_tokens]
        for border in ((len(text), len(tokens)), (len(self.text), len(self.tokens))):
            if not self.borders or border[0] > self.borders[-1][0]:
                self.borders.append(border)
