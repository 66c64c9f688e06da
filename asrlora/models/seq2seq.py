"""What models with a decoder share: it continues a prompt, token by token.

A family of such models takes its `summed_loss` and `transcribe` from here, and describes its decoder in
Base.decoder. The loss does not count the prompt. Shapes as in family.py; P tokens of prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from asrlora.models.family import IGNORED, Base, Decoded, Decoder, Features, Lengths, spell
from asrlora.models.key_terms import START, State, Trie
from asrlora.score.degenerate import loops

AUTO_CLASS = "AutoModelForSpeechSeq2Seq"
REPEATED = 5  # tokens in a row that the repetition guard lets nobody write twice


def label_ids(base: Base, text: str) -> list[int]:
    """The tokens that a perfect decoder writes after the prompt, end of sentence included."""
    return [*spell(base, text), base.model.config.eos_token_id]


def refuse_more_labels(labels: list[int], limit: int) -> None:
    """Raises ValueError where a text has more tokens than the decoder can write."""
    if len(labels) > limit:
        raise ValueError(
            f"has a text of {len(labels)} tokens, and this model writes at most {limit}; shorten it or lower"
            " --max-seconds"
        )


def logits(model: Any, base: Base, features: Features, labels: torch.Tensor) -> torch.Tensor:
    """Teacher-forced logits (B, L, V) of labels (B, L)."""
    prompt = decoder(base).prompt
    start = [labels.new_full((len(labels), 1), token) for token in prompt]  # filled on the device
    previous = torch.cat([*start, labels[:, :-1]], dim=1)
    previous = previous.masked_fill(previous == IGNORED, base.model.config.pad_token_id or 0)
    # the mask masks nothing; without it Transformers asks the device whether texts are packed
    decoded = model(
        **features,
        decoder_input_ids=previous,
        decoder_attention_mask=torch.ones_like(previous),
        use_cache=False,
    )
    scores: torch.Tensor = decoded.logits[:, len(prompt) - 1 :]
    return scores


def summed_loss(
    model: Any, base: Base, features: Features, labels: torch.Tensor, lengths: Lengths
) -> torch.Tensor:
    """Cross entropy of labels (B, L) after the prompt, summed."""
    scores = logits(model, base, features, labels).float()
    return cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


class _Choices(LogitsProcessor):  # type: ignore[misc]  # Transformers has no types
    """Lets nothing but the end be written for an utterance that has reached its own limit of tokens, so
    that neither its text nor the choice of its beam depends on the limits of its neighbours. Of greedy
    choices it keeps the closest: the least margin between the best and the second token, in nats."""

    def __init__(self, limits: torch.Tensor, prompt: int, end: int) -> None:
        self.limits, self.prompt, self.end = limits, prompt, end
        self.margins = torch.full(limits.shape, torch.inf, device=limits.device)
        self.ended = torch.zeros_like(limits, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids (B, P + tokens so far) and scores (B, V) to scores (B, V)."""
        written = input_ids.shape[1] - self.prompt
        over = written >= self.limits
        self.ended |= over | ((input_ids[:, -1] == self.end) & (written > 0))
        best, second = scores.topk(2).values.unbind(1)
        self.margins = torch.where(self.ended, self.margins, torch.minimum(self.margins, best - second))
        only_end = torch.full_like(scores, -torch.inf)
        only_end[:, self.end] = 0.0
        return torch.where(over[:, None], only_end, scores)


