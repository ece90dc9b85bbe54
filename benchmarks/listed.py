"""Kinds of networks as `transformers` and `timm` list them, their sizes made small, each with inputs that it runs with.

Nothing is downloaded and weights are drawn, as in `benchmarks.catalogue`, where sizes are chosen by hand.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from benchmarks.catalogue import Inputs, Network, image, of, words

LARGEST = 30_000_000
"""How many parameters a kind may have that was made small."""


class NotBuilt(Exception):
    """A kind that does not run at small sizes, or with none of the inputs: that says nothing of its neurons."""


SIZES: Mapping[int, str] = {
    0: "pad_token_id use_cache",
    1: "n_group topk_group n_shared_experts first_k_dense_replace bos_token_id decoder_start_token_id",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers eos_token_id "
    "num_decoder_layers num_key_value_heads multi_query_group_num num_experts_per_tok moe_topk expand type_vocab_size "
    "num_conv_pos_embedding_groups num_codevector_groups n_mamba_heads",
    3: "num_channels conv_kernel",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads rotary_dim "
    "num_experts n_routed_experts num_local_experts moe_num_experts sliding_window attention_window_size num_stages "
    "num_heads_mamba qk_rope_head_dim",
    8: "head_dim kv_channels d_kv attention_head_size v_head_dim qk_nope_head_dim patch_size num_mel_bins state_size "
    "num_conv_pos_embeddings relative_attention_num_buckets mamba_d_state mamba_n_heads mamba_d_head mamba_num_heads "
    "mamba_head_dim index_head_dim index_topk",
    12: "q_lora_rank kv_lora_rank",
    16: "projection_dim codevector_dim",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    32: "hidden_size d_model n_embd dim embed_dim hidden_dim embedding_size emb_dim pooler_hidden_size image_size "
    "output_hidden_size decoder_hidden_size lru_width max_source_positions max_target_positions",
    48: "intermediate_size n_inner ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size mlp_dim",
    62: "audio_token_id audio_token_index",
    63: "image_token_id image_token_index",
    64: "vocab_size vocab_size_per_layer_input max_position_embeddings n_positions n_ctx max_sequence_length "
    "max_seq_len",
}
SMALL: Mapping[str, Any] = {name: size for size, names in SIZES.items() for name in names.split()}
LISTS: Mapping[str, Sequence[int]] = {"conv_dim": [16] * 7, "depths": [1] * 4, "hidden_sizes": [16, 24, 32, 40]}
KINDS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types", "attention_types")
"""Settings that name the kind of each layer: one of each of the first two kinds stays."""
HEADS = ("CausalLM", "Seq2SeqLM", "ImageClassification", "SequenceClassification", "CTC", "SpeechSeq2Seq")


def shrink(settings: Any, depth: int = 0) -> Any:
    """Return a configuration of `transformers` with the sizes that it has made small, and those inside it."""
    for name, size in (SMALL | LISTS).items():
        with suppress(Exception):  # a configuration that reads or checks a setting in a way of its own keeps it
            old = getattr(settings, name)
            if isinstance(size, list) == isinstance(old, list | tuple) and (old is not None or name == "pad_token_id"):
                setattr(settings, name, (size + size[-1:] * len(old))[: len(old)] if isinstance(size, list) else size)
    for name in KINDS:
        with suppress(Exception):
            old = list(getattr(settings, name))
            setattr(settings, name, [old[0], next((kind for kind in old if kind != old[0]), old[0])])
    for inner in list(vars(settings).values()) if depth < 2 else ():
        if hasattr(inner, "to_dict"):
            shrink(inner, depth + 1)
    return settings


def _hugging(kind: str) -> tuple[nn.Module, Inputs]:
    """Return a kind of `transformers`, with the first of the inputs that it runs with."""
    settings = shrink(of("transformers:CONFIG_MAPPING")[kind]())
    with suppress(Exception):  # the rotated part is told as the whole head's size where both are asked for
        settings.qk_rope_head_dim, settings.head_dim = 4, 4
    errors = ["no class of it takes its configuration alone"]
    for make in _classes(settings):
        try:
            network = make(settings).eval()
        except Exception as error:  # sizes that do not go together
            errors.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
            continue
        if (size := sum(parameter.numel() for parameter in network.parameters())) > LARGEST:
            raise NotBuilt(f"{size:,} parameters")
        for inputs in _hugging_inputs(network, settings):
            with suppress(Exception):
                return _run(network, inputs)
        errors.append("none of the inputs fits")
    raise NotBuilt(f"{errors[-1]}")


def _classes(settings: Any) -> Iterator[Callable[[Any], nn.Module]]:
    """Yield the classes that a configuration is for: of the package's lists, else of the modules beside it."""
    listed = [of(f"transformers:AutoModel{f'For{head}' if head else ''}") for head in (*HEADS, "")]
    yield from (each.from_config for each in listed if type(settings) in each._model_mapping)
    beside = importlib.import_module(type(settings).__module__.replace("configuration_", "modeling_"))
    for each in list(vars(beside).values()):
        if inspect.isclass(each) and getattr(each, "config_class", None) is type(settings):
            yield each


