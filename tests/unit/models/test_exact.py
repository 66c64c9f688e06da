"""No hypothesis depends on its batch: every family against Transformers' own model on the utterance alone."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
from asrlora import allocation, cli
from asrlora.data import loader
from asrlora.data.manifest import read_manifest
from asrlora.data.shards import cache, reader
from asrlora.engine.evaluate import Evaluation, evaluate, fingerprint
from asrlora.engine.heartbeats import Work
from asrlora.engine.signals import StopRequest
from asrlora.models import ctc, decode, moonshine, objective, padding, registry, seq2seq
from asrlora.models.family import Base, Decoded, Features
from asrlora.score import degenerate, text
from asrlora.score.scoring import score
from conftest import BASE, Speech

NORMALISER = text.normaliser(None, "en")

SAMPLES = [16_037, 24_000, 20_123, 8_001, 900]  # of no stride a multiple
KINDS = [*tiny.KINDS, "hubert-group", "wavlm-group"]


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, folders: dict[str, str]) -> Base:
    return registry.load_base(folders[request.param])


@pytest.fixture(scope="module")
def demo_base() -> Base:
    return registry.load_base(str(BASE))


@pytest.fixture(scope="module")
def heldout(speech: Speech) -> reader.Shards:
    return cache.cached(read_manifest(speech.heldout)[:20])


def noise(base: Base) -> list[np.ndarray[Any, np.dtype[np.int16]]]:
    rng = np.random.default_rng(0)
    shortest = 2_000 if base.frames else 0  # frames for three tokens
    return [(2_000 * rng.standard_normal(max(n, shortest))).astype(np.int16) for n in SAMPLES]


def plain_transformers(base: Base) -> Any:
    kind = getattr(transformers, "AutoModelForCTC" if base.frames else seq2seq.AUTO_CLASS)
    return kind.from_pretrained(base.folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def test_a_batch_has_the_logits_of_each_utterance_alone_by_transformers(base: Base) -> None:
    """Unpadded, and without a mask where the model was trained without. Red when a norm runs over padding,
    or when attention sees a frame of it."""
    plain, pcms = plain_transformers(base), noise(base)
    labels = objective.pad_labels([base.label_ids(base, "abc")] * len(pcms))
    together = objective.logits(base.model, base, *loader.pad(pcms), labels)
    for row, pcm in enumerate(pcms):
        # Moonshine Streaming's own processor fills up its last 5 ms
        extra = -len(pcm) % 80 if base.kind == "moonshine_streaming" else 0
        wave = torch.from_numpy(np.pad(pcm, (0, extra)) / 32768).float()[None]
        mask = torch.ones_like(wave, dtype=torch.long)
        mask[:, len(pcm) :] = 0
        features = base.family.features(base, wave, mask)
        start = 0
        if base.frames:
            if getattr(base.model.config, "feat_extract_norm", None) == "group":
                del features["attention_mask"]
            alone = plain(**features).logits[0]
            alone = alone[: ctc.frames(base, len(pcm))]
        else:
            start = len(seq2seq.decoder(base).prompt) - 1
            alone = seq2seq.logits(plain, base, features, labels[:1])[0, : int((labels[0] >= 0).sum())]
        ours = together[row, start : start + len(alone)]
        assert float((ours - alone).abs().max() / alone.abs().max()) < 1e-5, len(pcm)


class Rank:
    """What `evaluate` needs of a runtime; the ranks of one evaluation run one after the other, 0 last."""

    device, stop, threads = torch.device("cpu"), StopRequest(), allocation.of_process()

    def __init__(self, rank: int, world_size: int, gathered: list[Any]) -> None:
        self.rank, self.world_size, self.gathered = rank, world_size, gathered
        self.work, self.collectives = Work(), self

    def gather(self, items: list[Any]) -> list[Any] | None:
        self.gathered += items
        return None if self.rank else self.gathered

    def all_reduce_sum(self, *values: float) -> Sequence[float]:
        return values


def evaluated(base: Base, data: reader.Shards, seconds: float, world: int = 1) -> Evaluation:
    gathered: list[Any] = []
    for rank in reversed(range(world)):
        found = evaluate(Rank(rank, world, gathered), base.model, base, data, seconds, NORMALISER)  # type: ignore[arg-type]  # a stand-in
        assert found is not None
    return found


def test_hypotheses_are_the_same_at_any_budget_world_size_and_order(
    demo_base: Base, heldout: reader.Shards, speech: Speech
) -> None:
    """Red when padding has an effect: then one in five differs."""
    alone = evaluated(demo_base, heldout, 0.1)  # each utterance is longer: batches of one
    lines = speech.heldout.read_text().splitlines(keepends=True)[:20]
    random.Random(0).shuffle(lines)
    shuffled = speech.heldout.with_name("shuffled.jsonl")
    shuffled.write_text("".join(lines))
    mixed = cache.cached(read_manifest(shuffled))
    assert [s.id for s in mixed.samples] != [s.id for s in heldout.samples]
    for data, seconds, world in (
        (heldout, 7.0, 1), (heldout, 20.0, 2), (mixed, 20.0, 3), (heldout, 1e4, 1), (mixed, 1e4, 3),
    ):  # fmt: skip
        assert evaluated(demo_base, data, seconds, world) == alone, (seconds, world)


@torch.inference_mode()
def test_texts_of_every_family_are_the_same_in_any_batch(base: Base) -> None:
    pcms = noise(base)
    seconds = [len(pcm) / 16_000 for pcm in pcms]

    def texts(rows: list[int]) -> dict[int, str]:
        waves, mask = loader.pad([pcms[row] for row in rows])
        written = decode.transcribe(base.model, base, waves, mask, [seconds[row] for row in rows])
        return {row: one.text for row, one in zip(rows, written, strict=True)}

    alone = {row: texts([row])[row] for row in range(len(pcms))}
    for rows in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 1]):
        assert texts(rows) == {row: alone[row] for row in rows}


def test_a_near_tie_is_decided_by_the_utterance_alone(base: Base) -> None:
    """Rounding differs from batch to batch; here it always decides."""
    asked: list[tuple[int, int]] = []

    class Rounding:
        @staticmethod
        def features(base: Base, waves: torch.Tensor, mask: torch.Tensor) -> Features:
            return {"waves": waves}

        @staticmethod
        def transcribe(model: Any, base: Base, features: Features, seconds: list[float]) -> list[Decoded]:
            waves = features["waves"]
            asked.append(tuple(waves.shape))
            return [Decoded(f"{s} among {len(waves)}", margin=0.9e-3 if s < 1 else 0.1) for s in seconds]

    waves, mask = loader.pad([np.ones(n, np.int16) for n in (20_000, 4_000)])
    written = decode.transcribe(
        base.model, replace(base, family=Rounding), waves, mask, [1.25, 0.25]  # type: ignore[arg-type]  # a stand-in
    )  # fmt: skip
    assert [one.text for one in written] == ["1.25 among 2", "0.25 among 1"]
    assert asked == [(2, 24_000), (1, 8_000)]


def test_margins_are_those_of_the_logits(demo_base: Base, heldout: reader.Shards) -> None:
    """Of teacher forcing along the hypothesis, in a batch with a longer one that goes on after its end."""
    order = sorted(range(len(heldout.samples)), key=lambda i: heldout.samples[i].duration)
    numbers = [order[0], order[-1]]
    waves, mask = loader.pad([heldout.read(n) for n in numbers])
    seconds = [heldout.samples[n].duration for n in numbers]
    short = decode.transcribe(demo_base.model, demo_base, waves, mask, seconds)[0]
    labels = objective.pad_labels([demo_base.label_ids(demo_base, short.text)])
    with torch.inference_mode():
        scores = objective.logits(demo_base.model, demo_base, waves[:1], mask[:1], labels)[0]
    best, second = scores[labels[0] >= 0].topk(2).values.unbind(1)
    assert short.margin == pytest.approx(float((best - second).min()), abs=1e-3)


def test_the_decode_configuration_knows_no_batch(demo_base: Base) -> None:
    assert "batch_seconds" not in fingerprint(demo_base, NORMALISER, "wer")["decode"]


def test_a_decoder_that_runs_to_its_limit_is_counted(
    demo_base: Base, heldout: reader.Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each at its own limit, whoever shares the batch; what was written until then stands."""
    whole = evaluated(demo_base, heldout, 160.0)
    assert (whole.degenerate["empty"], whole.degenerate["runaway"]) == (0, 0)
    monkeypatch.setattr(moonshine, "_TOKENS_PER_SECOND", {"characters": 3.0})
    monkeypatch.setattr(moonshine, "_EXTRA_TOKENS", 0)
    cut = evaluated(demo_base, heldout, 160.0)
    assert (cut.degenerate["empty"], cut.degenerate["runaway"]) == (0, len(heldout.samples))
    assert cut == evaluated(demo_base, heldout, 9.0)
    for before, after in zip(whole.hypotheses, cut.hypotheses, strict=True):
        assert before.hypothesis_raw.startswith(after.hypothesis_raw)
    monkeypatch.setattr(moonshine, "_TOKENS_PER_SECOND", {"characters": 0.0})
    nothing = evaluated(demo_base, heldout, 160.0)
    assert nothing.degenerate["empty"] == len(heldout.samples)
    assert all(h.deletions == h.words for h in nothing.hypotheses)


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("the ship the ship the ship the ship", True),
        ("so go go go go on", True),
        ("the ship the ship the ship", False),
        ("go go go gone", False),
        ("a big a big a big a bigger one", False),
        (" ".join(["one two three four five six seven eight"] * 4), True),
        ("", False),
    ],
)
def test_a_loop_is_the_same_words_four_times_in_a_row(text: str, loop: bool) -> None:
    assert degenerate.loops(text) == loop
    assert degenerate.ran_away("something else", text, unfinished=False) == loop


