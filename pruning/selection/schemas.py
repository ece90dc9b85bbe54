"""The table of which neurons stay."""

from pruning.core.tables import LAYER, NEURON, VARIANT, Column, Table

RETENTION = Table(
    "retention",
    ("variant", "layer", "neuron"),
    {
        "variant": VARIANT,
        "layer": LAYER,
        "neuron": NEURON,
        "importance": Column("number", "1", "what the choice was made by"),
        "rank": Column("integer", "", "place in its layer, 1 for the most important"),
        "kept": Column("flag", "", "whether it is in the pruned model"),
    },
)
