from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlora.data import plan
from benchmarks.data import speech_lengths

durations = st.lists(st.floats(0.2, 30.0), max_size=300)
budgets = st.one_of(
    st.fixed_dictionaries({"batch_size": st.integers(1, 9)}),
    st.fixed_dictionaries({"batch_seconds": st.floats(1.0, 60.0)}),
)


@given(durations, budgets, st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_each_utterance_at_most_once_and_counts_the_rest(
    lengths: list[float], budget: dict[str, float], per_step: int, seed: int, epoch: int
) -> None:
    planned = plan.plan_epoch(lengths, seed=seed, epoch=epoch, microbatches_per_step=per_step, **budget)
    used = [i for step in planned for batch in step for i in batch]
    assert len(used) == len(set(used))
    assert len(used) + planned.dropped == len(lengths)
    assert all(len(step) == per_step and all(step) for step in planned)
    for batch in chain.from_iterable(planned):
        if "batch_size" in budget:
            assert len(batch) == budget["batch_size"]
        elif len(batch) > 1:
            assert max(lengths[i] for i in batch) * len(batch) <= budget["batch_seconds"]


@given(durations, st.sampled_from([1, 2, 4]), st.integers(0, 5))
def test_ranks_share_a_step_without_loss_and_evenly(lengths: list[float], world: int, seed: int) -> None:
    planned = plan.plan_epoch(lengths, seed=seed, epoch=0, microbatches_per_step=4, batch_size=2)
    for step in planned:
        shares = [plan.share(step, rank, world) for rank in range(world)]
        assert {len(share) for share in shares} == {4 // world}
        assert sorted(chain.from_iterable(shares)) == sorted(step)


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    lengths = [1.0 + i % 7 for i in range(100)]

    def steps(seed: int, epoch: int) -> list[list[list[int]]]:
        return list(plan.plan_epoch(lengths, seed=seed, epoch=epoch, microbatches_per_step=2, batch_size=3))

    assert steps(1, 0) == steps(1, 0)
    assert steps(1, 0) != steps(1, 1)
    assert steps(1, 0) != steps(2, 0)


def test_steps_run_on_through_epochs() -> None:
    lengths = [1.0] * 10
    settings = {"seed": 0, "microbatches_per_step": 1, "batch_size": 4}
    all_steps = list(plan.iterate_steps(lambda epoch: lengths, 7, **settings))
    assert [epoch for epoch, _ in all_steps] == [0, 0, 1, 1, 2, 2, 3]
    assert list(islice(plan.iterate_steps(lambda epoch: lengths, 99, **settings), 7)) == all_steps


@given(durations, st.floats(1.0, 100.0), st.randoms(use_true_random=False))
def test_evaluation_holds_everything_once_whatever_the_order(lengths, budget, random) -> None:
    ids = [f"u{i}" for i in range(len(lengths))]
    batches = [{ids[i] for i in b} for b in plan.plan_evaluation(ids, lengths, budget)]
    assert sorted(chain.from_iterable(batches)) == sorted(ids)
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled_ids, shuffled = [ids[i] for i in order], [lengths[i] for i in order]
    again = [{shuffled_ids[i] for i in b} for b in plan.plan_evaluation(shuffled_ids, shuffled, budget)]
    assert again == batches


@settings(max_examples=100)
@given(
    durations, budgets, st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 7)), min_size=1, max_size=8),
)  # fmt: skip
def test_a_run_on_changing_world_sizes_is_the_same_run(lengths, budget, seed, chain_of_worlds) -> None:
    """100 random chains: the run is stopped after some steps and goes on with another world size."""
    fixed = {"seed": seed, "microbatches_per_step": 8, **budget}
    planned = [plan.plan_epoch(lengths, epoch=epoch, **fixed) for epoch in (0, 1)]
    if not all(map(len, planned)):
        return
    cursor = (0, 0)
    seen: list[tuple[int, list[list[int]]]] = []
    for world, steps in chain_of_worlds:
        for epoch, step in plan.iterate_steps(lambda epoch: lengths, steps, start=cursor, **fixed):
            shares = [plan.share(step, rank, world) for rank in range(world)]
            assert {len(share) for share in shares} == {8 // world}
            back = [shares[m % world][m // world] for m in range(8)]
            seen.append((epoch, back))
            done = cursor[1] + 1 if epoch == cursor[0] else 1
            cursor = (epoch, done)
    assert seen == list(plan.iterate_steps(lambda epoch: lengths, len(seen), **fixed))
    for epoch, whole in enumerate(planned):
        used = [i for e, step in seen if e == epoch for batch in step for i in batch]
        assert len(used) == len(set(used))
        if cursor[0] > epoch:  # the epoch is over
            assert len(used) + whole.dropped == len(lengths)


@given(st.integers(1, 60), st.integers(1, 25), st.floats(0.05, 0.9), st.integers(0, 3))
def test_replay_goes_through_its_own_epochs(ours: int, replay: int, ratio: float, seed: int) -> None:
    epochs = [plan.mix(ours, replay, ratio, seed=seed, epoch=epoch).tolist() for epoch in range(5)]
    stream: list[int] = []
    for members in epochs:
        assert members[:ours] == list(range(ours))
        assert len(members) == ours + round(ours * ratio / (1 - ratio))
        stream += members[ours:]
    for start in range(0, len(stream) - replay + 1, replay):
        assert sorted(stream[start : start + replay]) == list(range(ours, ours + replay))


@given(st.floats(0.05, 0.9), st.floats(0.5, 20), st.floats(0.5, 20), st.integers(200, 400))
def test_a_share_of_replayed_audio_is_counted_in_seconds(
    share: float, ours: float, replay: float, count: int
) -> None:
    ratio = plan.ratio_of_share(share, ours, replay)
    members = plan.mix(count, 100_000, ratio, seed=1, epoch=0)
    seconds = len(members[count:]) * replay
    found = seconds / (seconds + count * ours)
    one_more = (seconds + replay) / (seconds + replay + count * ours) - found
    assert abs(found - share) <= one_more + 1e-9


def test_only_members_are_planned() -> None:
    members = np.array([1, 5, 7, 8])
    planned = plan.plan_epoch(
        [1.0] * 10, seed=0, epoch=0, microbatches_per_step=2, batch_size=2, members=members
    )
    assert sorted(i for step in planned for batch in step for i in batch) == members.tolist()


def test_padding_of_speech_lengths_stays_below_three_percent() -> None:
    """Half-second quantum included; POOL of 32 gives 4.3 %."""
    lengths = speech_lengths(30_000, 0)
    for budget in ({"batch_seconds": 160.0}, {"batch_size": 8}):
        planned = plan.plan_epoch(lengths, seed=0, epoch=0, microbatches_per_step=8, **budget)
        assert plan.padding(planned, lengths) < 0.03


def test_similar_lengths_share_a_batch() -> None:
    """Padding is what sorting is for: below 5 % here, where random batches waste a third."""
    lengths = [1.0 + (i * 7919) % 1000 / 100 for i in range(2000)]
    planned = plan.plan_epoch(lengths, seed=0, epoch=0, microbatches_per_step=1, batch_size=8)
    batches = [batch for step in planned for batch in step]
    real = sum(lengths[i] for batch in batches for i in batch)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert real / padded > 0.95


def test_an_utterance_longer_than_the_budget_is_not_lost() -> None:
    assert plan.plan_evaluation(["a", "b"], [30.0, 1.0], 5.0) == [[0], [1]]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_utterances_make_no_step(count: int) -> None:
    planned = plan.plan_epoch([1.0] * count, seed=0, epoch=0, microbatches_per_step=2, batch_size=4)
    assert list(planned) == []
    assert planned.dropped == count
