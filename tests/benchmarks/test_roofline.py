"""Which matrix products some work computes, and what they take at least."""

import torch
from torch import nn

from benchmarks.device.report import Report
from benchmarks.device.roofline import Product, Recorded, Roofline


def test_a_linear_layer_and_its_backward_pass_are_three_products() -> None:
    layer, batch = nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    with Recorded() as recorded:
        layer(batch).sum().backward()
    float32 = torch.float32
    assert dict(recorded.products) == {
        Product(7, 3, 5, float32): 1, Product(7, 5, 3, float32): 1, Product(5, 7, 3, float32): 1
    }  # fmt: skip


def test_a_fused_recurrent_layer_counts_both_matrices_of_every_step_and_twice_as_much_backwards() -> None:
    layer, text = nn.LSTM(3, 4), torch.randn(6, 2, 3)
    with Recorded() as recorded:
        layer(text)[0].sum().backward()
    forwards = 2 * 12 * 16 * (3 + 4)
    assert sum(product.operations * often for product, often in recorded.products.items()) == 3 * forwards


def test_products_in_a_batch_count_as_often_as_there_are() -> None:
    product = Product(2, 3, 4, torch.float64, 5)
    assert (product.operations, product.bytes) == (5 * 48, 5 * 8 * (6 + 12 + 8))


def test_no_product_takes_less_than_its_operations_nor_less_than_its_bytes() -> None:
    roofline = Roofline(Report(torch.device("cpu"), quick=True, end=float("inf")), torch.device("cpu"))
    roofline.rates[torch.float32], roofline.bandwidth = 1e9, 1e6
    assert roofline.least(Product(1000, 1000, 1000, torch.float32)) == 12.0  # 2 s of operations, 12 s of bytes
    roofline.bandwidth = 1e9
    assert roofline.least(Product(1000, 1000, 1000, torch.float32)) == 2.0
