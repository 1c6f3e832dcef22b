"""Text with loss marks -> token ids with a loss mask, and back for showing.

Prompt and completion are tokenised apart and joined: that is what the model meets when it is asked,
since a prompt is tokenised before there is a completion. Tokenised as one text, "$" + "123" could
merge over the boundary, and no token would be wholly prompt or wholly completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trials.data.examples import Example

# What a text may be put behind without merging with it, tried in this order.
ANCHORS = ("\n", "a", ".", "1", "</")


@dataclass(frozen=True, slots=True)
class Text:
    """A sample before it is tokenised: pieces of text, each with loss or not.

    `rendered` says that the pieces bring their special tokens (a chat template wrote them).
    """

    pieces: tuple[tuple[str, bool], ...]
    rendered: bool = False

    @property
    def prompt(self) -> str:
        """All before the last piece with loss."""
        return "".join(text for text, _ in self.pieces[: self._last])

    @property
    def completion(self) -> str:
        """The last piece with loss."""
        return self.pieces[self._last][0]

    @property
    def _last(self) -> int:
        return max(index for index, (_, has_loss) in enumerate(self.pieces) if has_loss)


class Encoder:
    """Tokenises texts for one tokenizer: beginning and end tokens once, boundaries kept."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.beginning = self._beginning()
        self.specials = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""}
        self._prefixes = self._plain(["1"]) != [self._behind("1", self._plain([*ANCHORS]))]

    def encode(self, texts: Sequence[Text]) -> list[tuple[list[int], list[bool]]]:
        """Token ids and the loss mask of each text, as long as they come."""
        flat = [(t, i) for t, text in enumerate(texts) for i in range(len(text.pieces))]
        ids = self._pieces([(texts[t].pieces[i][0], i == 0) for t, i in flat])
        encoded: list[tuple[list[int], list[bool]]] = [([], []) for _ in texts]
        for t, text in enumerate(texts):
            self._extend(encoded[t], [] if self._has_beginning(text) else self.beginning, False)
        for (t, i), piece in zip(flat, ids, strict=True):
            self._extend(encoded[t], piece, texts[t].pieces[i][1])
        for t, text in enumerate(texts):
            self._extend(encoded[t], [] if self._has_end(text) else [self._end], True)
            encoded[t][1][0] = False  # nothing before it could predict it
        return encoded

    @property
    def _end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @staticmethod
    def _extend(sample: tuple[list[int], list[bool]], ids: list[int], has_loss: bool) -> None:
        sample[0].extend(ids)
        sample[1].extend([has_loss] * len(ids))

    def _has_beginning(self, text: Text) -> bool:
        bos = self.tokenizer.bos_token
        return text.rendered or (bool(bos) and text.pieces[0][0].startswith(bos))

    def _has_end(self, text: Text) -> bool:
        written = (piece.rstrip() for piece, _ in reversed(text.pieces))
        last = next((piece for piece in written if piece), "")
        ends = self.specials if text.rendered else {self.tokenizer.eos_token}
        return any(last.endswith(end) for end in ends)

    def _beginning(self) -> list[int]:
        with_specials = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        plain = self._plain(["a"])[0]
        starts = range(len(with_specials) - len(plain) + 1)
        at = next((i for i in starts if with_specials[i : i + len(plain)] == plain), 0)
        return list(with_specials[:at])

    def _plain(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(row) for row in ids]

    def _pieces(self, pieces: list[tuple[str, bool]]) -> list[list[int]]:
        """Each piece's ids; one that does not begin its text is tokenised as a continuation."""
        if not self._prefixes:
            return self._plain([text for text, _ in pieces])
        plain = self._plain([text for text, _ in pieces])
        anchored = self._plain([ANCHORS[0] + text for text, _ in pieces])
        anchors = self._plain([*ANCHORS])
        return [ids if first else self._behind(text, anchors, joined)
                for (text, first), ids, joined in zip(pieces, plain, anchored, strict=True)]

    def _behind(
        self, text: str, anchors: list[list[int]], joined: list[int] | None = None
    ) -> list[int]:
        # A SentencePiece tokenizer puts a space before whatever it is given; behind an anchor the
        # text is tokenised as it stands. `joined` is text behind the first anchor, if at hand.
        for anchor, ids in zip(ANCHORS, anchors, strict=True):
            joined = self._plain([anchor + text])[0] if joined is None else joined
            if joined[: len(ids)] == ids:
                return joined[len(ids) :]
            joined = None
        return self._plain([text])[0]


def cut(ids: list[int], mask: list[bool], text: Text, max_length: int) -> Example | None:
    """The example of at most `max_length` tokens, cut at its end; None if no target is left."""
    if not any(mask[:max_length]):
        return None
    return Example(tuple(ids[:max_length]), tuple(mask[:max_length]), text.prompt, text.completion)


def render(tokenizer: Any, example: Example) -> tuple[tuple[str, bool], ...]:
    """The example as the model sees it, special tokens included, in pieces with loss or not."""
    mask = example.loss_mask
    ends = [i for i in range(1, len(mask)) if mask[i] != mask[i - 1]] + [len(mask)]
    pieces, before = [], ""
    for end in ends:
        # Decoded from the start each time: a decoder may drop a space at the beginning.
        text = tokenizer.decode(example.input_ids[:end], skip_special_tokens=False,
                                clean_up_tokenization_spaces=False)
        pieces.append((text[len(before) :], mask[end - 1]))
        before = text
    return tuple(pieces)
