"""A real HTTP server on loopback that speaks OpenAI's interface and goes wrong when told to."""

import gzip
import json
import re
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

LONGEST = 20.0  # seconds after which whatever hangs or trickles gives up by itself
MEGABYTE = 1 << 20
ROUTES = ("models", "completions", "chat/completions")
THOUGHT = (
    "Okay, the user shows a scene and wants goals.\n\nLet me think about what is worth doing:\n"
    "- think\n- think again\n\nThat is enough of it, I should now write the list that is asked for."
)


class MisbehavingServer(ThreadingHTTPServer):
    """Serve `model` at `url` until closed.

    routes: the paths under /v1/ that exist; most_listed: the most log-probabilities granted;
    own_name: what answers call the model; entry: what the list of models says of it; behind: the
    address of a real server that gives the good answers instead. Later on, fault(prompt, attempt)
    names what goes wrong with a request, "" for nothing: an HTTP status, or a key of the dicts
    below; answer(prompt) is the text of a good answer, and way(prompt) how it is said: "" plainly,
    or a key of WAYS. switch: the field that has it leave reasoning out; refuses: what is said, by
    field, to requests that have it. prompts counts what was asked, most_at_once the most requests
    under way.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        model="tiny",
        *,
        routes=ROUTES,
        most_listed=20,
        own_name=None,
        entry=None,
        behind="",
        switch="",
        refuses=None,
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.routes, self.most_listed, self.behind = model, routes, most_listed, behind
        self.own_name, self.entry = (
            own_name or model,
            {"id": model, "object": "model"} | (entry or {}),
        )
        self.fault: Callable[[str, int], str] = lambda prompt, attempt: ""
        self.answer: Callable[[str], str] = answer_to
        self.way: Callable[[str], str] = lambda prompt: ""
        self.switch, self.refuses = switch, refuses or {}
        self.counts_tokens = True
        self.redirect = ""
        self.prompts: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop answering; from now on connections are refused."""
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that has gone away is no error here."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = LONGEST

    def do_GET(self):
        self.server.headers.append(dict(self.headers))
        if self.path != "/v1/models" or "models" not in self.server.routes:
            return self.send(b'{"error": {"message": "no such path"}}', 404)
        return self.send(json.dumps({"object": "list", "data": [self.server.entry]}).encode())

    def do_POST(self):
        server = self.server
        if server.closed.is_set():
            return _reset(self)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            attempt = server.prompts[prompt]
            server.prompts[prompt] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
        try:
            self.answer(body, prompt, server.fault(prompt, attempt))
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, body, prompt, fault):
        chat = "messages" in body
        listed = body.get("top_logprobs", 0) if chat else body.get("logprobs", 0)
        if self.path.removeprefix("/v1/") not in self.server.routes:
            return self.send(b'{"detail": "Not Found"}', 404)
        if body["model"].rpartition("/")[2] != self.server.model.rpartition("/")[2]:
            return self.send(
                json.dumps(
                    {"error": {"message": f"The model {body['model']} does not exist."}}
                ).encode(),
                404,
            )
        if listed > self.server.most_listed:
            return self.send(
                json.dumps(
                    {"error": {"message": f"at most {self.server.most_listed} logprobs"}}
                ).encode(),
                400,
            )
        for field, said in self.server.refuses.items():
            if field in body:
                return self.send(json.dumps({"error": {"message": said}}).encode(), 400)
        if fault and not fault.isdecimal():
            return (FAULTS | ECHOES | REDIRECTS | ENDS)[fault](self, body, prompt)
        if fault:
            return self.send(b'{"error": {"message": "scripted"}}', int(fault))
        if self.server.behind:
            request = Request(
                self.server.behind + self.path,
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urlopen(request, timeout=LONGEST) as answer:
                return self.send(answer.read())
        return self.send(
            json.dumps(self.completion(body, prompt, self.server.answer(prompt))).encode()
        )

    def completion(self, body, prompt, text):
        """Return a good answer, said in the server's way."""
        chat = "messages" in body
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        tokens = first_tokens(prompt)
        way = self.server.way(prompt)
        if way in REASONING and self.is_silenced(body):
            way = ""
        if way:
            said = say(WAYS[way], text, body)
            choice["finish_reason"] = said.pop("finish_reason")
            choice |= (
                {"message": {"role": "assistant"} | said} if chat else {"text": said["content"]}
            )
        if way in REASONING:
            tokens = {"<think>": -1e-4, "\n": -27.0, " yes": -27.5, "Okay": -28.0}
        if body.get("logprobs") and self.server.most_listed:
            old = {"top_logprobs": [tokens]}
            new = {
                "content": [
                    {
                        "top_logprobs": [
                            {"token": token, "logprob": p} for token, p in tokens.items()
                        ]
                    }
                ]
            }
            choice["logprobs"] = new if chat else old
        answer = {"id": "1", "model": self.server.own_name, "choices": [choice]}
        if self.server.counts_tokens:
            answer["usage"] = {
                "prompt_tokens": len(prompt.split()),
                "completion_tokens": body.get("max_tokens", body.get("max_completion_tokens", 0)),
            }
        return answer

    def is_silenced(self, body):
        """Return whether a request has the server leave reasoning out."""
        asked = body.get(self.server.switch)
        return asked == "none" or (isinstance(asked, dict) and not asked["enable_thinking"])

    def send(self, content, status=200, headers=None, length=None):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        """Say nothing."""


def answer_to(prompt: str) -> str:
    """Return a text by which a test knows the question."""
    return f" what I say to {prompt}"


def first_tokens(prompt: str) -> dict[str, float]:
    """Return log-probabilities of first tokens that depend on the prompt.

    Yes and no come in two spellings each.
    """
    share = zlib.crc32(prompt.encode("utf-8", "replace")) / 2**32
    return {" yes": -0.1 - share, "Yes": -3.0, " no": -1.5 + share, " No": -2.5, " maybe": -6.0}


def say(way: Callable[[str], str], text: str, body: dict) -> dict:
    """Return the fields of a message in which a text is said in a way.

    A token is a word. As on real servers tokens are counted and stop strings sought in all that is
    generated, and what is cut is cut wherever that is.
    """
    room = body.get("max_tokens", body.get("max_completion_tokens", 100))
    tokens = re.findall(r"\s*\S+", way(text))
    whole, reason = "".join(tokens[:room]), "length" if len(tokens) > room else "stop"
    for end in body.get("stop", ()):
        if end in whole:
            whole, reason = whole.partition(end)[0], "stop"
    said = {"content": whole, "finish_reason": reason}
    for field in ("reasoning_content", "reasoning"):
        if whole.startswith(f"<{field}>"):
            thought, ended, answer = whole.partition("</>")
            said |= {"content": answer if ended else None, field: thought.partition(">")[2]}
    if whole == "(null)":
        said["content"] = None
    if whole.startswith("(parts)"):
        parts = [("thinking", THOUGHT), ("text", whole.removeprefix("(parts)"))]
        said["content"] = [{"type": kind, kind: text} for kind, text in parts]
    return said


def _hang(handler, body, prompt):
    handler.server.closed.wait(LONGEST)
    handler.close_connection = True


def _close(handler, body, prompt):
    handler.send(b'{"choices": [{"te', length=1000)
    handler.close_connection = True


def _reset(handler, *request):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def _go_away(handler, *request):
    handler.server.close()
    _reset(handler)


def _trickle(handler, body, prompt):
    handler.send(b"", length=10 * MEGABYTE)
    end = time.monotonic() + LONGEST
    while time.monotonic() < end and not handler.server.closed.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def _endless(handler, body, prompt):
    handler.send(b"", length=100 * MEGABYTE)
    for _ in range(100):
        handler.wfile.write(b" " * MEGABYTE)


def _says(make):
    """Return a fault that answers the bytes, or the JSON value, of make(prompt, good answer)."""

    def fault(handler, body, prompt):
        said = make(prompt, handler.completion(body, prompt, answer_to(prompt)))
        handler.send(said if isinstance(said, bytes) else json.dumps(said).encode())

    return fault


def _refuses(status, **headers):
    def fault(handler, body, prompt):
        late = {name: value() if callable(value) else value for name, value in headers.items()}
        handler.send(
            b"slow down", status, {name.replace("_", "-"): value for name, value in late.items()}
        )

    return fault


def _redirects(status):
    def fault(handler, body, prompt):
        handler.send(b"", status, {"Location": handler.server.redirect})

    return fault


def _with(**fields):
    """Return a fault that changes fields of the good answer's choice."""
    return _says(lambda prompt, good: good | {"choices": [good["choices"][0] | fields]})


def _echo(handler, body, prompt):
    """Repeat the key wherever a server can."""
    key = handler.headers["Authorization"]
    good = handler.completion(body, prompt, key) | {"model": key}
    handler.send(json.dumps(good).encode(), headers={"X-Key": key})


def _echo_error(handler, body, prompt):
    handler.send_response(400, handler.headers["Authorization"])
    content = json.dumps({"error": {"message": f"bad {handler.headers['Authorization']}"}}).encode()
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


REASONING = {
    "reasons in tags": lambda text: f"<think>\n{THOUGHT}\n</think>\n\n{text}",
    "reasons in tags that its template opens": lambda text: f"{THOUGHT}\n</think>\n\n{text}",
    "reasons in other tags": lambda text: f"[THINK]{THOUGHT}[/THINK]{text}",
    "reasons in reasoning_content": lambda text: f"<reasoning_content>{THOUGHT}</>{text}",
    "reasons in reasoning": lambda text: f"<reasoning>{THOUGHT}</>{text}",
}
CHATTING = {
    "begins politely": lambda text: f"Sure! Here are some goals:\n\n-{text}\n\nLet me know!",
    "begins politely and long": lambda text: f"{'Well, ' * 80}\n\n-{text}",
    "explains itself": lambda text: "\n\n".join(
        f"{number}. **{goal.strip()}** - to get on\n   It is worth it."
        for number, goal in enumerate(text.split("\n-"), 1)
    ),
    "answers in parts": lambda text: f"(parts){text}",
}
WORTHLESS = {
    "says nothing": lambda text: "",
    "says null": lambda text: "(null)",
    "never ends reasoning": lambda text: f"<think>{THOUGHT * 200}",
    "reasons and falls silent": lambda text: f"<reasoning>{THOUGHT}</>",
    "refuses politely": lambda text: "I am sorry, but I cannot help with that.\n\nBye!",
}
WAYS = REASONING | CHATTING | WORTHLESS
FAULTS = {
    "hangs": _hang,
    "closes mid-answer": _close,
    "closes at once": _reset,
    "trickles": _trickle,
    "endless": _endless,
    "429 with seconds": _refuses(429, Retry_After="7"),
    "429 with a date": _refuses(
        429,
        Retry_After=lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True),
    ),
    "429 for a year": _refuses(429, Retry_After="31536000"),
    "429 with nonsense": _refuses(429, Retry_After="soon, 99999999999999999999"),
    "not JSON": _says(lambda prompt, good: b"<html>It works!</html>"),
    "cut JSON": _says(lambda prompt, good: json.dumps(good).encode()[:-9]),
    "deep JSON": _says(lambda prompt, good: b"[" * 200_000),
    "no body": _says(lambda prompt, good: b""),
    "1 MB": _says(
        lambda prompt, good: good | {"choices": [{"text": "- goal\n" * (MEGABYTE // 7 + 1)}]}
    ),
    "Latin-1": _says(
        lambda prompt, good: json.dumps(good | {"id": "é"}, ensure_ascii=False).encode("latin-1")
    ),
    "gzip": _says(lambda prompt, good: gzip.compress(json.dumps(good).encode())),
    "half a character": _with(
        text="- \ud83d goal", message={"content": "- \ud83d goal"}, logprobs=None
    ),
    "null": _says(lambda prompt, good: None),
    "a list": _says(lambda prompt, good: [good]),
    "no choices": _says(lambda prompt, good: {"object": "text_completion"}),
    "empty choices": _says(lambda prompt, good: good | {"choices": []}),
    "null text": _with(text=None, message=None, logprobs=None),
    "a number as text": _with(text=7, message={"content": 7}, logprobs=7),
    "no logprobs": _with(text=None, logprobs={"top_logprobs": [{}]}),
    "infinite logprobs": _with(
        text=None, logprobs={"top_logprobs": [{" yes": float("-inf"), " no": -1.0}]}
    ),
    "NaN logprobs": _with(
        text=None, logprobs={"top_logprobs": [{" yes": float("nan"), " no": -1.0}]}
    ),
    "positive logprobs": _with(text=None, logprobs={"top_logprobs": [{" yes": 0.9, " no": 0.1}]}),
    "words as logprobs": _with(
        text=None, logprobs={"content": [{"top_logprobs": [{"token": " yes", "logprob": "-1"}]}]}
    ),
}
# Each of these repeats the key: wherever a good answer can, and in an error.
ECHOES = {"repeats the key": _echo, "repeats the key in an error": _echo_error}
REDIRECTS = {"redirects for good": _redirects(308), "redirects this once": _redirects(307)}
ENDS = {"goes away": _go_away}
