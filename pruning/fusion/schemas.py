"""The tables of the fused importance and of how it came about, and what neurons can be chosen by."""

from pruning.core.tables import LAYER, NEURON, Column, Table, missing
from pruning.signals.schemas import BESIDE, CRITERIA, SIGNALS

CHOICES = (*SIGNALS, *BESIDE, "fused", "random", *CRITERIA)
"""What a variant can choose neurons by: columns of `importance`."""
ALL = "all"
"""In place of a layer's name: the mean over layers."""
IMPORTANCE = Table(
    "importance",
    ("layer", "neuron"),
    {
        "layer": LAYER,
        "neuron": NEURON,
        **missing(
            "the signal was not measured",
            {signal: Column("number", "1", f"importance by the {signal} signal") for signal in SIGNALS},
        ),
        **{f"{signal}_share": Column("number", "1", f"weight of {signal} in `fused`") for signal in SIGNALS},
        "fused": Column("number", "1", "weighted mean of the scaled signals, in [0, 1]; calibrated: nat/token"),
        "random": Column("number", "1", "uniform random numbers, the control"),
        **missing(
            "the signal has no numbers for the layer",
            {
                "surgeon": Column(
                    "number", "1", "place in the order of removal with repair, over the number of neurons"
                ),
                "intervention": Column("number", "nat/token", "what its removal costs on text not trained on"),
                **CRITERIA,
            },
        ),
    },
)


FUSION = Table(
    "fusion",
    ("strategy", "layer", "signal"),
    {
        "strategy": Column(
            "text", "", "`simple`, `adaptive`, `learned`, or `saved`: weights of another model or corpus"
        ),
        "layer": Column("text", "", "layer of neurons, or `all`"),
        "signal": Column("text", "", "signal or criterion"),
        "weight": Column("number", "1", "its weight; they sum to 1 in a layer"),
        "reliability": Column("number", "1", "share of its variance over neurons that is no noise"),
        "agreement": Column("number", "1", "rank correlation with the mean of the other signals"),
        "alone": Column(
            "number",
            "1",
            "its own Spearman correlation with measured removal",
            missing="no removal was measured",
        ),
        "held_out": Column(
            "number",
            "1",
            "Spearman of the fused score, on neurons that no weight was fitted to",
            missing="no removal was measured",
        ),
        "held_out_low": Column(
            "number", "1", "lower end of its 95% bootstrap interval", missing="no removal was measured"
        ),
        "held_out_high": Column("number", "1", "upper end", missing="no removal was measured"),
        "best_signal": Column("text", "", "the signal that ranks measured removal best alone"),
        "best_held_out": Column("number", "1", "its Spearman correlation", missing="no removal was measured"),
        "gain_low": Column(
            "number",
            "1",
            "lower end of the 95% interval of held_out − best_held_out, paired",
            missing="no removal was measured",
        ),
        "gain_high": Column("number", "1", "upper end", missing="no removal was measured"),
        "oracle_reliability": Column(
            "number",
            "1",
            "share of measured removal's variance that is no noise",
            missing="no removal was measured",
        ),
        **missing(
            "no removal was measured, or measured removal is all noise",
            {
                "without_noise": Column("number", "1", "held_out over √oracle_reliability: were the truth exact"),
                "without_noise_low": Column("number", "1", "lower end of its 95% interval, at this reliability"),
                "without_noise_high": Column("number", "1", "upper end"),
            },
        ),
        "measured": Column("integer", "", "neurons whose removal was measured"),
        "fell_back": Column("flag", "", "whether the best signal alone took the place of learned weights"),
    },
)
