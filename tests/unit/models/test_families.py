"""Every family against Transformers' own loss and decoding, on tiny random models."""

import math
import re
from pathlib import Path

import pytest
import torch

import tiny
from adapting import SECONDS, TEXTS, attach, tones, train_on_tones
from asrlora.config import RunConfig
from asrlora.errors import UserError
from asrlora.models import adapters, ctc, decode, hub, moonshine, objective, registry, seq2seq
from asrlora.models.family import Base

ADAPTERS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.fixture(params=tiny.KINDS)
def base(request: pytest.FixtureRequest, folders: dict[str, str]) -> Base:
    return registry.load_base(folders[request.param])


@torch.inference_mode()
def test_the_loss_is_the_models_own_mean_times_the_tokens(base: Base) -> None:
    for row in (slice(0, 1), slice(1, 2)):
        waves, mask, labels = tones(base, row)
        features = base.family.features(base, waves, mask)
        count = int((labels >= 0).sum())
        if base.frames:
            base.model.config.ctc_loss_reduction = "mean"
            own = base.model(**features, labels=labels).loss
        elif base.kind == "whisper":
            prompt = torch.tensor([seq2seq.decoder(base).prompt])
            whole = torch.cat([torch.full_like(prompt[:, 1:], -100), labels], 1)
            previous = torch.cat([prompt, labels.clamp(min=0)], 1)[:, : whole.shape[1]]
            own = base.model(**features, decoder_input_ids=previous, labels=whole).loss
        else:
            own = base.model(**features, labels=labels).loss
        ours = objective.summed_loss(base.model, base, waves, mask, labels)
        assert float(ours) == pytest.approx(float(own) * count, rel=1e-5)


@torch.inference_mode()
def test_a_batch_costs_the_sum_of_its_utterances(base: Base) -> None:
    together = float(objective.summed_loss(base.model, base, *tones(base)))
    alone = sum(
        float(objective.summed_loss(base.model, base, *tones(base, slice(row, row + 1)))) for row in range(2)
    )
    assert together == pytest.approx(alone, rel=1e-5)


@torch.inference_mode()
def test_greedy_hypotheses_are_transformers_own(base: Base) -> None:
    waves, mask, _ = tones(base, slice(0, 1))
    features = base.family.features(base, waves, mask)
    if base.frames:
        # The tokenizers of CTC models collapse runs and drop blanks themselves, but wav2vec2's in the
        # wrong order where it is to skip special tokens too: "ll" becomes "l".
        own = base.tokenizer.batch_decode(base.model(**features).logits.argmax(-1))
        own = [re.sub("<s>|</s>|<unk>", "", text) for text in own]
    else:
        settings = {"num_beams": 1, "do_sample": False}
        if base.kind == "whisper":
            settings["max_new_tokens"] = min(38, 48 - len(seq2seq.decoder(base).prompt))
            if base.model.generation_config.is_multilingual:
                settings |= {"language": "en", "task": "transcribe"}
        else:
            settings["max_new_tokens"] = moonshine.token_limit(base, SECONDS[0])
        own = base.tokenizer.batch_decode(
            base.model.generate(**features, **settings), skip_special_tokens=True
        )  # fmt: skip
    (ours,) = decode.transcribe(base.model, base, waves, mask, SECONDS[:1])
    assert ours.text == own[0].strip()


