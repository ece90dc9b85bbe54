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


DEPTH = Table(
    "depth",
    ("place",),
    {
        "place": Column("integer", "", "place in the network, from input to output, from 0"),
        "block": Column("text", "", "residual block: what can go as a whole"),
        "kind": Column("text", "", "`block`: it hands its input on, once gone; `branch`: what it adds is zero then"),
        "within": Column("text", "", "block that it is a part of; empty if of none"),
        "parameters": Column("integer", "", "parameters that go with it"),
        "influence": Column(
            "number",
            "1",
            "1 − mean cosine of what a `block` is given and what it gives",
            missing="it is a `branch`, which no module shows beside its stream",
        ),
        "divergence": Column("number", "nat/target", "how far outputs are from the dense ones without it"),
        "divergence_error": Column("number", "nat/target", "standard error of it", missing="one batch was read"),
        **missing(
            "the batches have no targets, or there is no loss; or (standard error) one batch was read",
            {
                "loss_increase": Column("number", "nat/target", "rise of the loss without it"),
                "standard_error": Column("number", "nat/target", "standard error of the loss increase"),
            },
        ),
        "importance": Column("number", "nat/target", "the divergence: larger is more important"),
        "samples": Column("integer", "target", "targets that it was measured on"),
    },
)
