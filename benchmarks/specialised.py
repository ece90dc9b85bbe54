"""Networks of the catalogue for one field each: audio, text in pictures, forecasting, control, spikes, segmentation."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.catalogue import Inputs, Network, Part, image, of

Made = tuple[nn.Module, Inputs]


def wave(length: int = 800, batch: int = 1) -> Tensor:
    """Return sound, (batch, 1, length)."""
    return torch.randn(batch, 1, length)


def _wav2letter() -> Made:
    return of("torchaudio.models:Wav2Letter")(num_classes=10, input_type="mfcc", num_features=8), (
        torch.randn(1, 8, 100),
    )


def _deep_speech() -> Made:
    return of("torchaudio.models:DeepSpeech")(8, n_hidden=24, n_class=10), (torch.randn(2, 1, 6, 8),)


def _conv_tasnet() -> Made:
    sizes = {"enc_kernel_size": 8, "enc_num_feats": 16, "msk_num_feats": 12, "msk_num_hidden_feats": 20}
    return of("torchaudio.models:ConvTasNet")(**sizes, msk_num_layers=2, msk_num_stacks=2), (wave(160),)


def _conformer() -> Made:
    network = of("torchaudio.models:Conformer")(16, 4, 24, 2, 3)
    return Part(network, 0), (torch.randn(2, 9, 16), torch.tensor([9, 6]))


def _emformer() -> Made:
    network = of("torchaudio.models:Emformer")(16, 4, 24, 2, 4, right_context_length=1)
    return Part(network, 0), (torch.randn(2, 9, 16), torch.tensor([9, 6]))


def _wave_rnn() -> Made:
    sizes = {"n_res_block": 2, "n_rnn": 16, "n_fc": 16, "n_freq": 8, "n_hidden": 12, "n_output": 12}
    network = of("torchaudio.models:WaveRNN")([2, 2, 2], 10, 8, kernel_size=5, **sizes)
    return network, (wave(8 * 6), torch.randn(1, 1, 8, 10))


def _demucs() -> Made:
    make = of("torchaudio.models:HDemucs")
    return make(["voice", "rest"], channels=8, nfft=1024, depth=5), (torch.randn(1, 2, 4096),)


def _transducer() -> Made:
    network = of("torchaudio.models.rnnt:_Predictor")(12, 8, 6, 2, 16, lstm_layer_norm=True)
    return Part(network, 0), (torch.randint(0, 12, (2, 5)), torch.tensor([5, 4]))


def _open_unmix() -> Made:
    return of("openunmix.model:OpenUnmix")(nb_bins=32, nb_channels=2, hidden_size=24, nb_layers=2), (
        torch.rand(2, 2, 32, 9),
    )


def _doctr_crnn() -> Made:
    make = of("doctr.models:crnn_mobilenet_v3_small")
    return make(pretrained=False, pretrained_backbone=False, exportable=True), (torch.randn(1, 3, 32, 64),)


def _doctr_linknet() -> Made:
    network = of("doctr.models:linknet_resnet18")(pretrained=False, pretrained_backbone=False, exportable=True)
    return network, (image(64, batch=1),)


def _easyocr_recogniser() -> Made:
    return of("easyocr.model.vgg_model:Model")(1, 16, 12, 20), (torch.randn(2, 1, 32, 64), None)


def _craft() -> Made:
    return of("easyocr.craft:CRAFT")(pretrained=False), (image(32, batch=1),)


def _ecapa() -> Made:
    sizes = {"channels": [16, 16, 16, 48], "kernel_sizes": [5, 3, 3, 1], "dilations": [1, 2, 3, 1]}
    more = {"attention_channels": 8, "res2net_scale": 4, "se_channels": 8, "groups": [1, 1, 1, 1], "lin_neurons": 8}
    return of("speechbrain.lobes.models.ECAPA_TDNN:ECAPA_TDNN")(10, **sizes, **more), (torch.randn(2, 20, 10),)


def _x_vector() -> Made:
    sizes = {"tdnn_blocks": 2, "tdnn_channels": [16, 20], "tdnn_kernel_sizes": [5, 3], "tdnn_dilations": [1, 2]}
    network = of("speechbrain.lobes.models.Xvector:Xvector")(**sizes, lin_neurons=8, in_channels=10)
    for block in network.blocks:  # the noise that its pooling draws anew in each call would hide what removal changes
        if hasattr(block, "return_std"):
            block.eps = 0.0
    return network, (torch.randn(2, 20, 10),)


def _crdnn() -> Made:
    sizes = {"cnn_channels": [8, 12], "rnn_neurons": 16, "rnn_layers": 2, "dnn_neurons": 16, "dnn_blocks": 2}
    return of("speechbrain.lobes.models.CRDNN:CRDNN")(input_shape=(2, 20, 10), **sizes), (torch.randn(2, 20, 10),)


def _light_gru() -> Made:
    network = of("speechbrain.nnet.RNN:LiGRU")(hidden_size=12, input_shape=(2, 7, 10), num_layers=2)
    return nn.Sequential(Part(network, 0), nn.Linear(12, 4)), (torch.randn(2, 7, 10),)


def _dprnn() -> Made:
    sizes = {"bn_chan": 12, "hid_size": 16, "chunk_size": 10, "n_repeats": 2, "n_filters": 16}
    return of("asteroid.models:DPRNNTasNet")(2, **sizes), (wave(160),)


def _lstm_tasnet() -> Made:
    return of("asteroid.models:LSTMTasNet")(2, n_layers=2, hid_size=16, n_filters=12), (wave(160),)


def _sudo_rm_rf() -> Made:
    sizes = {"bn_chan": 12, "num_blocks": 2, "upsampling_depth": 2, "n_filters": 16}
    return of("asteroid.models:SuDORMRFNet")(2, **sizes), (wave(160),)


class Policy(nn.Module):
    """A recurrent policy as actions' log-probabilities and values, begun in a state of zeros."""

    def __init__(self, policy: nn.Module, width: int) -> None:
        super().__init__()
        self.policy, self.width = policy, width

    def forward(self, observations: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and values."""
        features = self.policy.extract_features(observations)
        zero = features.new_zeros(1, len(starts), self.width)
        states = SimpleNamespace(pi=(zero, zero), vf=(zero, zero))
        actor, _ = self.policy._process_sequence(features, states.pi, starts, self.policy.lstm_actor)
        critic, _ = self.policy._process_sequence(features, states.vf, starts, self.policy.lstm_critic)
        hidden, values = (
            self.policy.mlp_extractor.forward_actor(actor),
            self.policy.mlp_extractor.forward_critic(critic),
        )
        return self.policy.action_net(hidden), self.policy.value_net(values)


def _recurrent_policy() -> Made:
    spaces = of("gymnasium:spaces")
    policy = of("sb3_contrib.common.recurrent.policies:RecurrentActorCriticPolicy")(
        spaces.Box(-1.0, 1.0, (6,)), spaces.Discrete(3), lambda _: 1e-3, lstm_hidden_size=16, net_arch=[12]
    )
    return Policy(policy, 16), (torch.randn(2, 6), torch.zeros(2))


def _quantile_network() -> Made:
    spaces = of("gymnasium:spaces")
    make = of("sb3_contrib.qrdqn.policies:QRDQNPolicy")
    policy = make(spaces.Box(-1.0, 1.0, (6,)), spaces.Discrete(3), lambda _: 1e-3, n_quantiles=5, net_arch=[16, 12])
    return policy.quantile_net, (torch.randn(4, 6),)


class Spiking(nn.Module):
    """The feed-forward network of snntorch's tutorials, its membranes begun anew, over steps."""

    def __init__(self) -> None:
        super().__init__()
        leaky = of("snntorch:Leaky")
        self.fc1, self.lif1 = nn.Linear(10, 16), leaky(beta=0.9, threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(16, 12), leaky(beta=0.8, threshold=0.3)
        self.out = nn.Linear(12, 4)

    def forward(self, currents: Tensor) -> Tensor:
        """Return what is read from the spikes at each step, (T, B, 4)."""
        first, second, read = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for current in currents:
            spikes, first = self.lif1(self.fc1(current), first)
            spikes, second = self.lif2(self.fc2(spikes), second)
            read.append(self.out(spikes))
        return torch.stack(read)


class SpikingLSTM(nn.Module):
    """snntorch's spiking LSTM with a linear reader, over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = of("snntorch:SLSTM")(10, 16, threshold=0.1), nn.Linear(16, 4)

    def forward(self, currents: Tensor) -> Tensor:
        """Return what is read from the spikes at each step, (T, B, 4)."""
        synaptic, membrane = self.lstm.reset_mem()
        read = []
        for current in currents:
            spikes, synaptic, membrane = self.lstm(current, synaptic, membrane)
            read.append(self.out(spikes))
        return torch.stack(read)


def _spiking_resnet() -> Made:
    module = "spikingjelly.activation_based"
    network = of(f"{module}.model.spiking_resnet:SpikingResNet")(
        of(f"{module}.model.spiking_resnet:BasicBlock"),
        [1, 1, 1, 1],
        num_classes=5,
        spiking_neuron=of(f"{module}.neuron:IFNode"),
    )
    return network, (20 * image(),)


def _spiking_sequence() -> Made:
    module = "spikingjelly.activation_based"
    lif, layer = of(f"{module}.neuron:LIFNode"), "spikingjelly.activation_based.layer"
    parts = [
        of(f"{layer}:Conv2d")(3, 8, 3, padding=1, bias=False, step_mode="m"),
        of(f"{layer}:BatchNorm2d")(8, step_mode="m"),
        lif(step_mode="m"),
        of(f"{layer}:MaxPool2d")(2, 2, step_mode="m"),
        of(f"{layer}:Flatten")(step_mode="m"),
        of(f"{layer}:Linear")(8 * 16, 12, step_mode="m"),
        lif(step_mode="m"),
        of(f"{layer}:Linear")(12, 4, step_mode="m"),
    ]
    return nn.Sequential(*parts), (20 * torch.rand(4, 2, 3, 8, 8),)


class Norse(nn.Module):
    """A norse network of leaky neurons, over steps."""

    def __init__(self) -> None:
        super().__init__()
        make = of("norse.torch:SequentialState")
        lif = of("norse.torch:LIFCell")
        self.network = make(nn.Linear(10, 16), lif(), nn.Linear(16, 12), lif(), nn.Linear(12, 4))

    def forward(self, currents: Tensor) -> Tensor:
        """Return what is read at each step, (T, B, 4)."""
        state, read = None, []
        for current in currents:
            found, state = self.network(current, state)
            read.append(found)
        return torch.stack(read)


def _segmenter(name: str, **more: Any) -> Network:
    def make() -> Made:
        network = of(f"segmentation_models_pytorch:{name}")
        return network("resnet18", encoder_weights=None, classes=3, **more), (image(64, batch=1),)

    return Network("segmentation-models-pytorch", make, ("timm",))


def _diffusion() -> Made:
    network = of("diffusers:UNet2DModel")(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return network, (image(16, batch=1), torch.tensor([3]))


def _autoencoder() -> Made:
    network = of("diffusers:AutoencoderKL")(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    return network, (image(16, batch=1),)


def _transformer_of_patches() -> Made:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_embeds_ada_norm": 10}
    network = of("diffusers:DiTTransformer2DModel")(**sizes, in_channels=3, sample_size=8, patch_size=2)
    return network, {"hidden_states": image(8), "timestep": torch.tensor([1, 2]), "class_labels": torch.tensor([3, 4])}


class Forecaster(nn.Module):
    """A network of neuralforecast, called with a window of the past instead of a dictionary of everything."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, past: Tensor) -> Tensor:
        """Return the forecast."""
        parts = dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))
        return self.network({"insample_y": past, "insample_mask": torch.ones_like(past), **parts})


