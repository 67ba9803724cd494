"""A causal language model of the transformers library over rows of tokens that begin alike.

What all rows begin with, the prefix, is computed once, and all rows attend to its one copy in one
matrix product. Of the library's model nothing but the attention is replaced. Letters: B rows, N new
tokens of each, S tokens of the prefix, O own keys of a row (all but the prefix's), H heads, K key
heads, E size of a head, V vocabulary, C candidates.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import transformers

from lab.errors import UserError

ATTENTION = "ellm_shared_prefix"
TOKENS_AT_ONCE = 512  # more make no product faster, but outgrow a processor's cache
LIKELY_TOKENS = 32  # of each row, whose logits are always float32
TOLERANCE = (
    0.2  # of the sum of differences between two distributions; rounding to bfloat16 makes 0.03
)
REFUSAL = (
    "the attention of this model is of a kind not known here: serve the model and give --llm-url"
)

Keys = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclasses.dataclass
class Step:
    """One forward pass as the attention sees it."""

    prefix: dict[int, Keys]  # of each layer, keys [K, E, S] and values [K, S, E]
    visible: torch.Tensor  # bool [B, N, O], which own keys a new token sees
    depths: torch.Tensor  # int64 [B, N], places of the new tokens after the prefix
    own_depths: torch.Tensor  # int64 [B, O]
    keep: Callable[
        [int, torch.Tensor, torch.Tensor], Keys
    ]  # a layer's new keys and values [B, K, N, E] to all own [B, K, O, E]
    masks: dict[tuple[int | None, int], torch.Tensor] = dataclasses.field(default_factory=dict)

    def mask(self, window: int | None, times: int) -> torch.Tensor:
        """Return what to add to the scores of `times` heads, float32 [B, 1, times * N, S + O].

        A sliding `window` hides what is further back.
        """
        if (window, times) not in self.masks:
            size = next(iter(self.prefix.values()))[1].shape[1] if self.prefix else 0
            prefix_depths = torch.arange(-size, 0, device=self.depths.device).expand(
                len(self.depths), size
            )
            key_depths = torch.cat([prefix_depths, self.own_depths], 1)
            visible = torch.cat([self.visible.new_ones(*self.depths.shape, size), self.visible], 2)
            if window is not None:
                visible &= self.depths[:, :, None] - key_depths[:, None] < window
            mask = torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)
            self.masks[window, times] = mask.repeat(1, times, 1)[:, None]
        return self.masks[window, times]


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    step: Step,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **_,
):
    """Attend to the prefix and to own keys, [B, H, N, E] -> [B, N, H, E].

    The library's layers call it.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("scores are capped or there are attention sinks")
    key, value = step.keep(module.layer_idx, key, value)
    (num_rows, num_heads, num_new, size), key_heads = query.shape, key.shape[1]
    # Heads that share a key head stand one after the other, as if they were more tokens.
    query = query.reshape(num_rows, key_heads, -1, size)
    mask = step.mask(sliding_window, num_heads // key_heads)
    length = mask.shape[-1] - key.shape[2]
    scores = torch.empty(*query.shape[:3], mask.shape[-1], device=mask.device)
    torch.add(mask[..., length:], query @ key.mT, alpha=scaling, out=scores[..., length:])
    if length:
        prefix_key, prefix_value = step.prefix[module.layer_idx]
        shared = query.transpose(0, 1).reshape(key_heads, -1, size) @ prefix_key
        shared = shared.view(key_heads, num_rows, -1, length).transpose(0, 1)
        torch.add(mask[..., :length], shared, alpha=scaling, out=scores[..., :length])
    weights = scores.softmax(-1).to(value.dtype)
    mixed = weights[..., length:] @ value
    if length:
        shared = weights[..., :length].transpose(0, 1).reshape(key_heads, -1, length) @ prefix_value
        mixed += shared.view(key_heads, num_rows, -1, size).transpose(0, 1)
    return mixed.view(num_rows, num_heads, num_new, size).transpose(1, 2), None


transformers.AttentionInterface.register(ATTENTION, attend)


def only_new(layer: int, key: torch.Tensor, value: torch.Tensor) -> Keys:
    """Keep nothing: a row's own keys are those of its new tokens."""
    return key, value


class PreciseHead(torch.nn.Module):
    """The output embeddings of a model in fewer bits, with the logits that count in float32.

    Rounding logits of 16 to 32 to bfloat16, by up to 1/16, would be coarser than what a small model
    knows, and float32 for all takes several times as long. So all are computed as the model would,
    then the likeliest of each row, which make up most of the distribution, and the `wanted` tokens,
    int64 [n], once more.
    """

    def __init__(self, head: torch.nn.Linear):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.wanted = torch.zeros(0, dtype=torch.int64, device=head.weight.device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [..., V] of hidden states [..., size]."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        likely = logits.topk(min(LIKELY_TOKENS, logits.shape[-1])).indices
        hidden = hidden.float()
        precise = (self.weight[likely].float() @ hidden[..., None])[..., 0]
        wanted = hidden @ self.weight[self.wanted].float().mT
        if self.bias is not None:
            precise, wanted = precise + self.bias[likely], wanted + self.bias[self.wanted]
        logits.scatter_(-1, likely, precise)
        logits[..., self.wanted] = wanted
        return logits


class SharedPrefixModel:
    """Compute next-token logits of rows that continue the prefix.

    sample: tokens of some text, on which `model` must say the same before and after its attention
    is replaced; raises UserError if it does not. `tokens_computed` counts tokens of prefixes and
    rows, without padding.
    """

    def __init__(self, model: transformers.PreTrainedModel, sample: Sequence[int]):
        self.model = model
        self.device = model.device
        self.tokens_computed = 0
        self._prefix: tuple[int, ...] = ()
        self._keys: dict[int, Keys] = {}
        try:
            self._head = PreciseHead(model.get_output_embeddings())
            if self._head.weight.dtype != torch.float32:
                model.set_output_embeddings(self._head)
            same = self._replace_attention(sample)
        except Exception as error:
            raise UserError(REFUSAL) from error
        if not same:
            raise UserError(REFUSAL)

    def set_prefix(self, prefix: Sequence[int]) -> None:
        """Compute the prefix, unless it is the one of before."""
        if self._prefix == tuple(prefix):
            return
        self._prefix, self._keys = (), {}
        for start in range(0, len(prefix), TOKENS_AT_ONCE):
            chunk, new = prefix[start : start + TOKENS_AT_ONCE], {}

            def note(layer, key, value, new=new):
                new[layer] = key[0].mT.contiguous(), value[0]
                return key, value

            self.forward(*self.align([chunk]), keep=note)
            for layer, (key, value) in self._keys.items():
                new[layer] = (
                    torch.cat([key, new[layer][0]], 2),
                    torch.cat([value, new[layer][1]], 1),
                )
            self._prefix, self._keys = tuple(prefix[: start + len(chunk)]), new
            self.tokens_computed += len(chunk)

    @torch.inference_mode()
    def _replace_attention(self, sample) -> bool:
        """Return whether the model is still the same."""
        half = len(sample) // 2
        expected = self.model(
            input_ids=torch.tensor([sample], device=self.device), use_cache=False
        ).logits[:, half:]
        self.model.set_attn_implementation(ATTENTION)
        self.set_prefix(sample[:half])
        found = self.forward(*self.align([sample[half:]]), num_logits=len(sample) - half)
        difference = (found.float().softmax(-1) - expected.float().softmax(-1)).abs().sum(-1).mean()
        return len(self._keys) == self.model.config.get_text_config().num_hidden_layers and bool(
            difference < TOLERANCE
        )

    def rows_at_once(self, tokens: int) -> int:
        """Return how many rows of so many tokens are best computed together."""
        return max(TOKENS_AT_ONCE // tokens, 1)

    def align(
        self, rests: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pad rows in front: return tokens int64 [B, N], and visible and depths of `Step`."""
        width = max(map(len, rests))
        pads = torch.tensor([width - len(rest) for rest in rests], device=self.device)[:, None]
        tokens = torch.tensor(
            [[0] * (width - len(rest)) + list(rest) for rest in rests], device=self.device
        )
        places = torch.arange(width, device=self.device)
        # Padding sees itself, for a softmax over nothing is undefined.
        visible = (places[:, None] >= places) & (places >= pads)[:, None] | torch.eye(
            width, dtype=torch.bool, device=self.device
        )
        return tokens, visible, places - pads

    @torch.inference_mode()
    def forward(
        self,
        tokens,
        visible,
        depths,
        own_depths=None,
        keep=only_new,
        num_logits: int = 1,
        wanted: Sequence[int] = (),
    ) -> torch.Tensor:
        """Compute new tokens, int64 [B, N]; return the last logits of each row, [B, num_logits, V].

        visible, depths, own_depths (of the new tokens if None) and keep: see Step; wanted: see
        PreciseHead.
        """
        self._head.wanted = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        step = Step(self._keys, visible, depths, depths if own_depths is None else own_depths, keep)
        positions = (depths + len(self._prefix)).clamp(min=0)
        return self.model(
            input_ids=tokens,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=num_logits,
            step=step,
        ).logits

    def next_logits(
        self, rests: Sequence[Sequence[int]], wanted: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return the logits after each rest, [B, V], precise for the `wanted` tokens."""
        self.tokens_computed += sum(map(len, rests))
        return self.forward(*self.align(rests), wanted=wanted)[:, -1]

    def log_likelihoods(self, rests: Sequence[Sequence[int]], tree: "TokenTree") -> torch.Tensor:
        """Return the log-likelihood of each candidate after each rest, float64 [B, C]."""
        tokens, visible, depths = self.align(rests)
        rows, width, nodes = len(rests), tokens.shape[1], len(tree.inner) - 1
        self.tokens_computed += sum(map(len, rests)) + rows * nodes
        # The tree's nodes stand after each row, and see the row's real tokens and their own
        # ancestors.
        tokens = torch.cat([tokens, tree.tokens.to(self.device).expand(rows, nodes)], 1)
        below = torch.cat(
            [
                visible[:, -1:].expand(rows, nodes, width),
                tree.visible.to(self.device).expand(rows, nodes, nodes),
            ],
            2,
        )
        visible = torch.cat([torch.nn.functional.pad(visible, (0, nodes)), below], 1)
        depths = torch.cat([depths, depths[:, -1:] + tree.depths.to(self.device)], 1)
        logits = self.forward(
            tokens, visible, depths, num_logits=nodes + 1, wanted=tree.edge_tokens
        )
        return torch.stack([tree.log_likelihoods(row) for row in logits])


class GrowingRows:
    """Rows that grow token by token in a fixed number of slots.

    A slot is used again when its row is done.
    """

    def __init__(self, model: SharedPrefixModel, num_slots: int, capacity: int):
        self.model, self.num_slots, self.capacity = model, num_slots, capacity
        self._keys: dict[
            int, Keys
        ] = {}  # of each layer, [slots, K, capacity, E], made when first written
        self._lengths = torch.zeros(num_slots, dtype=torch.int64, device=model.device)
        self._pads = torch.zeros_like(self._lengths)

    def start(self, slots: Sequence[int], rests: Sequence[Sequence[int]]) -> torch.Tensor:
        """Begin new rows in these slots; return the logits after each rest, [len(slots), V]."""
        tokens, visible, depths = self.model.align(rests)
        width = tokens.shape[1]
        slots = torch.tensor(slots, device=self.model.device)
        self._lengths[slots], self._pads[slots] = width, -depths[:, 0]

        def keep(layer, key, value):
            if layer not in self._keys:
                shape = (self.num_slots, key.shape[1], self.capacity, key.shape[3])
                self._keys[layer] = key.new_zeros(shape), value.new_zeros(shape)
            for store, new in zip(self._keys[layer], (key, value), strict=True):
                store[slots, :, :width] = new
            return key, value

        self.model.tokens_computed += sum(map(len, rests))
        return self.model.forward(tokens, visible, depths, keep=keep)[:, -1]

    def advance(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to the row of every slot; return the logits after it, [slots, V].

        A slot without a row takes any token.
        """
        rows = torch.arange(self.num_slots, device=self.model.device)
        own = torch.arange(self.capacity, device=self.model.device)
        places, pads = self._lengths[:, None], self._pads[:, None]

        def keep(layer, key, value):
            for store, new in zip(self._keys[layer], (key, value), strict=True):
                store[rows, :, self._lengths] = new[:, :, 0]
            return self._keys[layer]

        visible = ((own >= pads) & (own <= places))[:, None]
        tokens = torch.tensor(tokens, device=self.model.device)[:, None]
        logits = self.model.forward(tokens, visible, places - pads, own - pads, keep)
        # A slot without a row stays at its end.
        self._lengths = (self._lengths + 1).clamp(max=self.capacity - 1)
        return logits[:, -1]

    def select(self, slots: Sequence[int]) -> None:
        """Drop all rows but those in these slots, which become slots 0, 1, ..."""
        slots = torch.tensor(slots, device=self.model.device)
        self.num_slots = len(slots)
        self._lengths, self._pads = self._lengths[slots], self._pads[slots]
        self._keys = {layer: tuple(x[slots] for x in keys) for layer, keys in self._keys.items()}


class TokenTree:
    """Candidates whose first tokens are alike share them.

    Only tokens that others follow must be computed. inner: the token paths that some candidate goes
    beyond, the empty one first and parents before children.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]):
        paths = [tuple(candidate) for candidate in candidates]
        children: dict[tuple[int, ...], set[int]] = {(): set()}
        for path in paths:
            for i, token in enumerate(path):
                children.setdefault(path[:i], set()).add(token)
        self.inner = sorted(children, key=len)
        self._children = [sorted(children[path]) for path in self.inner]
        edges = [
            (*path, token)
            for path, tokens in zip(self.inner, self._children, strict=True)
            for token in tokens
        ]
        self.edge_tokens = sorted({edge[-1] for edge in edges})
        # 1 where an edge, a token after its path, is part of a candidate.
        parts = [[path[: len(edge)] == edge for path in paths] for edge in edges]
        self._parts = torch.tensor(parts, dtype=torch.float64).reshape(len(edges), len(paths))
        nodes = self.inner[1:]
        self.tokens = torch.tensor([path[-1] for path in nodes], dtype=torch.int64)
        self.depths = torch.tensor([len(path) for path in nodes], dtype=torch.int64)
        self.visible = torch.tensor(
            [[path[: len(other)] == other for other in nodes] for path in nodes], dtype=torch.bool
        )

    def log_likelihoods(self, logits: torch.Tensor) -> torch.Tensor:
        """Sum up candidates, float64 [C], from the logits after inner paths, [len(inner), V]."""
        edges = [
            row.float().log_softmax(-1)[tokens]
            for row, tokens in zip(logits, self._children, strict=True)
        ]
        return torch.cat(edges).double().cpu() @ self._parts
