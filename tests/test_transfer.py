"""A run that begins with the parameters of another: all of them, bit for bit, or a refusal."""

import dataclasses
import shutil

import jax
import pytest

import ellm_dqn
import ellm_ppo
from lab.errors import UserError
from lab.transfer import take_parameters, trainable
from tests.toy.world import ToyWorld
from tests.training import (
    assert_equal_trees,
    count_programs,
    make_args,
    open_script,
    train,
    train_with_a_break,
)

SCRIPTS = {"ppo": ellm_ppo, "dqn": ellm_dqn}
FIELDS = {"goal_source": "oracle", "total_timesteps": 128, "checkpoint_every": 1}


@pytest.fixture(scope="module", params=SCRIPTS)
def pretrained(request, tmp_path_factory):
    """Train a run; return its script, folder and final state."""
    script, folder = SCRIPTS[request.param], tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        _, state, _ = train(patch, ToyWorld(), folder, "first", script=script, **FIELDS)
    return script, folder, state


def begin(script, args):
    """Return the first state of a run in the toy, and what it begins with."""
    encoder = script.Args().sentence_encoder
    toy = dataclasses.replace(args, env="tests.toy.world:ToyWorld", sentence_encoder=encoder)
    setup, service = open_script(script, toy, ToyWorld())
    fresh = script.init_state(setup, service.tables)
    service.close()
    return fresh, take_parameters(args, fresh)


def test_parameters_are_those_of_the_other_run_bit_for_bit(pretrained):
    script, folder, state = pretrained
    args = make_args(script, folder, "next", seed=2, from_run=str(folder / "first"), **FIELDS)
    fresh, begun = begin(script, args)
    assert_equal_trees(begun.params, state.params)
    assert_equal_trees(begun.opt_state, fresh.opt_state)
    if script is ellm_dqn:
        assert_equal_trees(begun.target_params, state.params)
    different = jax.tree.map(lambda x, y: bool((x != y).any()), begun.params, fresh.params)
    assert any(jax.tree.leaves(different)) and int(begun.update) == 0


def test_what_is_frozen_stays_and_the_rest_learns(monkeypatch, pretrained):
    script, folder, state = pretrained
    fields = FIELDS | {"script": script, "from_run": str(folder / "first"), "fine_tune": "heads"}
    _, tuned, _ = train(monkeypatch, ToyWorld(), folder, "heads", **fields)
    before, after = state.params["params"], tuned.params["params"]
    for name in before:
        same = jax.tree.map(lambda x, y: bool((x == y).all()), before[name], after[name])
        assert all(jax.tree.leaves(same)) == name.startswith("Torso"), name
    if script is ellm_ppo:
        fields["fine_tune"] = "critic"
        _, tuned, _ = train(monkeypatch, ToyWorld(), folder, "critic", **fields)
        assert_equal_trees(tuned.params["params"]["Dense_0"], before["Dense_0"])
        assert (tuned.params["params"]["Dense_1"]["kernel"] != before["Dense_1"]["kernel"]).any()


def test_it_resumes_bit_for_bit(monkeypatch, pretrained, tmp_path):
    script, folder, _ = pretrained
    fields = {**FIELDS, "total_timesteps": 256, "script": script}
    run = monkeypatch, ToyWorld(), tmp_path
    fields["from_run"] = str(folder / "first")
    _, whole, lines = train(*run, "whole", **fields)
    _, broken, broken_lines = train_with_a_break(*run, "broken", **fields)
    assert_equal_trees(whole.params, broken.params)
    assert lines == broken_lines


def test_nothing_is_compiled_after_the_first_update(monkeypatch, pretrained, tmp_path):
    script, folder, _ = pretrained
    fields = {**FIELDS, "total_timesteps": 256, "script": script}
    fields["from_run"] = str(folder / "first")
    counts = count_programs(monkeypatch, ToyWorld(), tmp_path, "run", **fields)
    assert counts[0] > 0 and len(set(counts)) == 1


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"hidden_size": 32}, "does not fit: --hidden-size 16 there, 32 here"),
        ({"caption_memory": False}, "does not fit: --caption-memory True there, False here"),
        ({"sentence_encoder": "other"}, "does not fit: --sentence-encoder paraphrase.* other here"),
        ({"env": "crafter"}, "is of another world: name of ToyWorld.* there, of Crafter"),
        ({"from_run": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(pretrained, fields, said):
    script, folder, _ = pretrained
    fields = {"from_run": str(folder / "first"), **FIELDS, **fields}
    with pytest.raises(UserError, match=said) as caught:
        begin(script, make_args(script, folder, "other", **fields))
    assert "\n" not in str(caught.value)


def test_a_start_that_is_refused_leaves_nothing(monkeypatch, pretrained, tmp_path):
    script, folder, _ = pretrained
    fields = FIELDS | {"script": script, "from_run": str(folder / "first"), "hidden_size": 32}
    with pytest.raises(UserError, match="does not fit: --hidden-size 16 there, 32 here$"):
        train(monkeypatch, ToyWorld(), tmp_path, "run", **fields)
    assert not (tmp_path / "run").exists()
    train(monkeypatch, ToyWorld(), tmp_path, "run", **{**fields, "hidden_size": 16})


def test_another_learner_is_refused(pretrained):
    script, folder, _ = pretrained
    other = ellm_dqn if script is ellm_ppo else ellm_ppo
    args = make_args(other, folder, "mixed", from_run=str(folder / "first"), **FIELDS)
    with pytest.raises(UserError, match="is of the other learner: PPO and DQN do not mix"):
        begin(other, args)


def test_a_damaged_file_is_named(pretrained, tmp_path):
    script, folder, _ = pretrained
    shutil.copytree(folder / "first", tmp_path / "copy")
    for file in (tmp_path / "copy" / "checkpoints").glob("*/arrays/*/*"):
        if file.is_file() and not file.name.startswith("."):
            file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UserError, match="damaged"):
        begin(script, make_args(script, folder, "x", from_run=str(tmp_path / "copy"), **FIELDS))


def test_flags_that_do_not_go_together_are_refused():
    args = ellm_ppo.Args(fine_tune="heads")
    with pytest.raises(UserError, match="--fine-tune heads needs --from-run"):
        trainable(args, None, "Dense_1")
    args = ellm_dqn.Args(fine_tune="critic", from_run="x")
    with pytest.raises(UserError, match="--fine-tune critic: this learner has no critic"):
        trainable(args, None)
