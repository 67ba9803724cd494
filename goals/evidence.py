"""Rules corrected by what happens (--evidence): what a caption changes, and what that needs.

A model's rules say which goals make sense and what each needs. Play shows more: after which
captions which facts change, and what was there when they did. Only captions and scenes are read,
never the game's rewards, achievements or oracle. All is counted on the host, from scenes that it
is shown anyway, in bits and without BLAS, whose threads would get in the way of XLA's.

- The signature of a goal is the change, of a fact that appears or vanishes, which its caption
  brings about far more often than other captions do, and twice as often as those of the same noun
  under other verbs. So a cow that walks off is no effect of "mine cow".
- A need is dropped that was absent in more successes than chance explains; the surer the model was
  of it, the more of them it takes.
- A need is added: where attempts fail, what most failures lack and no success does; where a caption
  comes with success only, what was there in every success, if that would surprise by chance.
- A goal that was tried hundreds of times, whatever was felt, and has no signature makes no sense so
  far: it is suggested only while something is held that it was seldom tried with.
- Doubt: now and then a need is suspended that nothing is known of, so that there can be evidence.

Axes: C captions, F facts, X conditions (facts, then kinds: any fact of a kind), D changes (facts
that appear, then facts that vanish), K kinds.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from goals.rules import Rules, say_rules
from worlds.world import EvidenceWorld

# A signature's least successes, rate, z above all other captions, and share that controls of the
# same noun do not explain.
LEAST_SUCCESSES, LEAST_RATE, LEAST_Z, LEAST_SHARE = 5, 0.05, 5.0, 0.5
LEAST_CONTROLS = 20  # times that controls of the same noun must have had the chance
SUCCESS_WEIGHT, PRIOR_WEIGHT = 4.0, 2.0  # of a surplus success, of a standard deviation, in odds
LEAST_SURPLUS = 0.5  # successes
# A need that is added was there in this share of the successes, and absent in so few beyond chance:
# what an agent mostly has by then, like a pickaxe when it makes a sword, is no need of the sword.
ALWAYS, LEAST_REFUTING = 0.98, 2.0
LEAST_FAILURES = 20
FEW_FAILURES = 0.1  # share of the chances; with fewer a caption comes with success only
LEAST_SURPRISE, LEAST_SEEN = 10.0, 10  # nats, successes
COMMON = 0.9  # share of scenes; what is as common is nothing that a success needs
MANY_ATTEMPTS, SELDOM = 300, 50  # attempts


@dataclass(frozen=True)
class Correction:
    """One difference from the model's rules; what: "drop", "add" or "senseless"."""

    goal: int
    what: str
    condition: int  # index into the conditions; -1 of a senseless goal


