"""Networks whose call gives forward something else than a batch holds, and states that are in no batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, series: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.rnn(series)[1][-1]) * scale

    def encoded(self, series: Tensor) -> Tensor:
        return self.rnn(series)[1][-1]


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

    def init_hidden(self, examples: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, examples, 8), torch.zeros(1, examples, 8)

    def forward(self, series: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(series, state)
        return self.head(hidden), state


def _views() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 6, 3, generator=generator), torch.randn(4, 6, 3, generator=generator)) for _ in range(3)]


def _apart(outputs: tuple[Tensor, Tensor], _: Any) -> Tensor:
    return (outputs[0] - outputs[1]).square().mean()


@pytest.mark.parametrize("named", [False, True])
def test_a_network_is_found_by_what_its_call_gives_forward_where_it_does_not_run_on_a_batch(named: bool) -> None:
    network, data = Encoder(), _views()

    def both(network: nn.Module, views: Any, _: Any) -> tuple[Any, None]:
        one = network(views[0], scale=2.0) if named else network(views[0], 2.0)
        return (one, network(views[1])), None

    model = pruning.adapt(network, data[0], loss=_apart, call=both)
    assert model.widths() == (8,)
    with torch.no_grad():
        wanted = sum(_apart(both(network, views, None)[0], None).item() for views in data) / len(data)
    assert pruning.loss_of(model, data).mean == pytest.approx(wanted, rel=1e-5)
    assert len(pruning.importance(model, data, signals=["gradients"]).table) == 8


def test_a_call_that_does_not_call_forward_is_refused_with_what_to_do() -> None:
    def both(network: Any, views: Any, _: Any) -> tuple[Any, None]:
        return (network.encoded(views[0]), network.encoded(views[1])), None

    with pytest.raises(ValueError, match=r"runs on the example inputs.*give `adapt` what `discover"):
        pruning.adapt(Encoder(), _views()[0], loss=_apart, call=both)


def test_a_state_in_the_inputs_alone_is_refused_with_the_advice_to_leave_it_out_which_works() -> None:
    network, data = Stateful(), [(views[0], torch.ones(4, 6, 2)) for views in _views()]
    given = (data[0][0], network.init_hidden(4))
    with pytest.raises(ValueError, match="give `adapt` the inputs without it, as `init_hidden` makes it"):
        pruning.loss_of(pruning.adapt(network, given, loss=nn.MSELoss()), data)
    assert pruning.loss_of(pruning.adapt(network, given[0], loss=nn.MSELoss()), data).mean > 0


def test_a_batch_of_another_shape_is_not_blamed_on_a_state_that_was_not_given() -> None:
    model = pruning.adapt(Encoder(), _views()[0][0], loss=nn.MSELoss())
    with pytest.raises(ValueError, match="Expected batches that the network runs on") as refused:
        pruning.loss_of(model, [(torch.ones(4, 6, 5), torch.ones(4, 2))])
    assert "init_hidden" not in str(refused.value)