def _forecaster(name: str, **sizes: Any) -> Network:
    def make() -> Made:
        return Forecaster(of(f"neuralforecast.models:{name}")(h=4, input_size=12, **sizes)), (torch.randn(3, 12, 1),)

    return Network("neuralforecast", make)


def _fully_connected() -> Made:
    make = of("pytorch_forecasting.models.mlp.submodules:FullyConnectedModule")
    return make(12, 4, 16, 2, nn.ReLU, norm=False), (torch.randn(5, 12),)


def _residual_gates() -> Made:
    module = "pytorch_forecasting.models.temporal_fusion_transformer.sub_modules"
    network = of(f"{module}:GatedResidualNetwork")(input_size=12, hidden_size=16, output_size=4, dropout=0.0)
    return network, (torch.randn(5, 12),)


def _temporal_attention() -> Made:
    module = "pytorch_forecasting.models.temporal_fusion_transformer.sub_modules"
    network = of(f"{module}:InterpretableMultiHeadAttention")(n_head=4, d_model=16, dropout=0.0)
    return Part(network, 0), (torch.randn(2, 7, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16))


AUDIO = {
    "Wav2Letter": Network("torchaudio", _wav2letter),
    "DeepSpeech": Network("torchaudio", _deep_speech),
    "Conv-TasNet": Network("torchaudio", _conv_tasnet),
    "Conformer": Network("torchaudio", _conformer),
    "Emformer": Network("torchaudio", _emformer),
    "WaveRNN": Network("torchaudio", _wave_rnn),
    "Hybrid Demucs": Network("torchaudio", _demucs),
    "RNN-T predictor": Network("torchaudio", _transducer),
    "Open-Unmix": Network("openunmix", _open_unmix, ("torchaudio",)),
    "ECAPA-TDNN": Network("speechbrain", _ecapa, ("torchaudio",)),
    "x-vector": Network("speechbrain", _x_vector, ("torchaudio",)),
    "CRDNN": Network("speechbrain", _crdnn, ("torchaudio",)),
    "Li-GRU": Network("speechbrain", _light_gru, ("torchaudio",)),
    "DPRNN-TasNet": Network("asteroid", _dprnn, ("torchaudio",)),
    "LSTM-TasNet": Network("asteroid", _lstm_tasnet, ("torchaudio",)),
    "SuDoRM-RF": Network("asteroid", _sudo_rm_rf, ("torchaudio",)),
}
"""Sound."""

