"""The columns, types, units and keys of every table, and the check that a table is the one it is said to be."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype, is_string_dtype

WEIGHTS = {"norm": 0.3, "variance": 0.2, "nonzero_ratio": 0.2, "entropy": 0.2, "effective_rank": 0.1}
"""Components of the weights signal and their shares in its importance; likewise below."""
ACTIVATIONS = {"frequency": 0.2, "magnitude": 0.3, "variance": 0.2, "entropy": 0.2, "range": 0.1}
GRADIENTS = {"magnitude": 0.4, "stability": 0.2, "signal_to_noise": 0.2, "sign_consistency": 0.2}
COOPERATIVE = {"connection_strength": 0.3, "uniqueness": 0.3, "degree_centrality": 0.2, "cooperative_ability": 0.2}
SIGNALS = ("weights", "hessian", "activations", "gradients", "cooperative")
"""The signals that are fused."""
BESIDE = ("surgeon",)
"""Signals that stand beside the fused ones and are no part of the fusion."""


@dataclass(frozen=True)
class Column:
    """One column: its type (`text`, `integer`, `number` or `flag`), its unit, and what it means.

    Numbers are finite. Where one may be missing (NaN), `missing` says when; with `UNMEASURED` only where that is so.
    """

    type: str
    unit: str
    meaning: str
    missing: str = ""


UNMEASURED = "nothing was measured: `samples` is 0"


@dataclass(frozen=True)
class Table:
    """One table: its name, the columns that identify a row, and all columns in order."""

    name: str
    key: tuple[str, ...]
    columns: dict[str, Column]


LAYER = Column("text", "", "layer of neurons")
NEURON = Column("integer", "", "index in its layer, from 0")
VARIANT = Column("text", "", "variant in params.yaml")
ENERGY = {
    "synaptic_operations": Column("number", "1/token", "accumulates that spikes cause, in place of multiply-adds"),
    "energy": Column("number", "pJ/token", "of multiply-adds that read no spikes and of synaptic operations"),
}
PHASE = Column("text", "", "`dense`, `pruned`, `reconstructed` or `finetuned`")
IMPORTANCE = {
    "importance": Column("number", "1", "larger is more important; comparable within a layer"),
    "standard_error": Column("number", "1", "standard error of the importance; 0 where it is exact"),
    "samples": Column("integer", "", "observations behind it: tokens, batches or probes"),
}
CRITERIA = {
    "magnitude_in": Column("number", "weight", "L2 norm of the neuron's own weights"),
    "magnitude_out": Column("number", "weight", "L2 norm of the neuron's outgoing weights"),
    "taylor_first": Column("number", "nat/token", "mean size of a sequence's gate gradient"),
    "taylor_square": Column("number", "nat²/token²", "mean square of a window's gate gradient"),
    "taylor_second": Column(
        "number", "nat/token", "predicted loss increase: minus gate gradient plus half its curvature"
    ),
    "gate_fisher": Column("number", "nat/token", "half the gate's Fisher information, true labels"),
    "gate_fisher_sampled": Column(
        "number", "nat/token", "half the gate's Fisher information, labels sampled from the model"
    ),
    "weight_fisher": Column("number", "nat/token", "half of Σ w² × Fisher information over own weights"),
    "snip": Column("number", "nat/token", "Σ of weight × gradient over own weights, without signs"),
    "grasp": Column("number", "nat²/token²", "Σ of weight × Hessian-gradient product over own weights"),
    "fluctuation": Column("number", "activation² weight²", "variance of the output × squared norm of outgoing weights"),
    "wanda": Column("number", "activation weight", "RMS output × L1 norm of outgoing weights"),
    "kfac_trace": Column("number", "nat/token", "K-FAC's estimate of half the gate's Fisher information"),
    "kfac_obs": Column("number", "nat/token", "K-FAC's loss increase once other neurons have made up for it"),
    "mutual_information": Column("number", "nat", "between the binned output and the predicted token's group"),
    "pagerank": Column("number", "1", "PageRank on the layer's graph of weights and correlations"),
}
"""The field's criteria; larger is more important, comparable within a layer. Also columns of `importance`."""
EXACT = ("magnitude_in", "magnitude_out")
"""Criteria that follow from the weights alone and so have no standard error."""
CHOICES = (*SIGNALS, *BESIDE, "fused", "random", *CRITERIA)
"""Columns of `importance` that a variant can choose neurons by."""