@pytest.mark.parametrize("kind", ["moonshine", "moonshine_streaming", "whisper", "wav2vec2", "parakeet"])
def test_two_utterances_can_be_learned_and_are_then_written(kind: str, folders: dict[str, str]) -> None:
    """How long a CTC model stays at blanks only, or a decoder at one letter, depends on the initialisation
    and on the processor's rounding. So each of up to three must bring the loss down tenfold, and one must
    learn the texts: below ln 2 in all, each token of a decoder has a probability above one half, so that
    greedy decoding cannot choose another."""
    for seed in range(3):
        base = registry.load_base(folders[kind])
        model = attach(base, seed, lora_r=16, lora_alpha=32)
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        statistics = {n: b.clone() for n, b in model.named_buffers()}
        losses = train_on_tones(model, base, 200, 3e-3, enough=math.log(2))
        assert losses[-1] < losses[0] / 10, seed
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad or torch.equal(parameter, frozen[name]), name
        for name, buffer in model.named_buffers():  # Parakeet's BatchNorm
            assert torch.equal(buffer, statistics[name]), name
        if losses[-1] < math.log(2):
            break
    else:
        pytest.fail("the loss has nowhere come below ln 2")
    with torch.inference_mode():
        waves, mask, _ = tones(base)
        decoded = decode.transcribe(model, base, waves, mask, SECONDS)
    assert [one.text.lower() for one in decoded] == TEXTS
    assert hub.hash_weights(Path(folders[kind])) == base.sha256


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_start_as_nothing_and_reload_and_merge(base: Base, adapter: str, tmp_path: Path) -> None:
    settings = ADAPTERS[adapter]
    with torch.inference_mode():
        untouched = objective.logits(base.model, base, *tones(base))
    model = attach(base, **settings)
    with torch.inference_mode():
        attached = objective.logits(model, base, *tones(base))
    assert torch.allclose(attached, untouched, atol=float(1e-4 * untouched.abs().max()))
    initial = tmp_path / "initial" if "init_lora_weights" in settings else None
    if initial:
        adapters.save_initial(model, initial)
    train_on_tones(model, base, 3, 0.1)
    adapters.save(model, tmp_path / "adapter", initial)
    assert adapters.check_saved(model, base, tmp_path / "adapter") < 1e-4
    with torch.inference_mode():
        active = objective.logits(model, base, *tones(base))
        assert (active - untouched).abs().max() > 1e-2 * untouched.abs().max(), "the adapter is frozen"
        merged = objective.logits(model.merge_and_unload(), base, *tones(base))
    assert torch.allclose(active, merged, atol=float(1e-4 * untouched.abs().max()))


def test_every_adapter_tensor_learns_the_same_with_checkpointing(base: Base) -> None:
    """With all linear layers as targets, so that one whose weights are read past its adapter shows."""
    model = attach(base, init_lora_weights="gaussian", use_dora=True)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        objective.set_training(model)
        torch.manual_seed(3)
        objective.summed_loss(model, base, *tones(base)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    adapter = {n for n, p in model.named_parameters() if p.requires_grad}
    assert gradients[0].keys() == adapter == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5, rtol=1e-4), name
        # B starts as zeros, so A learns nothing in the first step
        assert gradient.abs().sum() > 0 or "lora_A" in name, f"{name} gets no gradient"


def test_default_targets_are_there_and_no_convolution_or_output_is_one(base: Base) -> None:
    default = RunConfig.model_fields["lora_targets"].default
    found = adapters.find_targets(base, default, None)
    known = base.targets
    assert {name.rpartition(".")[2] for name in found} == {*known.attention, *known.feed_forward}
    for name in adapters.find_targets(base, "all-linear", None):
        assert isinstance(base.model.get_submodule(name), torch.nn.Linear)
        assert name.rpartition(".")[2] not in ("proj_out", "lm_head", "ctc_head")


def test_adapters_that_wavlms_attention_would_pass_by_are_refused(folders: dict[str, str]) -> None:
    base = registry.load_base(folders["wavlm"])
    for targets in ("attention", "q_proj,v_proj"):
        with pytest.raises(
            UserError, match="adapters on wavlm's q_proj, k_proj, v_proj, out_proj do nothing"
        ):
            adapters.find_targets(base, targets, None)


def test_batchnorm_would_drift_in_plain_training_mode(folders: dict[str, str]) -> None:
    """What set_training is for; were it model.train(), the test of learning above would be red."""
    base = registry.load_base(folders["parakeet"])
    before = {n: b.clone() for n, b in base.model.named_buffers() if "running" in n}
    objective.summed_loss(base.model.train(), base, *tones(base))
    assert any(not torch.equal(b, before[n]) for n, b in base.model.named_buffers() if n in before)


