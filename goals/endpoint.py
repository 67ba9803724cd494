"""Who answers: a model behind any server that speaks OpenAI's HTTP interface.

What a server says is data: bounded while it is read, then checked; what is no answer is asked for
again, and a question that fails for good has the answer None. The key comes from the environment
alone and goes into one header, nowhere else.
"""

import json
import logging
import math
import os
import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import PureWindowsPath
from types import MappingProxyType
from typing import NamedTuple

import anyio
import httpx2
import numpy as np
import tenacity
from anyio.from_thread import start_blocking_portal

from goals.model import DECIMALS, LEAST_EVIDENCE, Usage
from goals.open_ended import parse_goals
from goals.reasoning import OPENINGS, begins_to_reason, is_unfinished, without_reasoning
from lab.errors import UserError

KEY_VARIABLES = ("ELLM_API_KEY", "OPENAI_API_KEY")
MIN_SECRET = 8  # characters; a shorter key ("EMPTY") is no secret, and may be a part of any answer
MAX_ANSWER_BYTES = 1_000_000
MAX_SAID = 160  # characters shown of a server's own words
CONNECT_SECONDS = 10.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds
PATIENCE = 16  # questions failed in a row, after which the rest of a batch is not asked
LISTED_TOKENS = (20, 5, 0)  # the most likely first tokens to list: as many as the server grants
PROBE = "Is fire hot? Answer yes or no:"
ROOMS = (1, 8)  # times the tokens asked for, then for an answer that is cut before it says anything
ROOMS_TO_REASON = (8, 64)
# Fields that have servers leave reasoning out, or keep it short; each knows some of them.
QUIET = (
    {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    *({"reasoning_effort": effort} for effort in ("none", "minimal", "low")),
)
# Fields that some servers refuse, and what is sent instead.
OPTIONAL = {
    **{"max_tokens": "max_completion_tokens", "max_completion_tokens": None},
    **{"temperature": None, "seed": None, "stop": None},
}
TOO_LONG = re.compile("context|too (?:long|large|many)|exceed", re.IGNORECASE)
# Part of every prompt that travels as a chat message: another text needs another word than "chat"
# in the name.
CHAT_PREFIX = "Continue this text. Write only what comes next.\n\n"

PASSING = (408, 409, 425, 429)  # and 5xx
NOT_OFFERED = (404, 405, 501)
NO_ACCESS = (401, 403)
BAD_REQUEST = (400, 422)
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

# At a lower level these log lines and headers of a server's making, which may repeat the key.
for library in ("httpx2", "httpcore2"):
    logging.getLogger(library).setLevel(logging.WARNING)


class Failure(Exception):
    """A request without an answer.

    again: another try may bring one; wait: seconds that the server asks for before it.
    """

    def __init__(
        self, reason: str, said: str = "", status: int = 0, again: bool = True, wait: float = 0.0
    ):
        super().__init__(f"{reason}: {_readable(said)}" if said else reason)
        self.reason, self.said, self.status = reason, said, status
        self.again, self.wait = again, wait


class NoConnection(Failure):
    """Nobody took the request."""


class NoEvidence(ValueError):
    """Neither yes nor no is likely to come first, but one of the tokens given."""

    def __init__(self, tokens: Sequence[str]):
        shown = _readable(", ".join(map(repr, tokens[:3])))
        super().__init__(f"the answer begins with neither yes nor no but {shown}")
        self.token = tokens[0]


class Way(NamedTuple):
    """How a server is asked.

    chat: whether prompts travel as chat messages; listed: log-probabilities to list; quiet: the
    fields that have it leave reasoning out.
    """

    chat: bool = False
    listed: int = 0
    quiet: Mapping[str, object] = MappingProxyType({})


class Introduction(NamedTuple):
    """What the answer to the probe shows.

    model: the server's name for it, "" for none; lists: whether there are log-probabilities; says:
    what the answer begins with if with neither yes nor no; reasons: whether it does with reasoning.
    """

    model: str
    lists: bool
    says: str
    reasons: bool

    @property
    def is_usable(self) -> bool:
        """Whether answers like this one can be used."""
        return not (self.reasons or self.says)

    @property
    def unfit(self) -> str:
        """Say why yes-or-no questions cannot be asked, "" if they can."""
        if not self.lists:
            return "this server gives no log-probabilities"
        if self.reasons:
            return "this model reasons before it answers, and no field switches that off"
        return self.says


class Endpoint:
    """A language model behind an OpenAI-compatible server.

    It is asked through /completions, else through /chat/completions.

    url: as http://host:8000/v1. concurrency: requests under way at once. timeout: seconds for a
    whole request, 10 of them at most to connect. retries: of a request that failed in passing (no
    connection, no answer in time, 408, 409, 425, 429, 5xx, an answer that is none), after waits
    with full jitter under a doubling bound, on top of what Retry-After asks for. max_requests,
    max_tokens: the budget, retries and the first probe included, 0 for none; tokens as the server
    counts them, and what is under way when they are spent is still paid for.

    Fields that the server refuses are left out or renamed. Reasoning is switched off where a field
    does that, and stripped elsewhere.

    `name` is "<model>@<revision>,endpoint", then ",chat" where prompts travel as chat messages, and
    ",quiet" where reasoning is switched off. The revision is what the server tells beyond the name,
    if anything: its own name for the model, vLLM's root, or the size of llama.cpp's file [bytes].
    No host is in it: the same model behind two hosts shares its answers. `requests` counts the
    requests that asked the model, `unanswered` the questions with the answer None. Threads may
    call, one at a time. Raises UserError where no server answers or it does not know the model.
    """

    can_score = False
    trouble = ""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 5,
        max_requests: int = 0,
        max_tokens: int = 0,
    ):
        if concurrency < 1 or not timeout > 0 or min(retries, max_requests, max_tokens) < 0:
            raise UserError(
                "endpoint: concurrency must be at least 1, timeout above 0, "
                "retries and budgets not negative"
            )
        self._url, self._model, self._key = _address(url), model, _key()
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self.name = f"{_file_name(model)},endpoint"
        self.usage = Usage()
        self.requests = self.unanswered = 0
        self._said: set[tuple[str, str]] = set()
        self._refused: set[str] = set()  # fields
        try:
            self._client = httpx2.AsyncClient(
                base_url=self._url,
                headers={"Accept-Encoding": "identity"}
                | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
                limits=httpx2.Limits(max_connections=concurrency),
                follow_redirects=False,  # the key is for this host alone
            )
        except (ImportError, ValueError) as error:  # a proxy by SOCKS, or one that is no address
            said = f"the proxy that the environment names cannot be used ({error})"
            raise UserError(f"{said}: unset ALL_PROXY, HTTPS_PROXY and HTTP_PROXY") from None
        self._resources = ExitStack()
        try:
            self._portal = self._resources.enter_context(start_blocking_portal())
            self._resources.enter_context(self._portal.wrap_async_context_manager(self._client))
            self._run(self._get_to_know)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str | None]:
        """See LanguageModel.

        A chat's answer ends by itself, not at a stop string, which may stand before a list. A text
        that nothing can be read from is returned as it is, reasoning too. Raises UserError only if
        the server is down or shut to us and no prompt was answered.
        """
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        return self._ask(prompts, partial(self._ask_text, options=options, stop=list(stop)))

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float] | None]:
        """See LanguageModel.

        Raises UserError as `generate` does, and where the server gives no log-probabilities.
        """
        if self._met.unfit:
            raise UserError(
                f"{self.name}: {self._met.unfit}: ask open-ended, or use vLLM or llama.cpp, "
                "with reasoning switched off"
            )
        return self._ask(prompts, partial(self._ask_one, options=self._first_token(), read=_yes_no))

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """Raise UserError: few servers tell the likelihood of a given text."""
        raise UserError(
            f"{self.name}: a server does not score candidates: "
            "ask by yes/no, or load the model in process"
        )

    def close(self) -> None:
        """Close the connections; closing twice does no harm."""
        self._resources.close()

    # Getting to know the server

    async def _get_to_know(self):
        """Find out whether the server knows the model, how to ask it, and what it is called."""
        try:
            self._met = await self._probe()
        except Failure as failure:
            raise self._explained(failure, await self._models()) from None
        told, model = _file_name(self._met.model), _file_name(self._model)
        models = await self._models()
        if models and model not in models and told.partition("@")[0] != model:
            raise self._explained(Failure("another model answers"), models)
        revision = _revision(model, told, models.get(model, {}))
        self.name = f"{model}{revision},endpoint{',chat' if self._way.chat else ''}"
        if self._way.quiet and not self._met.reasons:
            self.name += ",quiet"
        if self._met.reasons:
            self._say(Failure("the model reasons before it answers"), "that is stripped")
        if self._max_tokens and not self.usage.prompt_tokens:
            raise UserError(
                f"{self.name}: this server does not count tokens: give a budget in requests"
            )

    async def _probe(self) -> Introduction:
        """Settle on the first way of asking that the server takes and whose answers can be used.

        Where there is none, on the first without reasoning, else on the last.
        """
        tried: list[tuple[Way, Introduction]] = []
        for chat in (False, True):
            try:
                tried.append(await self._introduce(chat))
                if chat and not tried[-1][1].is_usable:
                    tried += await self._silence(*tried[-1])
            except Failure as failure:
                if not tried and failure.status not in (*NOT_OFFERED, *BAD_REQUEST):
                    raise
                refusal = failure
            if tried and tried[-1][1].is_usable:
                break
        if not tried:
            raise refusal
        usable = [way for way in tried if way[1].is_usable]
        silent = [way for way in tried if not way[1].reasons]
        self._way, met = (usable or silent or tried[-1:])[0]
        return met

    async def _introduce(self, chat: bool) -> tuple[Way, Introduction]:
        """Send the probe with as many log-probabilities as the server grants."""
        for listed in LISTED_TOKENS:
            self._way = Way(chat, listed)
            try:
                met = await self._ask_one(PROBE, self._first_token(), _introduction)
            except Failure as failure:
                if failure.status not in BAD_REQUEST:
                    raise
                refusal = failure
            else:
                return self._way._replace(listed=listed if met.lists else 0), met
        raise refusal

    async def _silence(self, way: Way, met: Introduction) -> list[tuple[Way, Introduction]]:
        """Send the probe with the fields that may switch reasoning off, until one does."""
        tried = []
        for quiet in QUIET:
            self._way = way._replace(quiet=quiet)
            try:
                met = await self._ask_one(PROBE, self._first_token(), _introduction)
            except Failure as failure:
                if failure.status not in BAD_REQUEST:
                    raise
                self._say(Failure(f"{', '.join(quiet)} refused", failure.said), "left out")
                continue
            tried.append((self._way, met))
            if met.is_usable:
                break
        return tried

    async def _models(self) -> dict[str, dict]:
        """Return what the server lists, by name and alias; nothing where it lists nothing."""
        try:
            listed = await self._exchange("GET", "models")
            names = [
                (name, entry)
                for entry in listed["data"]
                for name in (entry["id"], *(entry.get("aliases") or ()))
            ]
            return {_file_name(name): entry for name, entry in names}
        except (Failure, *MALFORMED):
            return {}

    def _explained(self, failure, models=()):
        """Return what a failure means to the user."""
        if isinstance(failure, NoConnection):
            advice = f"start one, e.g. vllm serve {self._model}, or check --llm-url"
            where = self._url
            if proxy := _proxy(self._url):
                where += f" through the proxy {proxy} that the environment names"
                advice = f"check the proxy, or set NO_PROXY={httpx2.URL(self._url).host}"
            return UserError(f"no server answers at {where} ({failure}): {advice}")
        if failure.status in NO_ACCESS:
            return UserError(
                f"the server at {self._url} lets nobody in without its key ({failure}): "
                f"set {KEY_VARIABLES[0]}"
            )
        advice = "check --llm and --llm-url"
        if models and _file_name(self._model) not in models:
            advice = f"give --llm one of {_readable(', '.join(sorted(models)))}"
        return UserError(
            f"the server at {self._url} does not answer as {self._model} ({failure}): {advice}"
        )

    # Asking

    def _ask(self, prompts, ask):
        start = time.perf_counter()
        try:
            return self._run(self._ask_all, prompts, ask)
        finally:
            self.usage.seconds += time.perf_counter() - start

    def _run(self, function: Callable[..., Awaitable], *args):
        """Wait for a coroutine on the endpoint's own event loop; Ctrl-C ends it."""
        result = self._portal.start_task_soon(function, *args)
        try:
            return result.result()
        except BaseException:
            result.cancel()
            raise

    async def _ask_all(self, prompts, ask):
        answers = [None] * len(prompts)
        failures: list[Failure] = []  # since the last answer
        waiting = iter(enumerate(prompts))

        async def work():
            for row, prompt in waiting:
                hopeless = (
                    f"{PATIENCE} questions in a row failed"
                    if len(failures) >= PATIENCE
                    else self._spent()
                )
                if hopeless:
                    self._leave(Failure(hopeless))
                    continue
                self.usage.queries += 1
                try:
                    answers[row] = await ask(prompt)
                    failures.clear()
                except Failure as failure:
                    failures.append(failure)
                    self._leave(failure)

        async with anyio.create_task_group() as group:
            for _ in range(min(self._concurrency, len(prompts))):
                group.start_soon(work)
        if failures and all(answer is None for answer in answers):
            last = failures[-1]
            if isinstance(last, NoConnection) or last.status in (*NO_ACCESS, 404):
                raise self._explained(last)
        return answers

    async def _ask_text(self, prompt, options, stop):
        """Ask for a text, once more with more room if it is cut before it says anything.

        So if reasoning took the room. Of a chat's answer that is cut, which should have ended by
        itself, whole lines count, and say something if there is a goal among them.
        """
        text, ends_by_itself = None, self._way.chat or self._met.reasons
        ask = self._ask_one
        for room in ROOMS_TO_REASON if self._met.reasons else ROOMS:
            asked = options | {"max_tokens": room * options["max_tokens"]}
            # A stop string may stand in the midst of reasoning.
            if stop and not (ends_by_itself or text):
                asked["stop"] = stop
            try:
                text, is_cut, reasoned = await ask(prompt, asked, partial(_text, stop=stop))
            except Failure:
                if text is None:
                    raise
                break
            ask = self._try  # once: more room takes a server long
            says = without_reasoning(text).strip()
            if is_cut and says and ends_by_itself:
                text = text.rpartition("\n")[0]
                says = parse_goals(text)
            if not is_cut or (says and not reasoned):
                break
        return text

    async def _ask_one(self, prompt, options, read):
        """Ask as long as another try may bring an answer; return what `read` makes of it."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, Failure) and error.again
            ),
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=_wait,
            sleep=anyio.sleep,
            before_sleep=lambda state: self._say(state.outcome.exception(), "asking again"),
            reraise=True,
        )
        return await retrying(self._try, prompt, options, read)

    async def _try(self, prompt, options, read):
        """Ask once, or until the server refuses no field; within the budget."""
        path, text = "completions", {"prompt": prompt}
        if self._way.chat:
            path = "chat/completions"
            text = {"messages": [{"role": "user", "content": CHAT_PREFIX + prompt}]}
        refusals: dict[str, Failure] = {}
        while True:
            spent = self._spent()
            if spent:
                raise Failure(spent, again=False)
            self.requests += 1
            fields = _without(options, {*self._refused, *refusals})
            body = {"model": self._model} | text | self._way.quiet | fields
            try:
                answer = await self._exchange("POST", path, body)
                break
            except Failure as failure:
                field = _refused_field(failure, fields)
                if field is None:
                    raise
                refusals[field] = failure
        for field, failure in refusals.items():
            self._refused.add(field)
            instead = OPTIONAL[field]
            outcome = f"{instead} is sent instead" if instead else "left out"
            self._say(Failure(f"{field} refused", failure.said), outcome)
        try:
            self.usage.prompt_tokens += _count(answer, "prompt_tokens")
            self.usage.generated_tokens += _count(answer, "completion_tokens")
            return read(answer)
        except NoEvidence as error:
            raise Failure(str(error), again=False) from None
        except MALFORMED:
            raise Failure("an answer that is no completion") from None

    async def _exchange(self, method, path, body=None):
        """Send one request; return the JSON value of its answer, or raise Failure."""
        data = bytearray()
        # ASCII, since a prompt may hold what UTF-8 cannot.
        content, headers = (
            (json.dumps(body).encode(), {"Content-Type": "application/json"})
            if body
            else (None, None)
        )
        try:
            with anyio.fail_after(self._timeout):
                async with self._client.stream(
                    method, path, content=content, headers=headers
                ) as response:
                    async for block in response.aiter_raw():
                        data += block
                        if len(data) > MAX_ANSWER_BYTES:
                            raise Failure(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NoConnection("no connection", str(error)) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise Failure(f"no whole answer within {self._timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise Failure("a broken connection", type(error).__name__) from None
        if not response.is_success:
            raise self._refusal(response, data)
        return self._parse(data)

    def _refusal(self, response, data):
        """Return the Failure that an answer with an error status is."""
        try:
            said = self._parse(data)
            while isinstance(said, dict):
                said = said.get("error") or said.get("message") or said.get("detail")
        except Failure:
            said = None
        status = response.status_code
        again = status in PASSING or (response.is_server_error and status not in NOT_OFFERED)
        wait = _retry_after(response.headers.get("Retry-After"))
        return Failure(f"HTTP {status}", str(said or ""), status, again, wait)

    def _parse(self, data):
        """Return the JSON value of an answer; raise Failure if it has none or repeats the key."""
        try:
            answer = json.loads(bytes(data))
            repeats = len(self._key) >= MIN_SECRET and json.dumps(self._key)[1:-1] in json.dumps(
                answer
            )
        except MALFORMED:
            raise Failure("an answer that is not JSON") from None
        if repeats:
            raise Failure("an answer that repeats the key")
        return answer

    def _first_token(self):
        options = {"max_tokens": 1, "temperature": 0.0}
        if not self._way.listed:
            return options
        return options | (
            {"logprobs": True, "top_logprobs": self._way.listed}
            if self._way.chat
            else {"logprobs": self._way.listed}
        )

    def _spent(self) -> str:
        """Return which budget is spent, "" if none."""
        if 0 < self._max_requests <= self.requests:
            return f"the budget of {self._max_requests} requests is spent"
        if 0 < self._max_tokens <= self.usage.prompt_tokens + self.usage.generated_tokens:
            return f"the budget of {self._max_tokens} tokens is spent"
        return ""

    def _leave(self, failure):
        """Count a question that stays unanswered."""
        self.unanswered += 1
        self.trouble = str(failure)
        self._say(failure, "no answer")

    def _say(self, failure, outcome):
        """Tell the user what went wrong and what comes of it, once for each reason."""
        if (failure.reason, outcome) not in self._said:
            self._said.add((failure.reason, outcome))
            print(f"{self.name}: {failure}: {outcome}", file=sys.stderr, flush=True)


def _address(url: str) -> str:
    """Return the base address of the interface, /v1 where only a host is given."""
    try:
        address = httpx2.URL(url if "://" in url else f"http://{url}")
    except httpx2.InvalidURL:
        raise UserError("--llm-url is no address: give one like http://host:8000/v1") from None
    # Not shown: what is refused here may be a secret.
    if address.userinfo or address.query or address.fragment:
        raise UserError(
            "--llm-url takes no user, password or query: "
            f"set the key by the environment variable {KEY_VARIABLES[0]}"
        )
    if address.scheme not in ("http", "https") or not address.host:
        raise UserError("--llm-url is no http or https address: give one like http://host:8000/v1")
    return str(address.copy_with(path=address.path.rstrip("/") or "/v1"))


def _proxy(url: str) -> str:
    """Return host and port of the proxy that the environment names for an address, "" if none."""
    address, proxies = httpx2.URL(url), urllib.request.getproxies()
    if urllib.request.proxy_bypass(address.host):
        return ""
    proxy = proxies.get(address.scheme) or proxies.get("all") or ""
    named = httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")
    return f"{named.host}:{named.port}" if proxy else ""  # its password is not shown


def _key() -> str:
    """Return the key that the environment holds, "" if none."""
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"the environment variable {variable} holds characters that no key has: set it anew"
            )
        if key:
            return key
    return ""


def _wait(state: tenacity.RetryCallState) -> float:
    """Return the seconds before the next try: what the server asks for, and a draw on top.

    The bound of the draw doubles.
    """
    return state.outcome.exception().wait + tenacity.wait_random_exponential(
        multiplier=FIRST_WAIT, max=LONGEST_WAIT
    )(state)


def _retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, at most LONGEST_WAIT; 0 for none.

    The header is a number or an HTTP date.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except MALFORMED:
            return 0.0
    return min(LONGEST_WAIT, max(0.0, seconds))


def _revision(model: str, told: str, entry: dict) -> str:
    """Return what a server tells of a model beyond its name, "" if nothing."""
    meta = entry.get("meta")
    for known in (told, entry.get("root"), meta.get("size") if isinstance(meta, dict) else None):
        revision = _readable(_file_name(str(known or "")).removeprefix(f"{model}@"))
        if revision not in ("", model):
            return f"@{revision}"
    return ""


def _file_name(name: str) -> str:
    """Return the last part of a path: where a server keeps a model says nothing of the model."""
    path = PureWindowsPath(name)
    return path.name if path.root else name


def _without(options: Mapping[str, object], refused: set[str]) -> dict[str, object]:
    """Return the fields of a request, those that are refused left out or renamed."""
    fields = {}
    for field, value in options.items():
        while field in refused:
            field = OPTIONAL[field]
        if field is not None:
            fields[field] = value
    return fields


def _refused_field(failure: Failure, fields: Mapping[str, object]) -> str | None:
    """Return which field a server refuses by its word, None if it refuses something else."""
    if failure.status not in BAD_REQUEST or TOO_LONG.search(failure.said):
        return None
    named = (field for field in OPTIONAL if re.search(rf"\b{field}\b", failure.said))
    return next((field for field in named if field in fields), None)


def _introduction(answer) -> Introduction:
    """Read the answer to the probe."""
    told, choice = answer.get("model"), answer["choices"][0]
    lists, says, begins = choice.get("logprobs") is not None, "", ""
    if lists:
        try:
            _yes_no(answer)
        except NoEvidence as error:
            says, begins = str(error), error.token
        except MALFORMED:
            pass  # it is met again where the questions are asked
    try:
        text, thought = _content(choice)
        reasons = bool(thought) or begins_to_reason(begins) or begins_to_reason(text)
    except MALFORMED:
        reasons = False
    return Introduction(told if isinstance(told, str) else "", lists, says, reasons)


def _content(choice) -> tuple[str, str]:
    """Return the text of an answer's choice, and the reasoning in a field of its own, if any."""
    if "message" not in choice:
        return choice["text"], ""
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return "" if content is None else content, thought