class _KeyTerms(LogitsProcessor):  # type: ignore[misc]  # Transformers has no types
    """Adds the bonus of key terms; `blocked` holds the places of each utterance where no term begins."""

    def __init__(self, base: Base, trie: Trie, blocked: Sequence[frozenset[int]]) -> None:
        self.trie, self.blocked = trie, blocked
        self.prompt, self.beams = len(decoder(base).prompt), base.num_beams
        self.states: dict[tuple[int, ...], State] = {}  # by utterance and tokens: beams change places
        self.swayed: list[list[bool]] = []  # by place and row: whether the bonus decided

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids (B, P + tokens so far) and scores (B, V) to scores (B, V)."""
        states, rows = {}, []
        for row, tokens in enumerate(input_ids[:, self.prompt :].tolist()):
            blocked, place = self.blocked[row // self.beams], len(tokens)
            key = (row // self.beams, *tokens)
            state = START
            if tokens:
                state = self.trie.step(self.states[key[:-1]], tokens[-1], place - 1, blocked).state
            states[key] = state
            if self.beams > 1:
                rows.append(self.trie.gains(state))
            else:
                rows.append(self.trie.preference(state, place, blocked))
        self.states = states
        biased = scores + torch.from_numpy(np.stack(rows)).to(scores)
        self.swayed.append((biased.argmax(1) != scores.argmax(1)).tolist())
        return biased


def transcribe(model: Any, base: Base, features: Features, seconds: list[float]) -> list[Decoded]:
    """Greedy hypotheses, or by beam search over base.num_beams.

    Where a greedy hypothesis has begun a key term for its bonus and not completed it, the utterance is
    decoded again with no term beginning there, until none is left. Then, with the repetition guard, what
    loops or does not end is decoded once more without a repetition. Whisper's own fallback (Radford et al.,
    2022, section 4.5) raises the temperature there, and then writes another text each time.
    """
    blocked = [frozenset[int]()] * len(seconds)
    found, places = _generate(model, base, features, seconds, blocked)

    def decode_again(rows: list[int], no_repeat: int = 0) -> list[int | None]:
        """Replaces the hypotheses of these rows; returns where each has begun a term in vain."""
        some = {name: one[rows] for name, one in features.items()}
        lengths, without = [seconds[row] for row in rows], [blocked[row] for row in rows]
        repeated, places = _generate(model, base, some, lengths, without, no_repeat)
        for row, one in zip(rows, repeated, strict=True):
            # what decided to decode again has decided this hypothesis
            found[row] = replace(one, margin=min(one.margin, found[row].margin))
        return places

    again = {row: place for row, place in enumerate(places) if place is not None}
    while again:
        for row, place in again.items():
            blocked[row] |= {place}
        places = decode_again(list(again))
        again = {row: place for row, place in zip(again, places, strict=True) if place is not None}
    if base.repetition_guard:
        away = [row for row, one in enumerate(found) if one.unfinished or loops(one.text)]
        if away:
            decode_again(away, no_repeat=REPEATED)
    return found


def _generate(
    model: Any,
    base: Base,
    features: Features,
    seconds: list[float],
    blocked: Sequence[frozenset[int]],
    no_repeat: int = 0,
) -> tuple[list[Decoded], list[int | None]]:
    """Hypotheses, and where each has begun a key term that it does not complete. No `no_repeat` tokens in a
    row are written twice."""
    how = decoder(base)
    prompt, limits = how.prompt, [how.token_limit(base, one) for one in seconds]
    config, device = base.model.config, base.model.device
    of_beams = torch.tensor(limits, device=device).repeat_interleave(base.num_beams)
    choices = _Choices(of_beams, len(prompt), config.eos_token_id)
    plain = _Choices(of_beams, len(prompt), config.eos_token_id)  # whether the bonus decided is a choice too
    terms = _KeyTerms(base, base.key_terms, blocked) if base.key_terms else None
    greedy = base.num_beams == 1  # beams change places, and with them the rows of the margins
    # beams that their limit ends pay back, too
    processors = [choices] if terms is None else [plain, terms, choices] if greedy else [choices, terms]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=base.num_beams,
        no_repeat_ngram_size=no_repeat,
        max_length=len(prompt) + max(limits) + 1,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        **how.suppressed,
    )
    # the plain loop: Whisper's own generate adds long-form audio and temperatures to it
    ids = GenerationMixin.generate(
        getattr(model, "get_base_model", lambda: model)(),  # adapters are in the base's own layers
        **features,
        decoder_input_ids=torch.tensor(prompt, device=device).expand(len(limits), -1),
        logits_processor=LogitsProcessorList(processors),
        generation_config=settings,
    )
    cut = [row[len(prompt) :][:limit] for row, limit in zip(ids.tolist(), limits, strict=True)]
    texts = base.tokenizer.batch_decode(cut, skip_special_tokens=True)
    closest = torch.minimum(choices.margins, plain.margins)
    margins = closest.tolist() if greedy else [math.inf] * len(limits)
    found = [
        Decoded(text.strip(), margin, config.eos_token_id not in row)
        for text, margin, row in zip(texts, margins, cut, strict=True)
    ]
    if terms is None or not greedy:
        return found, [None] * len(found)
    swayed = zip(*terms.swayed, strict=True)
    return found, [
        terms.trie.unfinished(_up_to(row, config.eos_token_id), by_bonus, places)
        for row, by_bonus, places in zip(cut, swayed, blocked, strict=True)
    ]


def _up_to(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def decoder(base: Base) -> Decoder:
    """How the base's decoder is run."""
    assert base.decoder is not None, f"the family of {base.kind} describes its decoder"
    return base.decoder


def method(base: Base) -> dict[str, Any]:
    """How tokens are chosen, for the fingerprint."""
    chosen = {"method": "greedy"} if base.num_beams == 1 else {"method": "beam", "beams": base.num_beams}
    return {**chosen, "no_repeat_of_runaways": REPEATED} if base.repetition_guard else chosen
