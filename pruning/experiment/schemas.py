"""The tables of what compares choices of neurons."""

import numpy as np

from pruning.core.tables import Column, Table, missing

PROGRESSIVE = Table(
    "progressive",
    ("variant", "retain", "phase"),
    {
        "variant": Column("text", "", "what chose the neurons, or `dense`"),
        "retain": Column("number", "1", "share of neurons to be kept"),
        "phase": Column("text", "", "`pruned`, `reconstructed` or `finetuned`"),
        "neurons": Column("integer", "", "neurons of all layers"),
        "parameters": Column("integer", "", "stored numbers, shared ones once"),
        "multiply_adds": Column("integer", "1/token", "multiply-adds for one token"),
        "loss": Column("number", "nat/token", "cross-entropy on text that nothing was chosen by"),
        "loss_error": Column("number", "nat/token", "its standard error over the text"),
        "perplexity": Column("number", "1", "exp(loss)"),
        "tokens": Column("integer", "token", "tokens predicted"),
        "change": Column("number", "1", "perplexity over that of dense with the same extra training, less 1"),
        "above_dense": Column(
            "number", "nat/token", "loss above that of dense with the same extra training, same tokens"
        ),
        "above_dense_error": Column("number", "nat/token", "its standard error over the text, paired"),
        "above_traditional": Column(
            "number",
            "nat/token",
            "loss above that of `traditional`, same tokens",
            missing="the other variant was not run",
        ),
        "above_traditional_error": Column(
            "number",
            "nat/token",
            "its standard error over the text, paired",
            missing="the other variant was not run",
        ),
        "above_random": Column(
            "number",
            "nat/token",
            "loss above that of `random`, same tokens",
            missing="the other variant was not run",
        ),
        "above_random_error": Column(
            "number",
            "nat/token",
            "its standard error over the text, paired",
            missing="the other variant was not run",
        ),
    },
)


PRECISION = Table(
    "precision",
    ("score",),
    {
        "score": Column("text", "", "signal, criterion, or variant of the experiment"),
        "kind": Column("text", "", "`signal`, `criterion` or `variant`"),
        "spearman": Column("number", "1", "rank correlation with measured removal, within layers"),
        "spearman_low": Column("number", "1", "lower end of its 95% bootstrap interval"),
        "spearman_high": Column("number", "1", "upper end"),
        "overlap": Column("number", "1", "share of the costlier half of neurons that is in its upper half"),
        "overlap_low": Column("number", "1", "lower end of its 95% bootstrap interval"),
        "overlap_high": Column("number", "1", "upper end"),
        "best_single": Column("text", "", "signal or criterion with the highest spearman"),
        "gain_low": Column("number", "1", "lower end of the 95% interval of spearman − best_single's, paired"),
        "gain_high": Column("number", "1", "upper end"),
        "joint": Column(
            "number",
            "1",
            "rank correlation of its sum over a set with the set's joint removal",
            missing="no sets were removed together",
        ),
        **missing(
            "no sets were removed together",
            {
                "joint_low": Column("number", "1", "lower end of its 95% bootstrap interval, over sets"),
                "joint_high": Column("number", "1", "upper end"),
            },
        ),
        "held_out": Column("flag", "", "whether it is judged on neurons that it was not fitted to"),
        "oracle_reliability": Column(
            "number",
            "1",
            "Spearman–Brown of measured removal's halves of text",
            missing="fewer than two neurons of a layer vary",
        ),
        **missing(
            "measured removal is all noise, or fewer than two neurons of a layer vary",
            {
                "without_noise": Column("number", "1", "spearman over √oracle_reliability: were the truth exact"),
                "without_noise_low": Column("number", "1", "lower end of its 95% interval, at this reliability"),
                "without_noise_high": Column("number", "1", "upper end"),
            },
        ),
        "measured": Column("integer", "", "neurons whose removal was measured"),
    },
)


STABILITY = Table(
    "stability",
    ("over", "score"),
    {
        "score": Column("text", "", "signal, criterion, variant, or `dense`"),
        "over": Column("text", "", "seeds of `calibration` (text and probes) or of `training`"),
        "runs": Column("integer", "", "seeds compared"),
        "overlap": Column(
            "number",
            "1",
            "share of the kept half that two seeds keep, mean over pairs",
            missing="too few seeds have it",
        ),
        "overlap_low": Column("number", "1", "the lowest pair's", missing="too few seeds have it"),
        "rank_correlation": Column(
            "number",
            "1",
            "Spearman between seeds within layers, mean over pairs",
            missing="too few seeds have it",
        ),
        "rank_correlation_low": Column("number", "1", "the lowest pair's", missing="too few seeds have it"),
        "pruned_perplexity": Column(
            "number", "1", "mean over seeds, right after removal", missing="too few seeds have it"
        ),
        "pruned_spread": Column("number", "1", "its standard deviation over seeds", missing="too few seeds have it"),
        "reconstructed_perplexity": Column(
            "number", "1", "mean over seeds, after the repair", missing="too few seeds have it"
        ),
        "reconstructed_spread": Column(
            "number", "1", "its standard deviation over seeds", missing="too few seeds have it"
        ),
        "finetuned_perplexity": Column(
            "number", "1", "mean over seeds, after the extra training", missing="too few seeds have it"
        ),
        "finetuned_spread": Column("number", "1", "its standard deviation over seeds", missing="too few seeds have it"),
    },
)


COST = Table(
    "cost",
    ("score",),
    {
        "score": Column("text", "", "signal, `criteria` (all of them) or `oracle`"),
        "seconds": Column("number", "s", "in a process of its own, without loading; median over seeds"),
        "peak_memory": Column("number", "MiB", "growth of the process's peak while it was measured; median"),
        **missing(
            "measured with one seed alone",
            {
                "seconds_spread": Column("number", "s", "standard deviation over seeds"),
                "memory_spread": Column("number", "MiB", "standard deviation over seeds of `peak_memory`"),
            },
        ),
        "forward_passes": Column("integer", "", "windows read by the model, largest of the seeds"),
        "backward_passes": Column("integer", "", "passes back through a graph; a second derivative's count too"),
        "runs": Column("integer", "", "seeds that it was measured with"),
    },
)


ONCE = {"seconds_spread": np.nan, "memory_spread": np.nan}
"""What a row of `cost` says of its spread where it was measured with one seed."""

TABLES = {schema.name: schema for schema in (PROGRESSIVE, PRECISION, STABILITY, COST)}
