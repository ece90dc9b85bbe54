"""The table of a training's history."""

from pruning.core.tables import Column, Table

HISTORY = Table(
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
)
