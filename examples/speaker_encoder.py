"""Half of a trained speaker encoder: the LSTM of `resemblyzer` (3 × 256), without a label.

    pip install -e '.[examples]'; pip install --no-deps resemblyzer==0.1.4
    python -m examples.speaker_encoder

The weights are the package's, the speech espeak-ng's: sentences in many voices. What half of the neurons of each layer
say is kept by the OBS order and a closed-form repair, both from what the dense encoder says alone; then the smaller one
imitates it on all windows, once. The table gives the cosine between the dense encoder's embedding and each one's, over
windows of 1.6 s that nothing was fitted on; settings were chosen on others (`--choosing`).
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.halving import halved
from examples.shown import Shown, options, packaged
from examples.speech import mel_spectrogram, utterances

WINDOW, BATCH = 160, 32


class SpeakerEncoder(nn.Module):
    """`resemblyzer.VoiceEncoder`, which importing the package would bring along with libraries to read sound files."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Return an embedding of length 1 for each window, (windows, 256), of mel spectrograms (windows, 160, 40)."""
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


def main(words: Sequence[str]) -> Shown:
    """Prune the encoder and show what each step keeps."""
    parser = options(__doc__)
    parser.add_argument("--choosing", action="store_true", help="judge on other windows, to choose settings by")
    asked = parser.parse_args(words)
    network = SpeakerEncoder().eval()
    weights = torch.load(packaged("resemblyzer", "pretrained.pt"), map_location="cpu", weights_only=True)
    network.load_state_dict(weights["model_state"], strict=False)  # the rest is of its training alone
    count, others = (24, 6) if asked.quick else (3200, 90)
    fitted = torch.cat([windows(samples) for _, samples in utterances(count, seed=1)])
    judged = torch.cat([windows(samples) for _, samples in utterances(others, seed=3 if asked.choosing else 2)])
    fitted = fitted[torch.randperm(len(fitted), generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        batches = [(mels, network(mels)) for mels in fitted.split(BATCH)]
        wanted = network(judged)

    def cosine(other: nn.Module) -> float:
        with torch.no_grad():
            return F.cosine_similarity(other(judged), wanted).mean().item()

    shown = Shown(f"Speaker encoder, {len(fitted)} windows to fit on, {len(judged)} to judge", {"cosine": cosine})
    shown.row("dense", network)
    for name, smaller in halved(network, batches, nn.MSELoss(), keep=asked.keep, epochs=1, learning_rate=3e-3):
        shown.row(name, smaller)
    return shown


def windows(samples: Tensor) -> Tensor:
    """Return an utterance as mel spectrograms of 1.6 s each, (windows, 160, 40), half of it shared with the next."""
    mels = mel_spectrogram(samples)
    return mels.unfold(0, WINDOW, WINDOW // 2).mT if len(mels) >= WINDOW else mels.new_zeros(0, WINDOW, mels.shape[1])


if __name__ == "__main__":
    main(sys.argv[1:])
