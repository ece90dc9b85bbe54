"""`python -m tasks generate <variant> "text"`: how a model goes on from a text."""

from collections.abc import Sequence

from rich.text import Text

from pruning.data.corpus import UNKNOWN
from pruning.evaluation.language import continuation
from tasks.commands.using import add_model, unknown_words, used
from tasks.common.parameters import Unexpected
from tasks.settings.bounds import MOST
from tasks.shown.asking import Answer, Words


def run(words: Sequence[str]) -> Answer:
    """Return the text and what the model draws after it; `<unk>`, which is no word, is never drawn.

    Raises:
        Unexpected: As `used`, and for no words to draw or a seed that is none.
        ValueError: If the temperature is below 0.
    """
    parser = Words("generate")
    add_model(parser)
    parser.add_argument("text", nargs="?", default="", help="what it goes on from; nothing: it begins a line")
    parser.add_argument("--tokens", type=int, default=40, metavar="N", help="how many words and marks (40)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest; 1: as it is (0.8)")
    parser.add_argument("--seed", type=int, default=1, help="another number draws other words (1)")
    given = parser.read(words)
    if given.tokens < 1:
        raise Unexpected(f"Expected --tokens of at least 1, got {given.tokens}.")
    if not 0 <= given.seed <= MOST:
        raise Unexpected(f"Expected --seed from 0 to {MOST}, got {given.seed}.")
    how = {"temperature": given.temperature, "seed": given.seed}
    it = used(given)
    reading = it.reading
    lines = reading.split(given.text)
    start = reading.tokens(lines)[:-1]  # without the end of the last line, which goes on
    without = [reading.numbers[UNKNOWN]]
    drawn = continuation(it.model, start, first=it.first, length=given.tokens, without=without, **how)
    texts = {"given": given.text, "text": reading.written([*start.tolist(), *drawn])}
    values = {"model": it.name, **texts, **how, "tokens": [reading.words[token] for token in drawn]}
    return Answer(values, [Text(texts["text"]), *unknown_words(reading, lines)])