def _with_error(name: str, column: Column) -> dict[str, Column]:
    """Return a criterion's column and, where it is an estimate, the one of its standard error."""
    if name in EXACT:
        return {name: column}
    return {name: column, f"{name}_error": Column("number", column.unit, f"standard error of {name}")}


def _missing(when: str, columns: dict[str, Column]) -> dict[str, Column]:
    """Return the columns, whose numbers may be missing then."""
    return {name: replace(c, missing=when) if c.type == "number" else c for name, c in columns.items()}


def _signal(name: str, components: dict[str, Column]) -> Table:
    columns = {"layer": LAYER, "neuron": NEURON, **components, **IMPORTANCE}
    return Table(name, ("layer", "neuron"), _missing(UNMEASURED, columns))


TABLES = {
    table.name: table
    for table in (
        Table(
            "corpus",
            ("split", "position"),
            {
                "split": Column("text", "", "train, valid or test"),
                "position": Column("integer", "token", "place in the split, from 0"),
                "token": Column("integer", "", "number in the vocabulary"),
            },
        ),
        Table(
            "vocabulary",
            ("token",),
            {
                "token": Column("integer", "", "number, from 0, most frequent first"),
                "text": Column("text", "", "the token as it is written"),
                "count": Column("integer", "token", "occurrences in the training split"),
            },
        ),
        Table(
            "history",
            ("phase", "step"),
            {
                "phase": Column("text", "", "`train` or `finetune`"),
                "step": Column("integer", "", "optimisation step, from 1"),
                "tokens": Column("integer", "token", "training tokens read so far"),
                "train_loss": Column(
                    "number", "nat/token", "loss of this step's window", missing="nothing was predicted in the step"
                ),
                "valid_loss": Column(
                    "number",
                    "nat/token",
                    "loss on the validation split; at ends of epochs only",
                    missing="the step ends no epoch",
                ),
                "learning_rate": Column("number", "1", "learning rate of the step"),
            },
        ),
        _signal(
            "weights",
            {
                "norm": Column("number", "weight", "L2 norm of the neuron's own weights"),
                "variance": Column("number", "weight²", "variance of the neuron's own weights"),
                "nonzero_ratio": Column("number", "1", "share of weights above a tenth of the layer's RMS weight"),
                "entropy": Column("number", "nat", "entropy of the histogram of weights, edges relative to the layer"),
                "effective_rank": Column("number", "1", "exp of the entropy of its gate × input matrix's spectrum"),
            },
        ),
        _signal(
            "hessian",
            {
                "trace": Column("number", "nat/token/weight²", "trace of the loss Hessian over the neuron's weights"),
                "trace_standard_error": Column("number", "nat/token/weight²", "standard error of the trace"),
                "mean_square": Column("number", "weight²", "squared norm of the neuron's weights over their number"),
            },
        ),
        _signal(
            "activations",
            {
                "frequency": Column("number", "1", "share of tokens with an activation above the layer's RMS"),
                "magnitude": Column("number", "activation", "mean absolute activation"),
                "variance": Column("number", "activation²", "variance of the activation"),
                "entropy": Column("number", "nat", "entropy of the histogram of activations"),
                "range": Column("number", "activation", "largest minus smallest activation"),
            },
        ),
        _signal(
            "gradients",
            {
                "magnitude": Column("number", "nat/token", "mean absolute gate gradient"),
                "stability": Column("number", "1", "1 / (1 + coefficient of variation of |g|)"),
                "signal_to_noise": Column("number", "1", "|mean| over standard deviation of the gate gradient"),
                "sign_consistency": Column("number", "1", "|mean sign| of the gate gradient"),
            },
        ),
        _signal(
            "cooperative",
            {
                "connection_strength": Column("number", "1", "mean weight of the neuron's edges"),
                "uniqueness": Column("number", "1", "share of its variance that no other neuron explains, 1 − R²"),
                "degree_centrality": Column("number", "1", "share of the other neurons that it has strong edges to"),
                "cooperative_ability": Column("number", "1", "weighted clustering of its strong edges"),
            },
        ),
        _signal(
            "surgeon",
            {
                "cost": Column("number", "nat/token", "loss that its removal adds once every reader is refitted"),
                "place": Column("integer", "", "when it is removed, 1 for the first of all layers"),
            },
        ),
        Table(
            "criteria",
            ("layer", "neuron"),
            {
                "layer": LAYER,
                "neuron": NEURON,
                **_missing(
                    UNMEASURED,
                    {name: one for key, column in CRITERIA.items() for name, one in _with_error(key, column).items()},
                ),
                "samples": Column("integer", "token", "tokens behind the estimates"),
            },
        ),
        Table(
            "oracle",
            ("layer", "neuron"),
            {
                "layer": LAYER,
                "neuron": NEURON,
                "loss_increase": Column("number", "nat/token", "rise of the loss when this neuron alone is removed"),
                "standard_error": Column("number", "nat/token", "standard error of the loss increase"),
                **_missing(
                    "no such window was read, or (reliability) fewer than two neurons of the layer vary",
                    {
                        "even": Column("number", "nat/token", "the loss increase on windows 0, 2, 4, …"),
                        "odd": Column("number", "nat/token", "the loss increase on windows 1, 3, 5, …"),
                        "reliability": Column("number", "1", "Spearman–Brown of even against odd in this layer"),
                    },
                ),
                "samples": Column("integer", "token", "tokens that the neuron was measured on"),
            },
        ),
        Table(
            "joint_removal",
            ("set", "phase"),
            {
                "set": Column("text", "", "which neurons: `least` or `random`, and their share of the measured ones"),
                "phase": Column("text", "", "`removed`, `repaired` or `finetuned`"),
                "neurons": Column("integer", "", "neurons removed together"),
                "single_sum": Column("number", "nat/token", "sum of their loss increases one at a time"),
                "loss_increase": Column("number", "nat/token", "rise of the loss, dense and pruned on the same tokens"),
                "standard_error": Column("number", "nat/token", "standard error of the loss increase"),
                "samples": Column("integer", "token", "tokens behind it"),
            },
        ),
        Table(
            "importance",
            ("layer", "neuron"),
            {
                "layer": LAYER,
                "neuron": NEURON,
                **_missing(
                    "the signal was not measured",
                    {signal: Column("number", "1", f"importance by the {signal} signal") for signal in SIGNALS},
                ),
                **{f"{signal}_share": Column("number", "1", f"weight of {signal} in `fused`") for signal in SIGNALS},
                "fused": Column("number", "1", "weighted mean of the scaled signals, in [0, 1]; calibrated: nat/token"),
                "random": Column("number", "1", "uniform random numbers, the control"),
                **_missing(
                    "the signal has no numbers for the layer",
                    {
                        "surgeon": Column(
                            "number", "1", "place in the order of removal with repair, over the number of neurons"
                        ),
                        **CRITERIA,
                    },
                ),
            },
        ),
        Table(
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
                "measured": Column("integer", "", "neurons whose removal was measured"),
                "fell_back": Column("flag", "", "whether the best signal alone took the place of learned weights"),
            },
        ),
        Table(
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
        ),
        Table(
            "evaluation",
            ("variant", "phase", "split"),
            {
                "variant": VARIANT,
                "phase": PHASE,
                "split": Column("text", "", "valid or test"),
                "loss": Column("number", "nat/token", "cross-entropy, every token once, state carried"),
                "perplexity": Column("number", "1", "exp(loss)"),
                "accuracy": Column("number", "1", "share of the targets that the model ranks first"),
                "tokens": Column("integer", "token", "targets predicted: tokens of a language model"),
                "neurons": Column("integer", "", "neurons of all layers"),
                "parameters": Column("integer", "", "stored numbers, shared ones once"),
                "multiply_adds": Column("integer", "1/token", "multiply-adds for one token"),
                **ENERGY,
            },
        ),
        Table(
            "timing",
            ("stage", "variant", "phase", "measure", "batch"),
            {
                "stage": Column("text", "", "stage that was timed"),
                "variant": Column("text", "", "variant, or share kept on the path, or empty"),
                "phase": Column("text", "", "phase, or empty"),
                "measure": Column("text", "", "`stage` (the whole stage), `latency` (one step) or `token` (training)"),
                "batch": Column("integer", "", "sequences side by side, or 0"),
                "seconds": Column("number", "s", "median, or the only measurement"),
                "spread": Column("number", "s", "interquartile range; 0 for one measurement"),
                "device": Column("text", "", "what computed: `cpu`, or the accelerator's name"),
            },
        ),
        Table(
            "comparison",
            ("variant",),
            {
                "variant": VARIANT,
                "importance": Column("text", "", "what the variant chose by"),
                "neurons": Column("integer", "", "neurons of all layers"),
                "retention": Column("number", "1", "share of neurons kept"),
                "parameters": Column("integer", "", "stored numbers, shared ones once"),
                "multiply_adds": Column("integer", "1/token", "multiply-adds for one token"),
                **ENERGY,
                "pruned_perplexity": Column("number", "1", "test perplexity right after removal"),
                "reconstructed_perplexity": Column("number", "1", "test perplexity after the repair"),
                "finetuned_perplexity": Column("number", "1", "test perplexity after fine-tuning"),
                "pruned_change": Column("number", "1", "relative to the dense model before fine-tuning"),
                "reconstructed_change": Column("number", "1", "relative to the dense model before fine-tuning"),
                "finetuned_change": Column("number", "1", "relative to the dense model after the same fine-tuning"),
            },
        ),
        Table(
            "path",
            ("retain",),
            {
                "retain": Column("number", "1", "share of neurons kept by the order of the surgeon, then repaired"),
                "neurons": Column("integer", "", "neurons of all layers"),
                "parameters": Column("integer", "", "stored numbers, shared ones once"),
                "multiply_adds": Column("integer", "1/token", "multiply-adds for one token"),
                "valid_perplexity": Column("number", "1", "validation perplexity, by which one may choose"),
                "test_perplexity": Column("number", "1", "test perplexity, for what was chosen"),
            },
        ),
        Table(
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
                "perplexity": Column("number", "1", "exp(loss)"),
                "tokens": Column("integer", "token", "tokens predicted"),
                "change": Column("number", "1", "perplexity over that of dense with the same extra training, less 1"),
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
        ),
        Table(
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
                "held_out": Column("flag", "", "whether it is judged on neurons that it was not fitted to"),
                "oracle_reliability": Column(
                    "number",
                    "1",
                    "Spearman–Brown of measured removal's halves of text",
                    missing="fewer than two neurons of a layer vary",
                ),
                "measured": Column("integer", "", "neurons whose removal was measured"),
            },
        ),
        Table(
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
                "pruned_spread": Column(
                    "number", "1", "its standard deviation over seeds", missing="too few seeds have it"
                ),
                "reconstructed_perplexity": Column(
                    "number", "1", "mean over seeds, after the repair", missing="too few seeds have it"
                ),
                "reconstructed_spread": Column(
                    "number", "1", "its standard deviation over seeds", missing="too few seeds have it"
                ),
                "finetuned_perplexity": Column(
                    "number", "1", "mean over seeds, after the extra training", missing="too few seeds have it"
                ),
                "finetuned_spread": Column(
                    "number", "1", "its standard deviation over seeds", missing="too few seeds have it"
                ),
            },
        ),
        Table(
            "cost",
            ("score",),
            {
                "score": Column("text", "", "signal, `criteria` (all of them) or `oracle`"),
                "seconds": Column("number", "s", "in a process of its own, without loading; median over seeds"),
                "peak_memory": Column("number", "MiB", "growth of the process's peak while it was measured; median"),
                "forward_passes": Column("integer", "", "windows read by the model, largest of the seeds"),
                "backward_passes": Column(
                    "integer", "", "passes back through a graph; a second derivative's count too"
                ),
                "runs": Column("integer", "", "seeds that it was measured with"),
            },
        ),
    )
}


