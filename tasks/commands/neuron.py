"""`python -m tasks neuron <layer> <number>`: all that is known of one neuron of the dense model."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from pruning.pictures.card import NeuronCard
from pruning.pictures.neuron import card_of
from pruning.signals.schemas import BESIDE, SIGNALS
from tasks.commands.settled import settled
from tasks.common.covariances import read_covariances
from tasks.common.devices import compute_on
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.pipeline import PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.common.windows import calibration_batches
from tasks.common.writing import replacing
from tasks.settings.parameters import checked
from tasks.shown.asking import Answer, Words, picture_kind
from tasks.shown.console import track
from tasks.shown.tables import shown_table


def run(words: Sequence[str]) -> Answer:
    """Return the neuron's card, and write its picture where one is asked for.

    Raises:
        ValueError: If there are no such results, or the picture is of an unknown kind.
        ValueError: For an unknown layer or neuron.
    """
    parser = Words("neuron")
    parser.add_argument("layer", help="its name, as lstm.0, or its place from 0")
    parser.add_argument("number", type=int, help="the neuron's number in it, from 0")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="write the card as a picture: FILE.png or FILE.svg"
    )
    given = parser.read(words)
    place: Path | None = given.picture
    kind = "" if place is None else picture_kind(place, "--picture")
    card = _card(given.layer, given.number)
    said = []
    if place is not None:
        with replacing(place) as aside:
            aside.write_bytes(card.plot().image(kind))
        said = [f"the card as a picture: {place}"]
    return Answer(card.plain(), [*_parts(card), *said])


def _card(layer: str, number: int) -> NeuronCard:
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    compute_on(**parameters.compute.model_dump())
    fuse, activations = (read_stage(name, None, values) for name in ("fuse", "activations"))
    prunings = {name: read_stage("prune", name, values) for name in parameters.variants}
    job = Job(fuse, parameters, track)
    with settled(fuse, activations, *prunings.values()):
        model = read_model(job.input("train/model")).decoupled()
        texts = None
        if parameters.model.source is None:
            texts = read_table(job.input("prepare/vocabulary")).sort_values("token")["text"].tolist()
        return card_of(
            model,
            layer,
            number,
            importance=read_table(job.output("importance")),
            covariances=read_covariances(activations.outputs["covariance"], model.layers()),
            batches=calibration_batches(job),
            tables={name: read_table(job.input(f"{name}/{name}")) for name in (*SIGNALS, *BESIDE)},
            removals=read_table(job.input("oracle/oracle")),
            kept={name: read_table(stage.outputs["retention"]) for name, stage in prunings.items()},
            words=texts,
        )


def _parts(card: NeuronCard) -> list[RenderableType]:
    """Return the card for a terminal."""
    scores = [
        {
            "signal": row["signal"],
            "importance": f"{row['importance']:.4g}",
            "±": "" if row["standard_error"] != row["standard_error"] else f"{row['standard_error']:.1g}",
            "rank": f"{row['rank']:,} of {row['of']:,}",
        }
        for row in card.scores.to_dict("records")
    ]
    partners = [
        {
            "neuron": str(row["neuron"]),
            "edge": f"{row['edge']:.2f}",
            "correlation": f"{row['correlation']:+.2f}",
        }
        for row in card.partners.to_dict("records")
    ]
    parts: list[RenderableType] = [*card.sentences(), "", shown_table("Importance; rank 1 is the most", scores)]
    if partners:
        parts.append(shown_table("Works most with", partners))
    return [*parts, *card.fires()]
