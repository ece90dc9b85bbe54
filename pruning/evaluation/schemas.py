"""The tables of what models are worth and what they cost."""

from pruning.core.tables import PHASE, VARIANT, Column, Table

NO_CLASSES = "the loss is no log-likelihood of classes"
OF_CLASSES = "the model's own loss has no accuracy"

ENERGY = {
    "synaptic_operations": Column("number", "1/token", "accumulates that spikes cause, in place of multiply-adds"),
    "energy": Column("number", "pJ/token", "of multiply-adds that read no spikes and of synaptic operations"),
}


EVALUATION = Table(
    "evaluation",
    ("variant", "phase", "split"),
    {
        "variant": VARIANT,
        "phase": PHASE,
        "split": Column("text", "", "valid or test"),
        "loss": Column("number", "nat/token", "cross-entropy, every token once, state carried; or a user's own loss"),
        "perplexity": Column("number", "1", "exp(loss)", missing=NO_CLASSES),
        "accuracy": Column("number", "1", "share of the targets that the model ranks first", missing=OF_CLASSES),
        "metrics": Column("text", "", "further metrics of a user's model, JSON: name → [value, which is better]"),
        "tokens": Column("integer", "token", "targets predicted: tokens of a language model"),
        "neurons": Column("integer", "", "neurons of all layers"),
        "parameters": Column("integer", "", "stored numbers, shared ones once"),
        "multiply_adds": Column("integer", "1/token", "multiply-adds for one token"),
        **ENERGY,
    },
)


COMPARISON = Table(
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
        "pruned_perplexity": Column("number", "1", "test perplexity right after removal", missing=NO_CLASSES),
        "reconstructed_perplexity": Column("number", "1", "test perplexity after the repair", missing=NO_CLASSES),
        "finetuned_perplexity": Column("number", "1", "test perplexity after fine-tuning", missing=NO_CLASSES),
        "pruned_loss": Column("number", "nat/token", "test loss right after removal"),
        "reconstructed_loss": Column("number", "nat/token", "test loss after the repair"),
        "finetuned_loss": Column("number", "nat/token", "test loss after fine-tuning"),
        "metrics": Column("text", "", "further test metrics after fine-tuning, JSON: name → [value, which is better]"),
        "pruned_change": Column("number", "1", "relative to the dense model before fine-tuning"),
        "reconstructed_change": Column("number", "1", "relative to the dense model before fine-tuning"),
        "finetuned_change": Column("number", "1", "relative to the dense model after the same fine-tuning"),
    },
)


PATH = Table(
    "path",
    ("retain",),
    {
        "retain": Column("number", "1", "share of neurons kept by the order of the surgeon, then repaired"),
        "neurons": Column("integer", "", "neurons of all layers"),
        "parameters": Column("integer", "", "stored numbers, shared ones once"),
        "multiply_adds": Column("integer", "1/token", "multiply-adds for one token"),
        "valid_perplexity": Column("number", "1", "validation perplexity, by which one may choose", missing=NO_CLASSES),
        "test_perplexity": Column("number", "1", "test perplexity, for what was chosen", missing=NO_CLASSES),
        "valid_loss": Column("number", "nat/token", "validation loss, by which one may choose where that is missing"),
        "test_loss": Column("number", "nat/token", "test loss"),
    },
)


LATENCY = Table(
    "latency",
    ("model", "batch"),
    {
        "model": Column("text", "", "variant, or share of the neurons kept on the path"),
        "batch": Column("integer", "", "sequences side by side"),
        "seconds": Column("number", "s", "median of one step"),
        "spread": Column("number", "s", "interquartile range of one step"),
        "speed_up": Column("number", "1", "times as fast as the dense model, measured in the same turns"),
        "error": Column("number", "1", "standard error of the speed-up", missing="there was one turn"),
        "repeats": Column("integer", "", "turns"),
        "waited": Column(
            "number", "1", "share of its time that the measurement waited for a core", missing="the system does not say"
        ),
        "device": Column("text", "", "what computed: `cpu`, or the accelerator's name"),
    },
)
