"""What parameters are multiplied with, where these are computed with before they are."""

import pytest
import torch
from torch import Tensor, nn

from pruning.core.operands import operands


def seen_of(run, **weights: Tensor) -> list[Tensor]:
    """Return what `w` is multiplied with while a function runs on the weights."""
    model, seen = nn.ParameterDict(weights), list[Tensor]()
    with torch.no_grad(), operands(model, {"w": lambda _, inputs, __: seen.append(inputs[0])}):
        run(model)
    return seen


def test_a_matrix_that_is_computed_of_a_parameter_number_by_number_is_known_by_it():
    inputs = torch.tensor([[1.0, 2.0]])
    weights = {"w": torch.ones(3, 2), "scale": torch.full((3, 1), 2.0)}
    (read,) = seen_of(lambda own: inputs @ (own["w"].exp() * own["scale"]).T, **weights)
    assert torch.equal(read, inputs)


def test_complex_numbers_that_are_read_are_two_real_ones():
    inputs = torch.tensor([[1 + 2j, 3 - 1j]])
    weights = {"w": torch.ones(3, 2), "other": torch.ones(3, 2)}
    (read,) = seen_of(lambda own: inputs @ torch.complex(own["w"], own["other"]).T, **weights)
    assert read.tolist() == [[[1.0, 3.0]], [[2.0, -1.0]]]


def test_what_is_computed_of_inputs_too_is_no_weight():
    inputs = torch.ones(3, 2)
    assert not seen_of(lambda own: (own["w"] * inputs) @ torch.ones(2, 4), w=torch.ones(3, 2))


def test_a_parameter_that_is_repeated_for_each_example_is_known_by_what_reads():
    inputs = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    (read,) = seen_of(lambda own: own["w"].repeat(2, 1, 1) @ inputs.mT, w=torch.ones(2))
    assert torch.equal(read, inputs)


def test_what_takes_the_memory_of_what_was_computed_of_a_parameter_is_not_it():
    inputs = torch.ones(2, 4, 3)

    def run(own: nn.ParameterDict) -> None:
        for _ in range(8):
            read = inputs @ (own["w"] * 2.0)
            _ = read.mT @ torch.ones(2, 4, 5)

    assert {part.shape[-1] for part in seen_of(run, w=torch.ones(3, 4))} == {3}


@pytest.mark.parametrize(("shape", "along"), [((3, 1), 0), ((1, 3), 1), ((3, 1), 1), ((1, 3), 0)])
def test_of_a_matrix_with_one_row_or_column_a_product_over_the_other_dimension_is_none_of_its_reading(
    shape: tuple[int, int], along: int
) -> None:
    model, seen = nn.ParameterDict({"w": torch.ones(shape)}), list[Tensor]()
    with torch.no_grad(), operands(model, {"w": lambda _, inputs, __: seen.append(inputs[0])}, {"w": along}):
        _ = torch.ones(2, shape[0]) @ model["w"]
        _ = torch.ones(2, shape[1]) @ model["w"].T
    assert [tuple(part.shape) for part in seen] == [(2, shape[along])]
