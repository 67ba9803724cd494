"""Teachers compared: grades by hand, who is asked, rows of a fake training, a real run graded."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from PIL import Image

import ellm_ppo
from benchmarks import pretraining, scenes, teachers, teachers_figures
from goals import record
from goals.sources import MODEL_FILES
from lab.errors import UserError
from tests.helpers.scripted_model import ScriptedModel
from tests.toy.record import MODEL, likelihood, odds
from tests.toy.world import ToyWorld
from tests.training import train
from worlds import make_world
from worlds.world import WorldArgs, mask_of

TOY = "tests.toy.world:ToyWorld"
RECORDED = "tests/toy/recorded/toy_rules_toy-model.sqlite"
STEPS = 4 * 8 * 20
SEEN = (["see key", "stand at 0"], ["see key", "stand at 1"], ["have key", "see door"], ["see key"])
# Of "nothing", "take key", "open door", "kick wall".
SHARES = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0.4, 0, 0]])
WEIGHTS = np.array([1.0, 3.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def world():
    return ToyWorld()


@pytest.fixture(scope="module")
def sample(world):
    packed = np.stack([mask_of(world.facts, facts) for facts in SEEN])
    ones = np.ones(len(SEEN), np.int64)
    return scenes.Sample(packed, SHARES, ones, WEIGHTS, np.full(len(SEEN), "random"))


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """A finished run of the toy on recorded answers, its rules corrected."""
    folder = tmp_path_factory.mktemp("toy")
    settings = {"goal_form": "rules", "prompt": None, "llm": MODEL, "total_timesteps": STEPS}
    with pytest.MonkeyPatch.context() as patch:
        train(patch, ToyWorld(), folder, "run", evidence=True, evaluate_episodes=2, **settings)
    return folder / "run"


@pytest.fixture
def args(tmp_path, world, sample):
    """Two seeds of the toy's model, all of it in folders of its own."""
    arrays = {name: getattr(sample, name) for name in scenes.COLUMNS}
    arrays["sources"] = np.zeros(len(SEEN), np.uint8)
    labelled = {f"{split}_{name}": x for split in scenes.LABELLED for name, x in arrays.items()}
    header = {"sources": {"random": {}}, "captions": world.captions, "facts": world.facts}
    labelled |= {"header": np.array(json.dumps(header)), "calibration": sample.scenes}
    scenes.save(tmp_path / "toy.npz", labelled)
    where = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    how = {"env": TOY, "scenes": tmp_path / "toy.npz", "total_timesteps": STEPS}
    return teachers.Args(llms=(MODEL,), seeds=(1, 2), **how, **where)


def suggest(**scenes_of):
    goals = np.zeros(SHARES.shape, bool)
    for caption, rows in scenes_of.items():
        goals[rows, ToyWorld.captions.index(caption.replace("_", " "))] = True
    return goals


# ---- grades


def test_grades_by_hand(world, sample):
    # The ceiling of "take key" is 2 * 4 / (4 + 4.4) = .952; a third scene in vain, and it is
    # 8 / 9.4 = .851. "kick wall" is never right.
    goals = suggest(take_key=[0, 1, 2], open_door=[2], kick_wall=[0])
    grades = teachers.grade_rules(world, sample, goals)
    assert grades["f1"] == pytest.approx(2 * 5 / (7 + 5.4), abs=1e-4) and grades["f1_error"] > 0
    assert (grades["right"], grades["gradable"]) == (1, 3)
    assert grades["wrong"] == ["take key", "kick wall"]


def test_a_rule_is_right_a_little_below_the_ceiling_or_above_it(world, sample):
    # 2 * 4.4 / (5 + 4.4) = .936
    grades = teachers.grade_rules(world, sample, suggest(take_key=[0, 1, 3], open_door=[2]))
    assert (grades["right"], grades["gradable"], grades["wrong"]) == (2, 2, [])
    grades = teachers.grade_rules(world, sample, suggest(take_key=[0, 1]))
    assert (grades["right"], grades["gradable"], grades["wrong"]) == (1, 2, ["open door"])