def _hugging_inputs(network: nn.Module, settings: Any) -> Iterator[dict[str, Any]]:
    """Yield inputs to try: words, pictures, sound, series, and words that stand for pictures beside these."""
    ids, picture = words(), image()
    accepted, sound = inspect.signature(network.forward).parameters, torch.randn(2, 30, 8)
    for kind, other in (("image", {"pixel_values": picture}), ("audio", {"input_features": sound.mT})):
        place = getattr(settings, f"{kind}_token_id", getattr(settings, f"{kind}_token_index", None))
        for count in (16, 17, 4, 1, 64, 8, 15, 7) if place is not None else ():
            yield {"input_ids": torch.cat([ids, torch.full((2, count), place)], 1), **other}
    yield from (
        {"input_ids": ids, "pixel_values": picture},
        {"input_ids": ids, "decoder_input_ids": ids.flip(1)},
        {"input_ids": ids},
        {"input_ids": ids, "bbox": torch.zeros(2, 7, 4).long()},
        {"pixel_values": picture},
        {"input_values": torch.randn(2, 800)},
        {"input_values": torch.randn(2, 1, 800)},
        {"input_features": torch.randn(2, 8, 64), "decoder_input_ids": ids},
        {"input_features": sound, "decoder_input_ids": ids},
        {"input_features": sound},
        {"input_features": torch.randn(2, 8, 64)},
        *({"pixel_values": image(side)} for side in (64, 224)),
        {"pixel_values": torch.randn(2, 4, 3, 32, 32)},
        {"past_values": torch.randn(2, 40, 1)},
        *(
            {name: torch.randn(2, 7, 32)}
            for name in ("inputs_embeds", "hidden_states", "query_embeds")
            if name in accepted
        ),
    )


def _run(network: nn.Module, inputs: Any) -> tuple[nn.Module, Inputs]:
    """Return a network and its inputs once it has run with them."""
    with torch.no_grad():
        network(**inputs) if isinstance(inputs, dict) else network(*inputs)
    return network, inputs


def _timm(module: str) -> tuple[nn.Module, Inputs]:
    """Return the smallest network of a module of `timm`, of two blocks or one a stage where its maker takes that."""
    make, sizes = of("timm:create_model"), {}
    for name in of("timm:list_models")(module=module):
        with suppress(Exception), torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in make(name, num_classes=5).parameters())
    if not sizes:
        raise NotBuilt("no model of it is made without files")
    name = min(sizes, key=sizes.__getitem__)
    channels, _, side = of("timm:get_pretrained_cfg")(name).input_size
    for blocks in ({"depth": 2}, {"depths": (1,) * 4}, {"layers": (1,) * 4}, {}):
        for picture in ({"img_size": 64}, {}):
            with suppress(Exception):  # makers differ in what they take
                network = make(name, num_classes=5, **blocks, **picture).eval()
                for pixels in (64, 96, 128, side):
                    with suppress(Exception):
                        return _run(network, (torch.randn(2, channels, pixels, pixels),))
    raise NotBuilt(f"{name} does not run")


def kinds(package: str) -> dict[str, Network]:
    """Return a package's architectures by the name that it gives them."""
    make: Callable[[str], tuple[nn.Module, Inputs]] = {"transformers": _hugging, "timm": _timm}[package]
    if package == "timm":
        names = [each for each in of("timm:list_modules")() if of("timm:list_models")(module=each)]
    else:
        names = list(of("transformers.models.auto.configuration_auto:CONFIG_MAPPING_NAMES"))
    return {name: Network(package, lambda name=name: make(name)) for name in names}