def table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` as the table of that name: columns in order and of their types, rows sorted by key.

    Raises:
        ValueError: For an unknown table, a missing, unexpected or wrongly typed column, a repeated key, or a number
            that is not finite where the schema does not let it be missing.
    """
    schema = _schema(name)
    if list(frame.columns) != list(schema.columns):
        _refuse_columns(schema, list(frame.columns))
    ordered = frame[list(schema.columns)].sort_values(list(schema.key), kind="stable", ignore_index=True)
    for column, wanted in schema.columns.items():
        if not _is(ordered[column], wanted.type):
            raise ValueError(f"Expected {wanted.type}s in column {column!r} of {name}, got {ordered[column].dtype}.")
    if ordered.duplicated(list(schema.key)).any():
        raise ValueError(f"Expected one row for each {' × '.join(schema.key)} in {name}, got repeated ones.")
    _refuse_numbers(schema, ordered)
    return ordered


def rows_of(names: Sequence[str], widths: Iterable[int]) -> pd.DataFrame:
    """Return the key columns of a table of neurons: `layer` and `neuron`, layer after layer."""
    pairs = [(name, neuron) for name, width in zip(names, widths, strict=True) for neuron in range(width)]
    return pd.DataFrame(pairs, columns=["layer", "neuron"])


def unmeasured(name: str, layers: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """Return a table of neurons in which nothing was measured: no numbers, from no samples.

    >>> unmeasured("surgeon", [("l", 1)]).iloc[0].to_dict()
    {'layer': 'l', 'neuron': 0, 'cost': nan, 'place': 0, 'importance': nan, 'standard_error': nan, 'samples': 0}
    """
    names, widths = zip(*layers, strict=True)
    rest = {name: float("nan") if c.type == "number" else 0 for name, c in list(_schema(name).columns.items())[2:]}
    return table(name, rows_of(names, widths).assign(**rest))


def empty(name: str) -> pd.DataFrame:
    """Return a table without rows.

    >>> empty("vocabulary").shape
    (0, 3)
    """
    kinds = {"text": "str", "integer": "int64", "number": "float64", "flag": "bool"}
    columns = {column: pd.Series(dtype=kinds[c.type]) for column, c in _schema(name).columns.items()}
    return table(name, pd.DataFrame(columns))


def metadata(name: str) -> dict[str, str]:
    """Return what travels in a table's file: its name, its key and the unit of each column.

    >>> metadata("vocabulary")["key"]
    'token'
    """
    schema = _schema(name)
    units = ", ".join(f"{column}: {c.unit}" for column, c in schema.columns.items() if c.unit)
    return {"table": name, "key": ", ".join(schema.key), "units": units}


def _schema(name: str) -> Table:
    if name not in TABLES:
        raise ValueError(f"Unknown table {name!r}; known: {list(TABLES)}.")
    return TABLES[name]


def _refuse_columns(schema: Table, got: list[str]) -> None:
    missing = [column for column in schema.columns if column not in got]
    extra = [column for column in got if column not in schema.columns]
    if missing or extra:
        raise ValueError(f"Expected the columns of table {schema.name}, got missing {missing}, unexpected {extra}.")


def _refuse_numbers(schema: Table, frame: pd.DataFrame) -> None:
    """Refuse infinite numbers, and missing ones where the schema does not allow it."""
    for name, column in schema.columns.items():
        if column.type != "number":
            continue
        values = frame[name].to_numpy(dtype=float, na_value=np.nan)
        allowed = np.isnan(values) & bool(column.missing)
        if column.missing == UNMEASURED:
            allowed &= frame["samples"].to_numpy() == 0
        wrong = np.flatnonzero(~np.isfinite(values) & ~allowed)
        if len(wrong):
            key = ", ".join(f"{part} {frame[part].iloc[wrong[0]]}" for part in schema.key)
            raise ValueError(
                f"Expected finite numbers in column {name!r} of {schema.name}, got {values[wrong[0]]} at {key}"
                + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
                + "; look for weights or inputs that are not finite."
            )


def _is(column: pd.Series, wanted: str) -> bool:
    if wanted == "text":
        return column.empty or bool(is_string_dtype(column))
    checks: dict[str, Callable[[Any], bool]] = {
        "integer": is_integer_dtype,
        "number": is_float_dtype,
        "flag": is_bool_dtype,
    }
    return checks[wanted](column.dtype)
