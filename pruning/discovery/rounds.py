"""How many neurons each layer loses in each round of the proof, so that no two layers do as if they were one."""

import itertools
import math
from collections.abc import Sequence

from pruning.core.neurons import NeuronLayer

SHARE = 0.25
"""Which share of its neurons a layer loses after the first round: one less tells nothing of code that halves things."""
BASE = 16
"""In how many ways a wide layer loses neurons."""


def rounds_of(layers: Sequence[NeuronLayer]) -> list[int]:
    """Return as many rounds as it takes for any two layers of one width to lose unequal numbers in one of them."""
    placed, count = [(layer.width, place) for place, layer in enumerate(layers) if layer.width > 1], len(layers)
    rounds = list(range(1 + (_coded(count) if any(width < 4 for width, _ in placed) else 1)))

    def alike() -> bool:
        """Return whether two layers of one width lose as many in each round."""
        lost = {(width, *(gone(width, place, each, count) for each in rounds)) for width, place in placed}
        return len(lost) < len(placed)

    while alike():
        rounds.append(len(rounds))
    return rounds


def _coded(count: int) -> int:
    """Return in how many rounds so many layers lose a neuron in half of them each, no two in the same ones."""
    return next(rounds for rounds in itertools.count(2, 2) if math.comb(rounds, rounds // 2) >= count)


def gone(width: int, place: int, number: int, count: int) -> int:
    """Return how many neurons of a layer, the so many-th of some, go in a round: the digits of its place, one a round.

    Code that counts on two layers being equally wide would not be seen if both lost as many in every round. After the
    first round a share goes, too, and the other one loses more: halves of an odd width (`chunk`) are as wide as two
    layers of which the second lost more. Of two layers of two neurons each loses more in some round: a single one fits
    wherever there are several, and not the other way round.
    """
    if width < 4:  # two stay of three
        rounds = _coded(count)
        codes = itertools.combinations(range(1, rounds + 1), rounds // 2)
        return min(width - 1, int(not number or number in next(itertools.islice(codes, place, None))))
    most, base = width * 2 // 3, max(2, min(BASE, width * 2 // 5))
    if not number:
        return 1 + place % base
    digit = (place + place // base if number == 1 else place // base**number) % base
    return max(1, min(1 + int(SHARE * width), most - base + 1)) + base - 1 - digit
