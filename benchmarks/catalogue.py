"""Networks that others published on PyPI, small and with random weights, each with what it is called with.

Nothing is downloaded: sizes are the smallest that the packages' own classes take, weights are drawn.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """One network of the catalogue.

    Attributes:
        package: The distribution that it comes from, as `pip` names it.
        make: What builds it, with the inputs that it is called with.
        needs: What else must be importable.
    """

    package: str
    make: Callable[[], tuple[nn.Module, Inputs]]
    needs: tuple[str, ...] = ()


class Part(nn.Module):
    """A network's answer without the states, caches or lengths that it gives beside it."""

    def __init__(self, network: nn.Module, *places: int | str, call: str = "") -> None:
        super().__init__()
        self.network, self.places, self.call = network, places, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what stands at the places in the answer."""
        run = getattr(self.network, self.call) if self.call else self.network
        answer = run(*args, **kwargs)
        for place in self.places:
            answer = answer[place]
        return answer


def of(path: str) -> Any:
    """Return what stands at `module:name`, imported once it is asked for."""
    module, _, name = path.partition(":")
    if module.split(".")[0] in (
        "torchvision",
        "timm",
        "transformers",
        "doctr",
        "easyocr",
        "diffusers",
        "spikingjelly",
        "segmentation_models_pytorch",
        "monai",
    ):
        _declare_torchvision()
    if module.split(".")[0] in ("transformers", "torchaudio", "openunmix", "speechbrain", "asteroid"):
        _spare_torchaudio()
    return getattr(importlib.import_module(module), name)


_DECLARED: list[torch.library.Library] = []


def _declare_torchvision() -> None:
    """Let torchvision import where its compiled operations belong to another build of PyTorch; none is used here."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _DECLARED[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _spare_torchaudio() -> None:
    """Let torchaudio import where its compiled library asks for CUDA: it goes without, as it does where none is."""
    if find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except OSError:
        utilities = importlib.import_module("torchaudio._extension.utils")
        utilities._load_lib = lambda _: False
        importlib.import_module("torchaudio")


def image(side: int = 32, channels: int = 3, batch: int = 2) -> Tensor:
    """Return pictures."""
    return torch.randn(batch, channels, side, side)


def words(batch: int = 2, length: int = 7) -> Tensor:
    """Return token numbers below 60."""
    return torch.randint(3, 60, (batch, length))


def _hugging(config: str, network: str, inputs: Mapping[str, Any], **sizes: Any) -> Network:
    """Return a network of `transformers`."""

    def make() -> tuple[nn.Module, Inputs]:
        settings = of(f"transformers:{config}")(**sizes)
        return of(f"transformers:{network}")(settings), inputs

    return Network("transformers", make)


def _seen(package: str, path: str, inputs: Inputs | None = None, **sizes: Any) -> Network:
    """Return a network of which the class or function at a path builds."""
    return Network(package, lambda: (of(path)(**sizes), (image(),) if inputs is None else inputs))


def _timm(name: str, side: int = 32, **sizes: Any) -> Network:
    return Network("timm", lambda: (of("timm:create_model")(name, num_classes=5, **sizes), (image(side),)))


CLASSES = {"num_classes": 5}
BERT = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = BERT | {"num_key_value_heads": 2, "use_cache": False}
BART = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "use_cache": False,
}
SPEECH = {
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def _resnet() -> tuple[nn.Module, Inputs]:
    block = of("torchvision.models.resnet:BasicBlock")
    return of("torchvision.models:ResNet")(block, [1, 1, 1, 1], num_classes=5), (image(),)


def _vgg() -> tuple[nn.Module, Inputs]:
    layers = of("torchvision.models.vgg:make_layers")([8, "M", 12, 10, "M", 6], batch_norm=True)
    with torch.device("meta"):
        network = of("torchvision.models:VGG")(nn.Sequential(), num_classes=5, init_weights=False)
    network.features = layers
    network.classifier = nn.Sequential(nn.Linear(6 * 49, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 5))
    return network, (image(),)


def _mobilenet() -> tuple[nn.Module, Inputs]:
    setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1]]
    make = of("torchvision.models:MobileNetV2")
    return make(num_classes=5, width_mult=0.25, inverted_residual_setting=setting), (image(),)


def _convnext() -> tuple[nn.Module, Inputs]:
    block = of("torchvision.models.convnext:CNBlockConfig")
    return of("torchvision.models:ConvNeXt")([block(16, 32, 1), block(32, None, 1)], num_classes=5), (image(),)


def _video() -> tuple[nn.Module, Inputs]:
    parts = (of(f"torchvision.models.video.resnet:{name}") for name in ("BasicBlock", "Conv2Plus1D", "R2Plus1dStem"))
    block, convolution, stem = parts
    network = of("torchvision.models.video:VideoResNet")(block, [convolution] * 4, [1, 1, 1, 1], stem, num_classes=5)
    return network, (torch.randn(1, 3, 4, 16, 16),)


def _segmenter() -> tuple[nn.Module, Inputs]:
    make = of("torchvision.models.segmentation:lraspp_mobilenet_v3_large")
    return make(weights=None, weights_backbone=None, num_classes=4), (image(64, batch=1),)


