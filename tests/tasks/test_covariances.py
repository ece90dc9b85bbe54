"""Covariances in their file: exact ones and sketches are read as they were written, others are refused."""

import pytest
import torch

from pruning.core.sketches import Sketch, covariance_of
from tasks.common.covariances import read_covariances, write_covariances
from tasks.common.parameters import Unexpected


@pytest.fixture
def states():
    values = torch.randn(60, 9, generator=torch.Generator().manual_seed(1))
    found = {"narrow": [covariance_of(4, 4)], "wide": [covariance_of(9, 4), covariance_of(9, 4)]}
    for layer, groups in found.items():
        for group in groups:
            for part in values.split(20):
                group.update(part[:, : 4 if layer == "narrow" else 9])
    return found


def test_exact_covariances_and_sketches_are_read_as_they_were_written(states, tmp_path):
    write_covariances(tmp_path / "covariance.safetensors", states)
    again = read_covariances(tmp_path / "covariance.safetensors")
    assert list(again) == list(states)
    for layer, groups in states.items():
        for one, other in zip(groups, again[layer], strict=True):
            assert type(one) is type(other)
            assert torch.equal(one.products, other.products)
            assert (one.count, getattr(one, "rank", None)) == (other.count, getattr(other, "rank", None))


def test_a_sketch_whose_directions_have_another_width_is_refused(states, tmp_path):
    (sketch, _) = states["wide"]
    assert isinstance(sketch, Sketch)
    sketch.rows = sketch.rows[:, :7]
    write_covariances(tmp_path / "covariance.safetensors", states)
    with pytest.raises(Unexpected, match=r"wide/0 has the shapes \(9,\), \(9,\) and \(\d, 7\)"):
        read_covariances(tmp_path / "covariance.safetensors")