def _text(answer, stop: Sequence[str]) -> tuple[str, bool, bool]:
    """Return the text of an answer, without reasoning, whether it was cut, and held reasoning.

    The text of a chat is whole, of any other what stands before the first stop string. An answer
    that says nothing is returned as it is, with its reasoning, which then never ends.
    """
    choice = answer["choices"][0]
    content, thought = _content(choice)
    text = without_reasoning(content)
    reasoned = bool(thought) or text != content
    if not text.strip():
        text = content if content.strip() or not thought else f"{OPENINGS[0]}{thought}"
    elif "message" not in choice:
        for end in stop:
            text = text.partition(end)[0]
    text.encode()  # refuses what is no text, and half characters
    is_cut = choice.get("finish_reason") == "length" or is_unfinished(content)
    return text, is_cut, reasoned


def _yes_no(answer) -> tuple[float, float]:
    """Return the log-probabilities of yes and no among the first tokens that the answer lists.

    Raises NoEvidence where they list neither, or as what is next to impossible.
    """
    told = answer["choices"][0]["logprobs"]
    if "content" in told:  # chat, and llama.cpp
        listed = [
            (token["token"], token["logprob"]) for token in told["content"][0]["top_logprobs"]
        ]
    else:
        listed = list(told["top_logprobs"][0].items())
    if not all(-math.inf < p < 0.01 for _, p in listed):
        raise ValueError("no log-probabilities")
    # A word that is not listed is at most as likely as the last that is.
    least = min(p for _, p in listed)
    said = [[p for token, p in listed if token.strip().lower() == word] for word in ("yes", "no")]
    if np.logaddexp.reduce([*said[0], *said[1]]) < LEAST_EVIDENCE:
        raise NoEvidence([token for token, _ in sorted(listed, key=lambda pair: -pair[1])])
    yes, no = (round(float(np.logaddexp.reduce(ps or [least])), DECIMALS) for ps in said)
    return yes, no


def _count(answer, what: str) -> int:
    """Return how many tokens a server says that it computed, 0 if it does not say."""
    usage = answer.get("usage")
    count = usage.get(what) if isinstance(usage, dict) else 0
    return count if isinstance(count, int) and count > 0 else 0


def _readable(text: str) -> str:
    """Return one short line that can be shown."""
    return "".join(filter(str.isprintable, " ".join(text.split())))[:MAX_SAID]