TORCHVISION = {
    "ResNet": Network("torchvision", _resnet),
    "VGG": Network("torchvision", _vgg),
    "AlexNet": _seen("torchvision", "torchvision.models:alexnet", (image(64),), **CLASSES),
    "SqueezeNet": _seen("torchvision", "torchvision.models:squeezenet1_1", **CLASSES),
    "DenseNet": _seen(
        "torchvision",
        "torchvision.models:DenseNet",
        growth_rate=8,
        block_config=(2, 2),
        num_init_features=8,
        bn_size=2,
        **CLASSES,
    ),
    "GoogLeNet": _seen(
        "torchvision", "torchvision.models:googlenet", (image(64),), init_weights=False, aux_logits=False, **CLASSES
    ),
    "MobileNetV2": Network("torchvision", _mobilenet),
    "MobileNetV3": _seen("torchvision", "torchvision.models:mobilenet_v3_small", width_mult=0.25, **CLASSES),
    "MNASNet": _seen("torchvision", "torchvision.models:mnasnet0_5", **CLASSES),
    "ShuffleNetV2": _seen(
        "torchvision",
        "torchvision.models:ShuffleNetV2",
        stages_repeats=[2, 2, 2],
        stages_out_channels=[8, 16, 24, 32, 40],
        **CLASSES,
    ),
    "EfficientNet": _seen("torchvision", "torchvision.models:efficientnet_b0", **CLASSES),
    "RegNet": _seen("torchvision", "torchvision.models:regnet_y_400mf", **CLASSES),
    "ConvNeXt": Network("torchvision", _convnext),
    "ViT": _seen(
        "torchvision",
        "torchvision.models:VisionTransformer",
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=48,
        **CLASSES,
    ),
    "Swin": _seen(
        "torchvision",
        "torchvision.models:SwinTransformer",
        patch_size=[2, 2],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        **CLASSES,
    ),
    "LR-ASPP": Network("torchvision", _segmenter),
    "R(2+1)D": Network("torchvision", _video),
}


def _residual_mlp() -> Network:
    def make() -> tuple[nn.Module, Inputs]:
        parts = {"block_layer": of("timm.models.mlp_mixer:ResBlock"), "norm_layer": of("timm.models.mlp_mixer:Affine")}
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_blocks": 2, "mlp_ratio": 2}
        return of("timm.models:MlpMixer")(**sizes, **parts, **CLASSES), (image(),)

    return Network("timm", make)


TIMM = {
    "timm ViT": _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4),
    "CaiT": _timm("cait_xxs24_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, depth_token_only=1),
    "MLP-Mixer": _seen(
        "timm", "timm.models:MlpMixer", img_size=32, patch_size=8, embed_dim=32, num_blocks=2, **CLASSES
    ),
    "ResMLP": _residual_mlp(),
    "ConvNeXtV2": _timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 24)),
    "RepVGG": _timm("repvgg_a0"),
    "SE-ResNet": _timm("seresnet18", channels=(8, 16, 24, 32), layers=(1, 1, 1, 1)),
    "NF-ResNet": _timm("nf_resnet26"),
    "Res2Net": _timm("res2net50_26w_4s", layers=(1, 1, 1, 1)),
    "GhostNet": _timm("ghostnet_050"),
    "PoolFormer": _seen(
        "timm", "timm.models.metaformer:MetaFormer", depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), **CLASSES
    ),
    "EdgeNeXt": _timm("edgenext_xx_small", 64),
}

TRANSFORMERS = {
    "BERT": _hugging("BertConfig", "BertForSequenceClassification", {"input_ids": words()}, **BERT),
    "DistilBERT": _hugging(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"input_ids": words()},
        vocab_size=60,
        dim=16,
        hidden_dim=24,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=16,
    ),
    "ALBERT": _hugging(
        "AlbertConfig", "AlbertForSequenceClassification", {"input_ids": words()}, embedding_size=8, **BERT
    ),
    "GPT-2": _hugging(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"input_ids": words()},
        vocab_size=60,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        use_cache=False,
    ),
    "Llama": _hugging("LlamaConfig", "LlamaForCausalLM", {"input_ids": words()}, **LLAMA),
    "Gemma 2": _hugging("Gemma2Config", "Gemma2ForCausalLM", {"input_ids": words()}, head_dim=8, **LLAMA),
    "Mixtral": _hugging("MixtralConfig", "MixtralForCausalLM", {"input_ids": words()}, num_local_experts=4, **LLAMA),
    "Mamba": _hugging(
        "MambaConfig",
        "MambaForCausalLM",
        {"input_ids": words()},
        vocab_size=60,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        time_step_rank=2,
        use_cache=False,
    ),
    "T5": _hugging(
        "T5Config",
        "T5ForConditionalGeneration",
        {"input_ids": words(), "decoder_input_ids": words()},
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        use_cache=False,
    ),
    "BART": _hugging(
        "BartConfig",
        "BartModel",
        {"input_ids": words(), "decoder_input_ids": words()},
        max_position_embeddings=16,
        **BART,
    ),
    "Whisper": _hugging(
        "WhisperConfig",
        "WhisperModel",
        {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": words(1)},
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **BART,
    ),
    "Wav2Vec2": _hugging("Wav2Vec2Config", "Wav2Vec2ForCTC", {"input_values": torch.randn(1, 800)}, **(BERT | SPEECH)),
    "SegFormer": _hugging(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {"pixel_values": image(64, batch=1)},
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        num_attention_heads=[2, 4],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    ),
    "CLIP": _hugging(
        "CLIPConfig",
        "CLIPModel",
        {"input_ids": words(), "pixel_values": image(16)},
        text_config={**BERT, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**BERT, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    ),
    "DETR": _hugging(
        "DetrConfig",
        "DetrForObjectDetection",
        {"pixel_values": image(64, batch=1)},
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config={
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage4"],
        },
        num_queries=5,
        **{name: size for name, size in BART.items() if name not in ("vocab_size", "use_cache")},
    ),
}