def test_a_finished_run_is_graded_before_and_after(args, toy_run, capsys):
    teachers.main(dataclasses.replace(args, grade=(toy_run,)))
    written = json.loads((args.results / "grades.json").read_text())
    grades = written["runs"][0]
    metrics = [json.loads(line) for line in (toy_run / "metrics.jsonl").open()]
    assert grades["run"] == "run"
    assert grades["corrected"] == metrics[-1]["rules_corrected"]
    # The recorded rules: "take key" needs "see key", "open door" also "have key".
    # Scenes 0, 1 and 3 have the key in view: 2 * 5.4 / (6 + 5.4).
    assert grades["before"]["f1"] == pytest.approx(10.8 / 11.4, abs=1e-4)
    assert (grades["before"]["right"], grades["before"]["gradable"]) == (2, 2)
    assert grades["ceiling"] == pytest.approx(10 / 10.4, abs=1e-4)
    said = capsys.readouterr().out
    assert "  before: F1 0.947" in said and "2 of 2 rules right; wrong: none" in said
    assert not args.runs.exists(), "nothing is trained"


def test_runs_that_cannot_be_graded_are_refused_in_one_line(args, toy_run, tmp_path):
    config = json.loads((toy_run / "config.json").read_text())
    plain = {"arguments": config["arguments"] | {"evidence": False}}
    for changes, said in (
        (plain, "is no run with --evidence"),
        ({"world": "Moon()"}, r"is of another world \(Moon\(\); here ToyWorld"),
        ({}, "no checkpoint in"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=said):
            teachers.main(dataclasses.replace(args, grade=(tmp_path,)))
    with pytest.raises(UserError, match="no config.json in"):
        teachers.main(dataclasses.replace(args, grade=(tmp_path / "nowhere",)))


# ---- who is asked


def test_every_model_and_wording_is_a_teacher(tmp_path):
    crafter = make_world(WorldArgs())
    found = teachers.find_teachers(teachers.Args(), crafter)
    assert [(teacher.name, teacher.store) for teacher in found] == [(n, None) for n in MODEL_FILES]
    llms = ("gemma3-270m", "org/model", f"{tmp_path}/my.gguf", "mine.sqlite")
    args = teachers.Args(llms=llms, prompts=("mine/crafter_rules", "b/terse"), runs=tmp_path)
    found = {teacher.name: teacher for teacher in teachers.find_teachers(args, crafter)}
    assert len(found) == 8 and list(found)[:2] == [
        "gemma3-270m, mine/crafter_rules",
        "gemma3-270m, b/terse",
    ]
    assert {name.partition(",")[0] for name in found} == {"gemma3-270m", "org/model", "my", "mine"}
    assert found["mine, b/terse"].store is None, "a recording is not asked"
    asked = found["org/model, b/terse"]
    assert asked.store == tmp_path / "answers" / "org-model-b-terse.sqlite"
    assert asked.goal_args["llm"] == str(asked.store) and asked.goal_args["prompt"] == "b/terse"


def test_a_live_model_is_asked_once_for_all_seeds(args, world, monkeypatch):
    models = []

    def load_model(spec, **options):
        models.append(ScriptedModel(odds, likelihood, name="my.gguf@0"))
        return models[-1]

    monkeypatch.setattr(record, "load_language_model", load_model)
    args = dataclasses.replace(args, llms=("my.gguf",))
    (teacher,) = teachers.find_teachers(args, world)
    for _ in range(2):
        asked = teachers.ask(teacher, args, world)
        assert asked["questions"] == len(models[0].asked) > 0 and asked["minutes"] > 0
    assert len(models) == 1
    (recorded,) = teachers.find_teachers(dataclasses.replace(args, llms=(MODEL,)), world)
    found = teachers.ask(recorded, args, world)
    assert found == {"questions": asked["questions"], "minutes": None}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"llms": ("nowhere.gguf",), "llm_engine": "llama.cpp"}, "nowhere.gguf"),
        ({"llms": ("nowhere.sqlite",)}, "nowhere.sqlite"),
        ({"llms": ("a/m.gguf", "b/m.gguf")}, "two teachers are called m: rename a file"),
        ({"llms": ("oracle",)}, "two teachers are called oracle"),
        ({"llms": (RECORDED,), "prompts": ("nowhere/rules",)}, "nowhere/rules_phrases"),
        ({"seeds": (-1,)}, "--seeds -1"),
    ],
)
def test_what_cannot_teach_is_one_clear_error(args, changes, said, started):
    with pytest.raises(UserError, match=said) as error:
        teachers.main(dataclasses.replace(args, **changes))
    assert "\n" not in str(error.value) and not started