def test_labels_are_in_the_models_case_and_never_unknown(folders: dict[str, str]) -> None:
    capitals, small = (registry.load_base(folders[kind]) for kind in ("wav2vec2", "parakeet"))
    assert capitals.tokenizer.decode(capitals.label_ids(capitals, "to be"), group_tokens=False) == "TO BE"
    assert small.tokenizer.decode(small.label_ids(small, "TO BE"), group_tokens=False) == "to be"
    for base in (capitals, small):
        with pytest.raises(ValueError, match=r"cannot be written .* whose vocabulary lacks 9, [éÉ] "):
            base.label_ids(base, "é 99")


def test_whispers_labels_begin_with_a_space_only_as_part_of_a_word(folders: dict[str, str]) -> None:
    base = registry.load_base(folders["whisper"])
    first = [base.tokenizer.convert_ids_to_tokens(base.label_ids(base, t))[0] for t in ("hat", "bat")]
    assert first == ["Ġh", "b"]
    forbidden = decode.fingerprint(base)["begin_suppress_tokens"]
    assert not {base.label_ids(base, text)[0] for text in TEXTS} & set(forbidden)


def test_whispers_language_is_in_the_prompt_and_the_fingerprint(folders: dict[str, str]) -> None:
    german = registry.load_base(folders["whisper"], registry.Decoding("de"))
    assert decode.fingerprint(german)["prompt"][1:3] == ["<|de|>", "<|transcribe|>"]
    english_only = registry.load_base(folders["whisper.en"], registry.Decoding("de"))
    assert decode.fingerprint(english_only)["prompt"] == ["<|startoftranscript|>", "<|notimestamps|>"]
    with pytest.raises(UserError, match=r"--language xx: .* no token <\|xx\|>"):
        decode.fingerprint(registry.load_base(folders["whisper"], registry.Decoding("xx")))


@pytest.mark.parametrize(
    ("kind", "seconds"), [("whisper", 2.01), ("moonshine_streaming", 4.1), ("parakeet", 401.0)]
)
def test_longer_audio_than_the_model_takes_names_the_utterance(
    kind: str, seconds: float, folders: dict[str, str]
) -> None:
    base = registry.load_base(folders[kind])
    labels, found = objective.label(base, {"fits": "ab", "long": "ab"}, {1.0: [1.9, seconds]})
    assert set(labels) == {"fits"}
    assert f"lasts {seconds:.2f} s, and this model is trained on at most" in found[0].message
    assert "long" in found[0].message


def test_whisper_never_cuts_audio(folders: dict[str, str]) -> None:
    base = registry.load_base(folders["whisper"])
    waves = torch.zeros(1, 40_000)
    with pytest.raises(ValueError, match="would be cut"):
        base.family.features(base, waves, torch.ones_like(waves, dtype=torch.long))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "parakeet"])
def test_a_text_that_ctc_cannot_spread_over_its_frames_is_refused(kind: str, folders: dict[str, str]) -> None:
    """Exactly the texts whose loss would be infinite: room for a blank between equal tokens counts."""
    base = registry.load_base(folders[kind])
    waves = torch.randn(1, 16_000) * 0.075
    mask = torch.ones_like(waves, dtype=torch.long)
    frames = ctc.frames(base, 16_000)
    assert frames == base.model(**base.family.features(base, waves, mask)).logits.shape[1]
    first, second = base.label_ids(base, "ab")[-2:]
    for labels in ([first, second] * frames, [first] * frames):
        most = frames if labels[1] == second else (frames + 1) // 2
        for length, fits in ((most, True), (most + 1, False)):
            loss = objective.summed_loss(base.model, base, waves, mask, torch.tensor([labels[:length]]))
            assert bool(torch.isfinite(loss)) == fits
            if fits:
                base.check(base, 1.0, labels[:length])
            else:
                with pytest.raises(ValueError, match=r"has a text of .* is it the text of this"):
                    base.check(base, 1.0, labels[:length])


def test_a_model_without_a_trained_head_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    """A pretrained wav2vec2 has none, and Transformers would make one up."""
    base = registry.load_base(folders["wav2vec2"])
    base.model.wav2vec2.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    base.extractor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its weights lack lm_head\.bias, lm_head\.weight"):
        registry.load_base(str(tmp_path))


def test_4_bits_need_a_gpu(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--load-in-4bit needs a GPU"):
        registry.load_base(folders["moonshine"], in_4bit=True)
