"""A run from its first line to its summary: what every script's `main` does around its updates."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import jax
import numpy as np

from goals.service import GoalService
from goals.tables import GoalTables, grow_goals
from lab.arguments import RunArgs
from lab.checkpoint import Checkpoints
from lab.compile_clock import CompileClock
from lab.errors import UserError, one_line
from lab.film import film_frames, make_film
from lab.machine import keep_programs, set_up_jax
from lab.mentor import checksum
from lab.metrics import costs, metrics_line, score_key, score_label, summarise
from lab.play import HELD_OUT, Policy, play
from lab.plots import learning_curve
from lab.progress import Progress
from lab.run import CONFIG, Run, new_run_dir, read_config, read_metrics, write_text
from lab.transfer import take_parameters
from worlds.world import World, WorldArgs


def configure(args: RunArgs) -> None:
    """Set what must be set before anything is compiled; raises UserError without a device."""
    set_up_jax()
    if args.compilation_cache:
        keep_programs()


class Session:
    """One run of a script: its directory, checkpoints, progress, metrics, evaluation and summary.

    args: the script's, with `num_updates` and `batch_size` [env steps per update]. Raises
    UserError, before anything is written, where the directory holds another run. Closing it closes
    the service.
    """

    def __init__(self, args: RunArgs, world: World, service: GoalService, name: str, script: str):
        self.args, self.world, self.service = args, world, service
        self._start, self._clock = time.perf_counter(), CompileClock()
        self._before = {"wall_seconds": 0.0, "compile_seconds": 0.0}
        _check(args)
        facts = {
            "world": repr(world),
            "language_model": service.language_model,
            "prompts": service.prompts,
            "vectors": service.vectors,
            "score_name": world.score_name,
        }
        if getattr(args, "guide", None):
            facts["guide_parameters"] = checksum(service.mentor)
        free = {field for group in type(args).__mro__ for field in getattr(group, "FREE", ())}
        fields = dataclasses.asdict(args)
        free |= {
            field.name for field in dataclasses.fields(WorldArgs)
        }  # "world" says what they mean
        identity = [field for field in fields if field not in free]
        identity += [name for name in facts if name != "score_name"]
        stem = f"runs/{name}-s{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        path = args.run_dir or new_run_dir(stem)
        with ExitStack() as stack:
            stack.callback(service.close)
            run = Run(
                path,
                fields,
                facts,
                identity,
                track=args.track,
                script=script,
                packages=world.packages,
            )
            self.run = stack.enter_context(run)
            print(f"{self.run.path}: {service.describe()}", flush=True)
            total = args.num_updates * args.batch_size
            self.progress = stack.enter_context(Progress(total, score_name=world.score_name))
            service.on_progress = self.progress.waiting
            try:
                service.prepare()
            except UserError:
                self.run.discard()  # so that the next try need not be of the same configuration
                raise
            self.checkpoints = stack.enter_context(Checkpoints(self.run.path / "checkpoints"))
            self._stack = stack.pop_all()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._stack.__exit__(kind, error, traceback)
        is_begun = (self.run.path / CONFIG).exists()
        if isinstance(error, UserError) and is_begun and "--run-dir" not in str(error):
            raise UserError(f"{error}; go on with --run-dir {self.run.path}") from error

    def begin(self, init: Callable[[GoalTables], Any], policy: Policy) -> Any:
        """Return the state of the last checkpoint, or the first; its `update` counts updates.

        With --evaluate-every the policy is evaluated before the first update, too.
        """
        if self.checkpoints.latest_step() is None:
            try:
                state = init(self.service.tables)
                if self.args.from_run:
                    state = take_parameters(self.args, state)
            except UserError:
                # So that the next try need not be of the same configuration.
                self.checkpoints.close()
                with suppress(OSError):
                    self.checkpoints.path.rmdir()
                self.run.discard()
                raise
        else:
            state, self._before = restore(self.checkpoints, self.service, init)
        self._update = int(state.update)
        # Of a run that begins anew nothing is kept, not even the evaluation before it.
        self.run.truncate_after(self._update * self.args.batch_size or -1)
        if not self._update:
            self.evaluate(policy, state.params)
            state = grow_goals(state, self.service.num_goals)
        self._ended, self._evaluating = time.perf_counter(), 0.0
        return state

    def updates(self) -> Iterator[int]:
        """Yield the number of each update that is left, from 1; `log` must be called in each."""
        for number in range(self._update + 1, self.args.num_updates + 1):
            self._update = number
            self._began, self._compiled = time.perf_counter(), self._clock.seconds
            self._evaluating = 0.0
            yield number

    def evaluate(self, policy: Policy, params: Any) -> None:
        """Evaluate in held-out worlds if --evaluate-every asks for it at this update."""
        args, number = self.args, self._update
        if not args.evaluate_every or number % (args.evaluate_every // args.batch_size):
            return
        jax.block_until_ready(params)
        began, compiled = time.perf_counter(), self._clock.seconds
        episodes, key = args.evaluate_episodes, jax.random.key(HELD_OUT)
        statistics, _ = play(policy, self.service, params, episodes, key, film=False)
        self.run.log_evaluation({"env_steps": number * args.batch_size, **statistics})
        compiling = self._clock.seconds - compiled
        self._evaluating = time.perf_counter() - began - compiling

    def log(self, state: Any, metrics: dict[str, Any]) -> None:
        """Write the update's line of metrics, and a checkpoint when one is due.

        Raises UserError, the state saved, if asking in the background has failed; and, the state
        not saved, if a loss or, where a checkpoint is due, a parameter is not finite.
        """
        args, service, number = self.args, self.service, self._update
        metrics = jax.device_get(metrics)  # HOST WAITS for the device.
        host_seconds, self._ended = self._began - self._ended, time.perf_counter()
        compiling = self._clock.seconds - self._compiled
        seconds = self._ended - self._began - compiling - self._evaluating
        line = {"update": number, "env_steps": number * args.batch_size}
        line |= metrics_line(self.world, metrics) | service.metrics()
        line["time"] = {
            "seconds": seconds,
            "sps": args.batch_size / seconds,
            "host_seconds": host_seconds,
        }
        self.run.log(line)
        is_saved = number % args.checkpoint_every == 0 or number == args.num_updates
        self._check_finite(metrics, state.params if is_saved else ())
        score = line[score_key(self.world.score_name)]
        self.progress.update(line["env_steps"], score, service.num_scenes, service.queue_length)
        failure = service.failure
        if is_saved or failure:
            self.checkpoints.save(
                number, state, {"service": service.state(), "spent": self._spent()}
            )
        if failure:
            raise UserError(
                f"{failure}; all is kept: resume with --run-dir {self.run.path}"
            ) from failure

    def finish(self, policy: Policy, params: Any) -> dict[str, Any]:
        """Report, evaluate, film; return the content of summary.json.

        The summary of the training is written first. A step after it that fails costs nothing but
        its own result: it is told in one line, which the summary keeps under "failed".
        """
        args, service, path = self.args, self.service, self.run.path
        training = summarise(read_metrics(path), self.world)
        failed, evaluation, shown = {}, {}, []
        self._report(training, evaluation, failed)
        with self._last_step("asking", failed):
            service.finish()
        with self._last_step("the picture", failed):
            learning_curve(path, path / "curve.png")
        with self._last_step("the rules", failed):
            report = service.rules_report()
            if report:
                write_text(path / "rules.txt", report)
        if args.evaluate_episodes:
            self.progress.phase("evaluating")
            key, episodes = jax.random.key(HELD_OUT), args.evaluate_episodes
            with self._last_step("the evaluation", failed):
                evaluation["evaluation"], shown = play(policy, service, params, episodes, key)
        self._report(training, evaluation, failed)
        if args.film and shown:
            self.progress.phase("filming")
            with self._last_step("the film", failed):
                make_film(film_frames(self.world, service.goals, shown), path / "film.gif")
        summary = self._report(training, evaluation, failed)
        self.progress.close()
        name = self.world.score_name
        score, words = summary[score_key(name)], score_label(name)
        ended = "no episode ended" if score is None else f"{score:.2f} {words} per episode"
        held_out = summary.get("evaluation", {}).get(score_key(name))
        beside = "" if held_out is None else f" of the training, {held_out:.2f} held out"
        print(f"{path}: {ended}{beside}", flush=True)
        return summary

    def _report(
        self, training: dict[str, Any], evaluation: dict[str, Any], failed: dict[str, str]
    ) -> dict[str, Any]:
        """Write summary.json, and return it."""
        service, env_steps = self.service, self.args.num_updates * self.args.batch_size
        summary = {
            **training,
            **evaluation,
            "env_steps": env_steps,
            **self._spent(),
            **costs(dataclasses.asdict(service.usage), env_steps),
            "scenes": service.num_scenes,
            "goals": len(service.goals),
            "language_model": service.language_model,
            "git_commit": read_config(self.run.path)["git_commit"],
            "failed": failed,
        }
        self.run.write_summary(summary)
        return summary

    @contextmanager
    def _last_step(self, what: str, failed: dict[str, str]) -> Iterator[None]:
        """Let a step after the training fail, and keep why: what is done is not lost to it."""
        try:
            yield
        except Exception as error:  # of any kind
            why = str(error) if isinstance(error, UserError) else one_line(error)
            failed[what] = " ".join(why.split())
            self.progress.write(f"{what} failed ({failed[what]}): all else is in {self.run.path}")

    def _check_finite(self, metrics: dict[str, Any], params: Any) -> None:
        """Raise UserError if a number among the metrics, or a parameter, is not finite."""
        numbers = {name: x for name, x in metrics.items() if name != "episodes"}
        bad = [name for name, x in numbers.items() if not np.isfinite(x).all()]
        # On the host, where a checkpoint brings the parameters anyway and nothing is compiled.
        leaves = [] if bad else jax.tree.leaves(jax.device_get(params))
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            bad = ["a parameter"]
        if bad:
            last = self.checkpoints.latest_step()
            kept = f"the checkpoint of update {last} is kept" if last else "there is no checkpoint"
            raise UserError(
                f"{bad[0]} is not finite after update {self._update}, {kept}: "
                "choose a smaller --learning-rate, and another --run-dir"
            )

    def _spent(self) -> dict[str, float]:
        return {
            "wall_seconds": self._before["wall_seconds"] + time.perf_counter() - self._start,
            "compile_seconds": self._before["compile_seconds"] + self._clock.seconds,
        }


def restore(
    checkpoints: Checkpoints, service: GoalService, init: Callable[[GoalTables], Any]
) -> tuple[Any, dict[str, Any]]:
    """Bring the service to the last checkpoint; return its state and what the run had spent."""
    host = checkpoints.host()
    service.restore(host["service"])
    state, _ = checkpoints.restore(jax.eval_shape(init, service.tables))
    return state, host["spent"]


def _check(args: RunArgs) -> None:
    """Raise UserError for arguments that do not go together."""
    if args.evaluate_every and (
        args.evaluate_every < args.batch_size or not args.evaluate_episodes
    ):
        raise UserError(
            f"--evaluate-every {args.evaluate_every} needs --evaluate-episodes and at least "
            f"the {args.batch_size} env steps of an update: give more"
        )
    if getattr(args, "guide", None) is None:
        for name in ("guide_probability", "guide_fraction"):
            default = getattr(type(args), name, None)
            if getattr(args, name, None) != default:
                raise UserError(f"--{name.replace('_', '-')} needs --guide: name a run")