# ---- trainings


@pytest.fixture
def started(monkeypatch, toy_run):
    """Let each training leave a copy of the toy's run, but for the oracle's second seed."""
    commands = []

    def run(command, cwd):
        commands.append(command[1:])
        if {"oracle", "2"} <= set(command):
            return SimpleNamespace(returncode=2)
        shutil.copytree(toy_run, command[command.index("--run-dir") + 1])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_rows_keep_the_grades_and_what_failed_is_run_again(args, started, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit):
            teachers.main(args)
    assert "oracle, seed 2: failed with exit code 2" in capsys.readouterr().out
    names = [MODEL, "no model", "oracle"]
    rows = pretraining.read_rows(args.results)
    keys = [(row["method"], row["seed"]) for row in rows]
    assert keys == [(name, 1) for name in names] + [(name, 2) for name in names[:2]]
    assert len(started) == 7, "the oracle's second seed twice"
    assert [row["grades"] is None for row in rows] == [False, False, True, False, False]
    assert rows[0]["grades"]["before"]["f1"] == pytest.approx(10.8 / 11.4, abs=1e-4)
    assert rows[0]["asked"]["minutes"] is None and rows[1]["asked"] is None
    assert f"--llm {MODEL} --resolve replay" in rows[0]["command"]
    table = (args.results / "table.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith(f"| {MODEL} |"))
    assert "| 2 |" in line and "| recorded |" in line and "2 of 2" in line
    assert Image.open(args.results / "teachers.png").size[0] > 900
    with pytest.raises(UserError, match="has rows of 640 env steps"):
        teachers.main(dataclasses.replace(args, total_timesteps=64))


def test_commands_are_those_of_the_scripts(tmp_path):
    args = teachers.Args(llms=("qwen2.5-coder-1.5b", "org/model"), results=tmp_path)
    methods = teachers.make_methods(teachers.find_teachers(args, make_world(WorldArgs())), args)
    deep = pretraining.METHODS
    assert methods["no model"].command == deep["deep-grounded-evidence"].command
    assert methods["oracle"].command == deep["deep-oracle"].command
    for name, method in methods.items():
        read = tyro.cli(ellm_ppo.Args, args=list(method.command[1:]))
        assert (read.goal_head, read.goal_view) == ("verbs", True)
        assert read.evidence == (name != "oracle") and method.total_timesteps == 1_000_000
    read = tyro.cli(ellm_ppo.Args, args=list(methods["org/model"].command[1:]))
    assert Path(read.llm).name == "org-model.sqlite" and read.resolve == "replay"


def test_a_table_by_hand():
    def row(name, seed, score, after, asked=None):
        parts = {"f1_error": 0.01, "right": 10, "gradable": 20}
        grades = {"before": {"f1": 0.5, **parts}, "after": {"f1": after, **parts}}
        scores = {"final": {"x": score}, "evaluation": {"x": 2 * score}}
        grades |= {"corrected": seed, "ceiling": 0.9}
        return {
            "method": name,
            "seed": seed,
            "score": "x",
            "asked": asked,
            "grades": grades,
        } | scores

    asked = {"questions": 2147, "minutes": 3.24}
    rows = [row("bad", 1, 1.0, 0.4), row("my", 1, 2.0, 0.6, asked), row("my", 2, 3.0, 0.7, asked)]
    rows.append(row("oracle", 1, 9.0, 0.0) | {"grades": None})
    lines = teachers_figures.table(rows).splitlines()[2:]
    rules = "| 0.500 ± 0.010 | 0.650 ± 0.010 | 10 of 20 | 10 of 20 | 1.5 "
    assert lines[0] == "| oracle | 1 |  |  |  |  |  |  |  | 9.0 |  | 18.0 |"
    assert lines[1] == f"| my | 2 | 2,147 | 3.2 {rules}| 2.5 | 2.00 to 3.00 | 5.0 |"
    assert lines[2].startswith("| bad | 1 |  |  | 0.500 ± 0.010 | 0.400 ± 0.010 |")
