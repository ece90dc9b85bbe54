"""Windows read every token once, in order, whatever the sizes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.data.windows import IGNORED, Window, Windows, cut, first_batches


@settings(max_examples=60)
@given(length=st.integers(1, 60), batch=st.integers(1, 7), bptt=st.integers(1, 9))
def test_every_token_is_predicted_exactly_once_after_the_token_before_it(length, batch, bptt):
    length = max(length, batch)
    tokens = torch.arange(100, 100 + length)
    windows = list(Windows(tokens, first=7, batch=batch, bptt=bptt))
    inputs, targets = (torch.cat([window[side] for window in windows]).T.flatten() for side in (0, 1))
    predicted = targets != IGNORED
    assert torch.equal(targets[predicted], tokens)
    assert torch.equal(inputs[predicted], torch.cat([torch.tensor([7]), tokens[:-1]]))
    assert (inputs >= 0).all()
    assert len(targets) - length < batch
    assert all(window.tokens.shape == window.targets.shape == (bptt, batch) for window in windows[:-1])
    assert windows[-1].tokens.shape[1] == batch


@given(length=st.integers(10, 60), batch=st.integers(1, 7), bptt=st.integers(1, 9))
def test_a_column_carries_on_from_window_to_window(length, batch, bptt):
    windows = list(Windows(torch.arange(length), first=0, batch=batch, bptt=bptt))
    for before, after in pairwise(windows):
        follows = after.targets[0] != IGNORED
        assert torch.equal(after.tokens[0][follows], before.targets[-1][follows])


def test_windows_are_a_sequence_of_known_length():
    windows = Windows(torch.arange(25), first=0, batch=3, bptt=4)
    assert len(windows) == len(list(windows)) == 3
    assert torch.equal(windows[2].tokens, list(windows)[2].tokens)
    assert torch.equal(windows.inputs[8:], windows[2].tokens)
    assert torch.equal(windows.targets[8:], windows[2].targets)


@pytest.mark.parametrize("index", [3, -1])
def test_a_window_that_is_not_there_is_an_index_error(index):
    with pytest.raises(IndexError):
        Windows(torch.arange(25), first=0, batch=3, bptt=4)[index]


def test_fewer_tokens_than_columns_are_refused():
    with pytest.raises(ValueError, match=r"Expected at least 4 tokens, one for each column of the batch, got 3."):
        Windows(torch.arange(3), first=0, batch=4, bptt=2)


def test_what_cannot_be_read_as_batches_or_cut_into_windows_is_refused():
    with pytest.raises(ValueError, match="Expected to read at least one batch, got 0"):
        first_batches([], 0)
    with pytest.raises(ValueError, match=r"Expected at least one batch \(data, targets\) from the loader, got none"):
        first_batches([], 3)
    with pytest.raises(ValueError, match=r"Expected batches \(data, targets\) from the loader, got int"):
        first_batches([1], 3)
    with pytest.raises(ValueError, match=r"Expected tokens \(n,\) or in columns \(n, batch\), got a tensor \(1, 3\)"):
        cut(torch.zeros(1, 3), batch=1, bptt=2)
    with pytest.raises(ValueError, match=r"Expected data \(T, B\) with a target for each token, got \(2, 3\)"):
        Window.of(torch.zeros(2, 3), torch.zeros(5))
