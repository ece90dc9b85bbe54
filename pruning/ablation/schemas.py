"""The tables of measured removal."""

from pruning.core.tables import LAYER, NEURON, Column, Table, missing

ORACLE = Table(
    "oracle",
    ("layer", "neuron"),
    {
        "layer": LAYER,
        "neuron": NEURON,
        "loss_increase": Column("number", "nat/token", "rise of the loss when this neuron alone is removed"),
        "standard_error": Column("number", "nat/token", "standard error of the loss increase"),
        "divergence": Column("number", "nat/token", "how far the answers move: KL(dense ‖ without), needs no label"),
        "divergence_error": Column("number", "nat/token", "standard error of the divergence"),
        **missing(
            "no such window was read, or (reliability) fewer than two neurons of the layer vary",
            {
                "even": Column("number", "nat/token", "the loss increase on windows 0, 2, 4, …"),
                "odd": Column("number", "nat/token", "the loss increase on windows 1, 3, 5, …"),
                "reliability": Column("number", "1", "Spearman–Brown of even against odd in this layer"),
            },
        ),
        "samples": Column("integer", "token", "tokens that the neuron was measured on"),
    },
)


INTERVENTION = Table(
    "intervention",
    ("layer", "neuron"),
    {
        "layer": LAYER,
        "neuron": NEURON,
        "divergence": Column("number", "nat/token", "how far the answers move without the neuron; needs no label"),
        "divergence_error": Column("number", "nat/token", "standard error of the divergence"),
        "label_term": Column("number", "nat/token", "first-order rise of the loss with true labels"),
        "label_error": Column("number", "nat/token", "standard error of the label term"),
        "importance": Column("number", "nat/token", "their sum: what removal costs on text that was not trained on"),
        "standard_error": Column("number", "nat/token", "standard error of the importance"),
    },
)


JOINT_REMOVAL = Table(
    "joint_removal",
    ("set", "phase"),
    {
        "set": Column("text", "", "which neurons: `least` or `random`, and their share of the measured ones"),
        "phase": Column("text", "", "`pruned`, `reconstructed` or `finetuned`"),
        "neurons": Column("integer", "", "neurons removed together"),
        "single_sum": Column("number", "nat/token", "sum of their loss increases one at a time"),
        "loss_increase": Column("number", "nat/token", "rise of the loss, dense and pruned on the same tokens"),
        "standard_error": Column("number", "nat/token", "standard error of the loss increase"),
        "samples": Column("integer", "token", "tokens behind it"),
    },
)
