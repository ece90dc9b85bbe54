"""`python -m tasks score <variant> "text"`: how likely a model takes each word of a text to be."""

import math
from collections.abc import Sequence

from pruning.evaluation.language import surprisals
from tasks.commands.using import add_model, unknown_words, used
from tasks.common.parameters import Unexpected
from tasks.shown.asking import Answer, Words
from tasks.shown.tables import shown_table


def run(words: Sequence[str]) -> Answer:
    """Return the chance of each token after those before it, and of the whole text.

    Raises:
        Unexpected: As `used`, and if there is no word in the text.
    """
    parser = Words("score")
    add_model(parser)
    parser.add_argument("text", help="one line or several")
    given = parser.read(words)
    it = used(given)
    lines = it.reading.split(given.text)
    if not lines:
        raise Unexpected(f"Expected words to score, got {given.text!r}.")
    tokens = it.reading.tokens(lines)
    nats, likelier = surprisals(it.model, tokens, first=it.first)
    rows = [
        {"token": it.reading.words[token], "chance": math.exp(-nat), "nat": nat, "rank": rank + 1}
        for token, nat, rank in zip(tokens.tolist(), nats.tolist(), likelier.tolist(), strict=True)
    ]
    total, count, words_read = float(nats.sum()), len(tokens), it.reading.words_in(tokens)
    each = {"perplexity": math.exp(total / count), "word_perplexity": math.exp(total / words_read)}
    values = {"model": it.name, "nat": total, **each, "tokens": rows}
    cells = [
        {
            "token": row["token"],
            "chance": f"{row['chance']:.2%}",
            "nat": f"{row['nat']:.2f}",
            "rank": f"{row['rank']:,}",
        }
        for row in rows
    ]
    whole = f"{total:.2f} nat in {count} tokens, the end of each line among them: perplexity {values['perplexity']:.1f}"
    if it.reading.subwords is not None:
        whole += f", {values['word_perplexity']:.1f} for each of {words_read} words and line ends"
    return Answer(values, [shown_table(it.name, cells), whole, *unknown_words(it.reading, lines)])
