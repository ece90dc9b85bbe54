"""The training loops to compare with: PyTorch's word-language-model example as it is, and the best plain loop."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, Tensor]


def detached(state: State | None) -> State | None:
    """Return the state cut off from the graph that computed it."""
    return None if state is None else (state[0].detach(), state[1].detach())


class StackedLSTM(nn.Module):
    """The architecture of `pytorch/examples` `word_language_model`: one stacked LSTM, a linear decoder, log-softmax."""

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float, *, tied: bool) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocabulary, width)
        self.rnn = nn.LSTM(width, width, layers, dropout=dropout)
        self.decoder = nn.Linear(width, vocabulary)
        if tied:
            self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return the logits, (T · B, V), and the state."""
        output, state = self.rnn(self.drop(self.encoder(tokens)), state)
        return self.decoder(self.drop(output)).flatten(0, 1), state


class NaiveLoop:
    """Training as the example does it: log-softmax then NLL, gradients clipped, plain SGD parameter by parameter."""

    def __init__(self, model: StackedLSTM, learning_rate: float) -> None:
        self.model, self.learning_rate = model, learning_rate
        self.state: State | None = None
        self.criterion = nn.NLLLoss()

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """Train on one window."""
        self.model.train()
        self.model.zero_grad()
        logits, self.state = self.model(tokens, detached(self.state))
        loss = self.criterion(F.log_softmax(logits, dim=1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        for parameter in self.model.parameters():
            parameter.data.add_(parameter.grad, alpha=-self.learning_rate)
        loss.item()


class PlainLoop:
    """The best plain loop we know: cross-entropy, fused AdamW, gradients freed between steps."""

    def __init__(self, model: StackedLSTM, learning_rate: float) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
        self.state: State | None = None

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """Train on one window."""
        logits, self.state = self.model(tokens, detached(self.state))
        loss = F.cross_entropy(logits, targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        self.optimizer.step()
        loss.item()
