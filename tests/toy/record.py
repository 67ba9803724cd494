"""Record what a scripted model says of the toy: python -m tests.toy.record.

It writes tests/toy/recorded/toy_rules_toy-model.sqlite anew, which --llm toy-model reads.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from goals import record, store_cli
from goals.store import Store
from tests.helpers.scripted_model import ScriptedModel, last_line
from tests.toy.world import ToyWorld

MODEL = "toy-model"
SENSIBLE = ("take key", "open door")
# Log-odds of what is needed; of a thing to have the model is surer than of one to see.
NEEDED = {
    ("take key", "see key"): 1.0,
    ("open door", "have key"): 10.0,
    ("open door", "see door"): 1.0,
}


def odds(prompt: str) -> float:
    """Return log-odds of yes, as of one who knows the corridor."""
    question = last_line(prompt)
    if "Needed: " in question:
        goal = question.removeprefix("Goal: ").partition(". ")[0]
        fact = question.partition("Needed: ")[2].rstrip("?")
        return NEEDED.get((goal, fact), -4.0)
    return 4.0 if any(goal in question for goal in SENSIBLE) else -4.0


def likelihood(prompt: str, candidate: str) -> float:
    """Return a log-likelihood [nats] of a goal with an ending."""
    return -8.0 if any(goal in candidate for goal in SENSIBLE) else -16.0


def write(path: Path) -> None:
    """Record the rules form, and the embeddings of captions and facts, in a new store."""
    model = ScriptedModel(odds, likelihood, name=MODEL)
    with TemporaryDirectory() as folder:
        args = record.Args(llm=MODEL, store=Path(folder) / "answers.sqlite")
        with Store(args.store) as store:
            record.record(ToyWorld(), args, model, store, questions=[])
            rows = list(store.rows())
    store_cli.write_store(path, rows)


if __name__ == "__main__":
    file = ToyWorld.recorded / f"{ToyWorld.name}_rules_{MODEL}.sqlite"
    file.unlink(missing_ok=True)
    write(file)