def test_what_the_speaker_repeats_is_no_runaway() -> None:
    assert not degenerate.ran_away("no no no no", "no no no no no", unfinished=False)


def test_runaways_are_counted_with_their_errors_and_the_worst_of_them() -> None:
    texts = {
        "a": ("one two", "one two"),
        "b": ("five", "go go go go"),
        "c": ("six", "so " + "up " * 99),
        "d": ("", ""),
    }
    scored = [score(name, *pair, text.normaliser("none", "en"), None, 1.0) for name, pair in texts.items()]
    half, rest = degenerate.count(scored[:2]), degenerate.count(scored[2:])
    found = degenerate.add(half, rest)
    assert {key: found[key] for key in ("empty", "runaway", "runaway_errors")} == {
        "empty": 0,
        "runaway": 2,
        "runaway_errors": 4 + 100,
    }
    described = degenerate.describe({**found, "substitutions": 100, "insertions": 10})
    assert described.startswith("2 ran away (104 of 110 word errors; c: … ")
    assert described.endswith("up up)")
    assert len(described) < 150
    assert degenerate.describe({**degenerate.count(scored[:1]), "empty": 2}) == "2 empty"
    assert degenerate.describe(degenerate.count(scored[:1])) == ""


def test_beams_are_transformers_own_in_any_batch(heldout: reader.Shards) -> None:
    base = registry.load_base(str(BASE), registry.Decoding(num_beams=3))
    pcms = [heldout.read(n) for n in range(6)]
    seconds = [heldout.samples[n].duration for n in range(6)]
    together = decode.transcribe(base.model, base, *loader.pad(pcms), seconds)
    plain = plain_transformers(base)
    for pcm, one, length in zip(pcms, together, seconds, strict=True):
        wave = torch.from_numpy(pcm / 32768).float()[None]
        limit = moonshine.token_limit(base, length) + 1
        own = plain.generate(
            wave,
            attention_mask=torch.ones_like(wave).long(),
            num_beams=3,
            do_sample=False,
            max_new_tokens=limit,
        )
        assert one.text == base.tokenizer.batch_decode(own, skip_special_tokens=True)[0].strip()
    assert decode.fingerprint(base) != decode.fingerprint(registry.load_base(str(BASE)))


