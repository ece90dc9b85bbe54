"""Groups of places in arrays against the same found one place at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.discovery.positions import Positions

AXES = {("a", 0): 6, ("a", 1): 4, ("b", 0): 6, ("c", 0): 3}


def numbered(links=(), said=()):
    positions = Positions()
    for axis, size in AXES.items():
        positions.number(axis, size)
    for one, other in links:
        positions.link(torch.tensor([one]), torch.tensor([other]))
    for kind, place, words in said:
        getattr(positions, kind)(torch.tensor([place]), *([0, words] if kind == "mix" else [words]))
    return positions


def by_hand(links, said):
    """Return the sets of groups as plain values: each place is walked to from the first of its group."""
    places = [(axis, index) for axis, size in AXES.items() for index in range(size)]
    neighbours = {number: set() for number in range(1, len(places) + 1)}
    for one, other in links:
        neighbours[one].add(other)
        neighbours[other].add(one)
    groups, met = [], set()
    for number in neighbours:
        members, waiting = [], [number]
        while waiting:
            place = waiting.pop()
            if place not in met:
                met.add(place)
                members.append(place)
                waiting += neighbours[place]
        if members:
            groups.append(sorted(members))
    sets = {}
    for group in groups:
        where = {}
        for place in group:
            axis, index = places[place - 1]
            where.setdefault(axis, []).append(index)
        words = {
            kind: [said_words for what, place, said_words in said if what == kind and place in group] for kind in KINDS
        }
        reason = words["freeze"][0] if words["freeze"] else ""
        key = frozenset((axis, len(indices)) for axis, indices in where.items()), reason
        sets.setdefault(key, (reason, words["mix"][0] if words["mix"] else "", {*words["mark"]}, []))[3].append(where)
    return list(sets.values())


KINDS = ("freeze", "mix", "mark")
PLACES = st.integers(1, sum(AXES.values()))


@given(
    links=st.lists(st.tuples(PLACES, PLACES), max_size=14),
    said=st.lists(st.tuples(st.sampled_from(KINDS), PLACES, st.sampled_from(["this", "that"])), max_size=6),
)
def test_groups_are_those_that_are_found_one_place_at_a_time(links, said):
    found = [
        (
            groups.reason,
            groups.mixed,
            {*groups.marks},
            [{axis: own[number].tolist() for axis, own in groups.places.items()} for number in range(len(groups))],
        )
        for groups in numbered(links, said).groups()
    ]
    assert found == by_hand(links, said)


@pytest.mark.parametrize(("beside", "expected"), [(True, [[0, 1, 2], [3, 4, 5]]), (False, [[0, 2, 4], [1, 3, 5]])])
def test_several_groups_as_one_lie_beside_each_other_or_are_every_so_many_th(beside, expected):
    (six,) = [groups for groups in numbered([]).groups() if ("b", 0) in groups.places]
    coarser = six.in_blocks(2, beside=beside)
    assert coarser.places["b", 0].tolist() == expected
    assert len(coarser) == 2


def test_a_wide_layer_takes_a_few_numbers_for_each_place():
    positions, width = Positions(), 20_000
    first, second = (positions.number((name, 0), width) for name in "ab")
    positions.link(torch.arange(first, first + width), torch.arange(second, second + width))
    (groups,) = positions.groups()
    assert len(groups) == width
    assert sum(own.nbytes for own in groups.places.values()) <= 8 * 2 * width