SPIKES = {
    "snntorch Leaky": Network("snntorch", lambda: (Spiking(), (2 * torch.randn(5, 3, 10),))),
    "snntorch SLSTM": Network("snntorch", lambda: (SpikingLSTM(), (2 * torch.randn(5, 3, 10),))),
    "spiking ResNet": Network("spikingjelly", _spiking_resnet),
    "spikingjelly LIF": Network("spikingjelly", _spiking_sequence),
    "norse LIF": Network("norse", lambda: (Norse(), (400 * torch.rand(5, 3, 10),))),
}
"""Spiking networks."""

SPECIALISED = {
    **AUDIO,
    **SPIKES,
    "docTR CRNN": Network("python-doctr", _doctr_crnn),
    "docTR LinkNet": Network("python-doctr", _doctr_linknet),
    "EasyOCR recogniser": Network("easyocr", _easyocr_recogniser),
    "CRAFT": Network("easyocr", _craft),
    "Unet": _segmenter("Unet"),
    "FPN": _segmenter("FPN"),
    "diffusion U-Net": Network("diffusers", _diffusion),
    "autoencoder KL": Network("diffusers", _autoencoder),
    "DiT": Network("diffusers", _transformer_of_patches),
    "RecurrentPPO policy": Network("sb3-contrib", _recurrent_policy),
    "QR-DQN": Network("sb3-contrib", _quantile_network),
    "forecasting LSTM": _forecaster("LSTM", encoder_hidden_size=16, decoder_hidden_size=12),
    "N-BEATS": _forecaster("NBEATS", mlp_units=[[16, 16]] * 3),
    "TCN": _forecaster("TCN", encoder_hidden_size=16, decoder_hidden_size=12),
    "PatchTST": _forecaster(
        "PatchTST", encoder_layers=2, n_heads=4, hidden_size=16, linear_hidden_size=24, patch_len=4, stride=2
    ),
    "forecasting MLP": Network("pytorch-forecasting", _fully_connected),
    "gated residual network": Network("pytorch-forecasting", _residual_gates),
    "temporal fusion attention": Network("pytorch-forecasting", _temporal_attention),
}
"""All of them."""