@pytest.mark.parametrize("kind", ["moonshine", "whisper"])
def test_the_guard_writes_anew_what_ran_away_and_nothing_else(kind: str, folders: dict[str, str]) -> None:
    """By Transformers' own n-gram rule on the utterance alone, whatever shares the batch."""
    guarded = registry.load_base(folders[kind], registry.Decoding(repetition_guard=True))
    plain = registry.load_base(folders[kind])
    pcms = [*noise(plain), *(np.zeros(size, np.int16) for size in (8_000, 16_000))]
    seconds = [len(pcm) / 16_000 for pcm in pcms]
    free, held = (decode.transcribe(b.model, b, *loader.pad(pcms), seconds) for b in (plain, guarded))
    away = [one.unfinished or degenerate.loops(one.text) for one in free]
    assert any(away)
    own = plain_transformers(plain)
    for pcm, length, before, after, ran in zip(pcms, seconds, free, held, away, strict=True):
        (alone,) = decode.transcribe(guarded.model, guarded, *loader.pad([pcm]), [length])
        assert alone.text == after.text
        if not ran:
            assert after.text == before.text
            continue
        waves, mask = loader.pad([pcm])
        ids = own.generate(
            **objective.features(plain, waves, mask),
            decoder_input_ids=torch.tensor([seq2seq.decoder(plain).prompt]),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=seq2seq.decoder(plain).token_limit(plain, length),
                no_repeat_ngram_size=seq2seq.REPEATED,
                eos_token_id=plain.model.config.eos_token_id,
                pad_token_id=plain.model.config.pad_token_id,
                **seq2seq.decoder(plain).suppressed,
            ),
        )
        assert after.text == plain.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert decode.fingerprint(guarded) != decode.fingerprint(plain)
    assert "no_repeat_of_runaways" not in decode.fingerprint(plain)


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--num-beams", "2"], "--num-beams 2: wav2vec2 is a CTC model and has no beams"),
        (["--repetition-guard"], "--repetition-guard: wav2vec2 is a CTC model, which never repeats itself"),
    ],
)
def test_ctc_has_nothing_of_a_decoder(
    flags: list[str],
    refused: str,
    folders: dict[str, str],
    tmp_path: Path,
    speech: Speech,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--manifest-path", str(speech.heldout), "--output-dir", str(tmp_path / "out"), *flags]
    assert cli.main(["eval", "--model-id", folders["wav2vec2"], *words]) == 2
    assert refused in capsys.readouterr().err


def test_the_masked_norm_is_torchs_own_on_each_utterance_in_fp32_and_bf16() -> None:
    torch.manual_seed(0)
    parent = torch.nn.Module()
    parent.norm = torch.nn.GroupNorm(2, 6)
    torch.nn.init.normal_(parent.norm.weight)
    own = parent.norm
    masked = padding.mask_norm(parent, "norm")
    assert [name for name, _ in parent.named_parameters()] == ["norm.weight", "norm.bias"]
    values = 3 + torch.randn(3, 6, 50)
    masked.frames = torch.tensor([50, 17, 1])
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found = masked(values.to(kind))
        assert found.dtype == kind
        for row, count in enumerate(masked.frames.tolist()):
            alone = own(values[row : row + 1, :, :count])[0]
            assert torch.allclose(found[row, :, :count].float(), alone, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moonshine", "moonshine_streaming", "wav2vec2-group"])
def test_padding_has_no_effect_on_a_compiled_step_either(kind: str, tmp_path: Path) -> None:
    """Traced only (backend eager): what hooks leave on a module must not become a constant."""
    base = registry.load_base(tiny.save(kind, tmp_path))
    traced = torch.compile(base.model, backend="eager")
    pcms = noise(base)
    for some in (pcms[:2], [pcms[1], pcms[0]], [pcms[3], pcms[1]]):
        waves, mask = loader.pad(some)
        labels = objective.pad_labels([base.label_ids(base, "abc")] * 2)
        with torch.no_grad():
            plain = objective.summed_loss(base.model, base, waves, mask, labels)
            assert float(objective.summed_loss(traced, base, waves, mask, labels)) == pytest.approx(
                float(plain), rel=1e-5
            )
