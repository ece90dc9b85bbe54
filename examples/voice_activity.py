"""Half of a trained voice activity detector: the convolutions and the LSTM cell of `silero-vad`, without a label.

    pip install -e '.[examples]'
    python -m examples.voice_activity

The weights are those of the package's TorchScript file, the network the one below, which gives what the package's own
gives (`differs` in the first line is the largest difference of a probability). Speech is espeak-ng's, with pauses, in
noise of various loudness. Each row says how often the network is right about speech in 32 ms, and how often it says
what the dense one says; voices and noise to judge by are others than those that were fitted on.
"""

import sys
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.halving import halved
from examples.shown import Shown, options, packaged
from examples.speech import RATE, utterances

FRAME, BEFORE, STEPS = 512, 64, 96
"""Samples that one probability is for, samples before them that are read, too, and frames in an example."""


class VoiceActivity(nn.Module):
    """silero-vad 6 at 16 kHz: a short-time spectrum, four convolutions, one LSTM cell, a probability for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3, padding=1), nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell, self.final_conv = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logit of speech in each frame, (examples, frames), of (examples, frames, 64 + 512) samples."""
        waves = F.pad(frames.flatten(0, 1), (0, 64), mode="reflect").unsqueeze(1)
        real, imaginary = self.stft_conv(waves).chunk(2, dim=1)
        hidden = F.relu(self.conv1((real.square() + imaginary.square()).sqrt()))
        hidden = F.relu(self.conv4(F.relu(self.conv3(F.relu(self.conv2(hidden)))))).squeeze(2)
        state, logits = None, []
        for step in hidden.unflatten(0, frames.shape[:2]).unbind(1):
            state = self.lstm_cell(step, state)
            logits.append(self.final_conv(F.relu(state[0]).unsqueeze(2)).flatten(1))
        return torch.cat(logits, dim=1)


def original() -> Callable[..., Tensor]:
    """Return the package's own network, (samples (1, 512), rate) → probability, which remembers what it heard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of the form that the package saves it in
        return torch.jit.load(packaged("silero_vad", "data/silero_vad.jit"))


def trained() -> VoiceActivity:
    """Return the network with the original's weights, which stand in the same order there."""
    saved = [tensor for name, tensor in original().state_dict().items() if name.startswith("_model.")]  # type: ignore[attr-defined]
    network = VoiceActivity().eval()
    network.load_state_dict(dict(zip(network.state_dict(), saved, strict=True)))
    return network


def differing(network: nn.Module, frames: Tensor) -> float:
    """Return the largest difference to the original's probabilities over an example's frames (frames, 64 + 512)."""
    package = original()
    told = torch.stack([package(frame[None, BEFORE:], RATE).squeeze() for frame in frames])
    return (network(frames[None]).sigmoid()[0] - told).abs().max().item()


def heard(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return examples of speech with pauses in noise, (n, frames, 64 + 512), and where there is speech, (n, frames)."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for _, samples in utterances(count, seed=seed):
        pause = torch.zeros(int(torch.randint(RATE // 4, 3 * RATE, (1,), generator=draw)))
        parts += [pause, samples * 0.1 / samples.square().mean().sqrt()]
    speech = torch.cat(parts)
    loudness = 10 ** (-torch.rand(len(speech) // RATE + 1, generator=draw) * 2.5).repeat_interleave(RATE)[: len(speech)]
    noisy = speech + 0.1 * loudness * torch.randn(len(speech), generator=draw)
    size = FRAME * STEPS
    examples = F.pad(noisy, (BEFORE, 0)).unfold(0, BEFORE + size, size).unfold(1, BEFORE + FRAME, FRAME)
    power = speech.unfold(0, size, size).unfold(1, FRAME, FRAME).square().mean(-1)
    return examples.clamp(-1, 1), power > 1e-5


def main(words: Sequence[str]) -> Shown:
    """Prune the network and show what each step keeps."""
    asked = options(__doc__).parse_args(words)
    (read, _), (judged, spoken) = heard(12 if asked.quick else 100, seed=1), heard(6 if asked.quick else 40, seed=2)
    network = trained()
    with torch.no_grad():
        difference = differing(network, judged[0])
        batches = [(frames, network(frames).sigmoid()) for frames in read.split(8)]
        dense = network(judged) > 0

    def right(other: nn.Module) -> float:
        with torch.no_grad():
            return ((other(judged) > 0) == spoken).float().mean().item()

    def alike(other: nn.Module) -> float:
        with torch.no_grad():
            return ((other(judged) > 0) == dense).float().mean().item()

    shown = Shown(f"Voice activity; differs from the original by {difference:.0e}", {"right": right, "as dense": alike})
    shown.row("dense", network)
    for name, smaller in halved(network, batches, nn.BCEWithLogitsLoss(), keep=asked.keep, epochs=5):
        shown.row(name, smaller)
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