class Evidence:
    """Count what captions change, and correct a model's rules by it.

    margins: float [C, X], the model's word for each need in standard deviations above its
    threshold, 0 where it was not asked, or one number for all; doubt: the chance of a rollout in
    which a need is suspended that nothing is known of.
    """

    def __init__(
        self,
        world: EvidenceWorld,
        rules: Rules,
        margins: np.ndarray | float,
        seed: int = 0,
        doubt: float = 0.0,
    ):
        self.world, self.seed, self.doubt = world, seed, doubt
        self.model_rules = rules
        shape = len(world.captions), len(world.facts) + len(world.kinds)
        self.margins = np.maximum(np.broadcast_to(margins, shape), 0.0)
        self._changing = np.array([world.facts.index(fact) for fact in world.changing])
        self._felt = np.array([world.changing.index(fact) for fact in world.felt], int)
        self._kinds = [[world.facts.index(fact) for fact in kind] for kind in world.kinds]
        parts = [world.parts(caption) for caption in world.captions]
        nouns = np.array([noun for _, noun in parts])
        self._has_noun = nouns != ""
        # Numbers of what a caption is one of: its noun, its aliases, its aliases of the same noun.
        self._nouns = np.unique(nouns, return_inverse=True)[1]
        self._aliases = np.arange(len(nouns))
        for group in world.aliases:
            numbers = [world.captions.index(name) for name in group]
            self._aliases[numbers] = min(numbers)
        self._twins = self._aliases * len(nouns) + self._nouns
        self._twins = np.unique(self._twins, return_inverse=True)[1]
        self._can_need = self._find_candidates()
        num_captions, num_conditions = self.margins.shape
        shape = num_captions, 2 * len(self._changing)
        self.counts = {
            "tried": np.zeros(num_captions, np.int64),
            "with": np.zeros((num_captions, num_conditions), np.int64),
            "could": np.zeros(shape, np.int64),
            "did": np.zeros(shape, np.int64),
            "could_with": np.zeros((*shape, num_conditions), np.int64),
            "did_with": np.zeros((*shape, num_conditions), np.int64),
            "together": np.zeros((num_conditions, num_conditions), np.int64),
        }
        self.corrections: dict[Correction, str] = {}
        self._round = 0
        self.rules = self.rules_without_doubt()

    def _find_candidates(self) -> np.ndarray:
        """Return which conditions may be added to a caption's needs, bool [C, X]."""
        world = self.world
        must_be_seen = world.in_view_masks().any(-1)
        table = np.zeros((len(world.captions), len(world.facts) + len(self._kinds)), bool)
        for caption, name in enumerate(world.captions[1:], 1):
            never = world.never_needs(name)
            for fact in world.needable:
                is_allowed = fact in world.held or not must_be_seen[caption]
                table[caption, world.facts.index(fact)] = fact not in never and is_allowed
            for number, kind in enumerate(world.kinds):
                table[caption, len(world.facts) + number] = not never.intersection(kind)
        return table

    # COUNT
    def observe(self, scenes: np.ndarray, captions: np.ndarray, done: np.ndarray) -> None:
        """Count a rollout: scenes uint32 [T, N, W] before the steps, captions [T, N], done [T, N].

        The last step, whose scene after it is not here, and steps that ended an episode are left
        out.
        """
        goes_on = ~done[:-1]
        before, after = self._facts(scenes[:-1][goes_on]), self._facts(scenes[1:][goes_on])
        captions = captions[:-1][goes_on]
        held, held_after = before[:, self._changing], after[:, self._changing]
        conditions = [before, *(before[:, kind].any(1, keepdims=True) for kind in self._kinds)]
        conditions = np.concatenate(conditions, 1)
        possible = np.concatenate([~held, held], 1)
        changed = np.concatenate([~held & held_after, held & ~held_after], 1)
        counts = self.counts
        counts["together"] += _count_both(conditions, conditions)
        for caption in np.unique(captions):
            rows = captions == caption
            here, could, did = conditions[rows], possible[rows], changed[rows]
            counts["tried"][caption] += len(here)
            counts["could"][caption] += could.sum(0)
            counts["did"][caption] += did.sum(0)
            if caption:
                counts["with"][caption] += here.sum(0)
                counts["could_with"][caption] += _count_both(could, here)
                counts["did_with"][caption] += _count_both(did, here)

    def _facts(self, scenes: np.ndarray) -> np.ndarray:
        """Unpack scenes uint32 [M, W] into bool [M, F]."""
        octets = np.ascontiguousarray(scenes.astype("<u4")).view(np.uint8)
        bits = np.unpackbits(octets, axis=1, bitorder="little")
        return bits[:, : len(self.world.facts)].astype(bool)

    # CORRECT
    def signatures(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each caption's signature, int [C], -1 for none, and the controls' rate of it."""
        could, did = self.counts["could"].astype(float), self.counts["did"].astype(float)
        others = [table.sum(0) - _sum_alike(table, self._aliases) for table in (could, did)]
        same = [
            (_sum_alike(table, self._nouns) - _sum_alike(table, self._twins))
            * self._has_noun[:, None]
            for table in (could, did)
        ]
        rate, elsewhere = did / np.maximum(could, 1.0), (others[1] + 0.5) / (others[0] + 1.0)
        pooled = (did + others[1] + 0.5) / (could + others[0] + 1.0)
        inverse = 1 / np.maximum(could, 1.0) + 1 / (others[0] + 1.0)
        z = (rate - elsewhere) / np.maximum(np.sqrt(pooled * (1 - pooled) * inverse), 1e-9)
        is_enough = same[0] >= LEAST_CONTROLS
        base = np.where(is_enough, (same[1] + 0.5) / (same[0] + 1.0), elsewhere)
        is_found = (did >= LEAST_SUCCESSES) & (rate >= LEAST_RATE) & (z >= LEAST_Z)
        is_found &= rate - base >= LEAST_SHARE * rate
        is_found[0] = False
        misses = could - did
        gain = did * np.log(np.maximum(rate, 1e-9) / base)
        gain += misses * np.log(np.maximum(1 - rate, 1e-9) / (1 - base))
        best = np.where(is_found, gain, -np.inf).argmax(1)
        numbers = np.arange(len(best))
        return np.where(is_found.any(1), best, -1), base[numbers, best]

    def correct(self) -> tuple[Rules, list[str]]:
        """Return the rules as they stand now, with a further set of alternatives, and the news.

        The news are sentences, one for each correction that is new or taken back.
        """
        signatures, bases = self.signatures()
        found: dict[Correction, str] = {}
        for goal in np.flatnonzero(self.model_rules.sensible):
            if signatures[goal] < 0:
                found |= self._judge_senseless(goal)
                continue
            needs = self._needs(goal)
            dropped = self._drop(goal, needs, signatures[goal], bases[goal])
            left = [x for x in needs if Correction(goal, "drop", x) not in dropped]
            found |= dropped | self._add(goal, left, signatures[goal], bases[goal])
        news = [why for correction, why in found.items() if correction not in self.corrections]
        for correction, why in self.corrections.items():
            if correction not in found:
                news.append(f"taken back: {why}")
        self.corrections = found
        self.rules = self._apply(self._suspend())
        self._round += 1
        return self.rules, news

    def _needs(self, goal: int) -> list[int]:
        """Return the conditions that the model names for a goal."""
        kinds = self.model_rules.alternatives[goal].any(-1)
        facts = np.flatnonzero(self.model_rules.needs[goal])
        return [*facts, *(len(self.world.facts) + np.flatnonzero(kinds[: len(self._kinds)]))]

    def _drop(self, goal: int, needs: list[int], change: int, base: float) -> dict[Correction, str]:
        """Return the needs that are refuted, and why."""
        dropped = {}
        for x in needs:
            could, did = self._without(goal, change, x)
            surplus = did - base * could
            odds = PRIOR_WEIGHT * self.margins[goal, x] - SUCCESS_WEIGHT * surplus
            if surplus > LEAST_SURPLUS and odds < 0:
                why = f"{self._name(goal)}: needs {self.condition(x)} no longer"
                dropped[Correction(goal, "drop", x)] = f"{why}: {did} successes without it"
        return dropped

    def _add(self, goal: int, needs: list[int], change: int, base: float) -> dict[Correction, str]:
        """Return the needs that are missing, and why; base: the controls' rate of the change."""
        could, did = self.counts["could"][goal, change], self.counts["did"][goal, change]
        failures = could - did
        did_with = self.counts["did_with"][goal, change]
        could_with = self.counts["could_with"][goal, change]
        surplus = (did - did_with) - base * (could - could_with)
        is_always = self._can_need[goal] & (did_with >= ALWAYS * did) & (surplus <= LEAST_REFUTING)
        is_always[needs] = False
        if failures < FEW_FAILURES * could:
            return self._add_by_success(goal, needs, did, is_always)
        if failures < LEAST_FAILURES or did < LEAST_SUCCESSES:
            return {}
        lacking = 1 - (could_with - did_with) / failures
        if any(lacking[x] >= LEAST_SHARE for x in needs):
            return {}  # what is known explains the failures
        best = int(np.where(is_always, lacking, -1.0).argmax())
        if not is_always[best] or lacking[best] < LEAST_SHARE:
            return {}
        without, _ = self._without(goal, change, best)
        chance = (1 - did / could) ** without  # of as many failures, were it needless
        if np.log(max(chance, 1e-300)) > -LEAST_SURPRISE:
            return {}
        said = f"{self._name(goal)}: needs {self.condition(best)}"
        why = f"{lacking[best]:.0%} of {failures} failures lack it"
        return {Correction(goal, "add", best): f"{said}: {why}"}

    def _add_by_success(
        self, goal: int, needs: list[int], did: int, is_always: np.ndarray
    ) -> dict[Correction, str]:
        """Return what was there in every success and would else be rarer, the rarest first."""
        together, added, needs = self.counts["together"], {}, list(needs)
        number = self.counts["tried"].sum()
        if did < LEAST_SEEN:
            return {}
        while True:
            shares = [np.diag(together) / max(number, 1)]
            shares += [together[x] / max(together[x, x], 1) for x in needs]
            common = np.max(shares, axis=0)
            surprise = np.where(is_always & (common < COMMON), -did * np.log(common + 1e-9), 0.0)
            best = int(surprise.argmax())
            if surprise[best] < LEAST_SURPRISE:
                return added
            said = f"{self._name(goal)}: needs {self.condition(best)}"
            why = f"it was there in {did} successes, and is in {common[best]:.0%} of such scenes"
            added[Correction(goal, "add", best)] = f"{said}: {why}"
            needs.append(best)
            is_always = is_always & (np.arange(len(is_always)) != best)

    def _judge_senseless(self, goal: int) -> dict[Correction, str]:
        tried = self.counts["tried"][goal]
        ends = len(self._changing) + self._felt
        is_tried = tried >= MANY_ATTEMPTS and (self.counts["could"][goal, ends] >= SELDOM).all()
        if not is_tried or not self._has_noun[goal]:
            return {}
        said = f"{self._name(goal)}: makes no sense so far: {tried} attempts changed nothing"
        return {Correction(goal, "senseless", -1): said}

    def _without(self, goal: int, change: int, condition: int) -> tuple[int, int]:
        """Return how often a change could have happened, and did, without a condition."""
        return tuple(
            int(
                self.counts[name][goal, change]
                - self.counts[f"{name}_with"][goal, change, condition]
            )
            for name in ("could", "did")
        )

    def _suspend(self) -> set[tuple[int, int]]:
        """Draw the needs that doubt suspends in this round: of what nothing is known."""
        if not self.doubt:
            return set()
        rng = np.random.default_rng((self.seed, self._round))
        suspended = set()
        for goal in np.flatnonzero(self.model_rules.sensible):
            for x in self._needs(goal):
                without = self.counts["tried"][goal] - self.counts["with"][goal, x]
                if rng.random() < self.doubt and without < SELDOM:
                    suspended.add((goal, x))
        return suspended

    def rules_without_doubt(self) -> Rules:
        """Return the rules as they stand, no need suspended."""
        return self._apply(set())

    def _apply(self, suspended: set[tuple[int, int]]) -> Rules:
        """Return the model's rules with all corrections, but for suspended needs.

        The last set of alternatives holds what a senseless goal was seldom tried with.
        """
        rules, num_facts = self.model_rules, len(self.world.facts)
        needs, sensible, sets = rules.needs.copy(), rules.sensible.copy(), self._sets()
        is_held = np.isin(self.world.facts, list(self.world.held))
        changes = [(c.goal, c.condition, c.what) for c in self.corrections]
        for goal, x, what in [*changes, *((goal, x, "drop") for goal, x in suspended)]:
            if what == "senseless":
                seldom = is_held & (self.counts["with"][goal, :num_facts] < SELDOM)
                sets[goal, -1] = seldom
                sensible[goal] = seldom.any()
            elif x < num_facts:
                needs[goal, x] = what == "add"
            else:
                kind = x - num_facts
                sets[goal, kind] = False
                sets[goal, kind, self._kinds[kind]] = what == "add"
        return Rules(sensible, needs, sets)

    def _sets(self) -> np.ndarray:
        """Return the model's alternatives with an empty set more, bool [C, K + 1, F]."""
        return np.pad(self.model_rules.alternatives, ((0, 0), (0, 1), (0, 0)))

    # SAY
    def condition(self, number: int) -> str:
        """Return a condition in words."""
        facts = self.world.facts
        if number < len(facts):
            return facts[number]
        return " or ".join(facts[fact] for fact in self._kinds[number - len(facts)])

    def report(self) -> str:
        """Say the model's rules, and each that is corrected, with the reasons."""
        model = say_rules(self.world, self.model_rules)
        now = say_rules(self.world, self.rules_without_doubt())
        lines = ["By the model's word, and below it what play has corrected:", ""]
        for goal, said in model.items():
            lines.append(f"{goal}: {said}")
            reasons = [why for c, why in self.corrections.items() if self._name(c.goal) == goal]
            if reasons:
                lines.append(f"    now: {now.get(goal, 'makes no sense')}")
                lines += [f"    {why}" for why in reasons]
        return "\n".join([*lines, ""])

    def _name(self, goal: int) -> str:
        return self.world.captions[goal]

    # CHECKPOINTS
    def state(self) -> dict[str, Any]:
        """Return all that was counted, as JSON values."""
        packed = {
            name: base64.b85encode(zlib.compress(table.astype("<i8").tobytes())).decode()
            for name, table in self.counts.items()
        }
        return {"round": self._round, "counts": packed}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        for name, text in state["counts"].items():
            table = np.frombuffer(zlib.decompress(base64.b85decode(text)), "<i8")
            self.counts[name] = table.reshape(self.counts[name].shape).copy()
        self._round = state["round"]
        if self._round:
            self._round -= 1
            self.correct()


def _count_both(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return in how many rows both hold, int64 [I, J]; left, right: bool [M, I], [M, J]."""

    def pack(bits: np.ndarray) -> np.ndarray:
        columns = np.packbits(bits.T, axis=1)
        columns = np.pad(columns, ((0, 0), (0, -columns.shape[1] % 8)))
        return np.ascontiguousarray(columns).view(np.uint64)

    both = pack(left)[:, None] & pack(right)[None]
    return np.bitwise_count(both).sum(-1, dtype=np.int64)


def _sum_alike(table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return for each row the sum of the rows of its number: table [C, D], numbers [C]."""
    sums = np.zeros((numbers.max() + 1, table.shape[1]))
    np.add.at(sums, numbers, table)
    return sums[numbers]
