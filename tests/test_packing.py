"""packing.py: every example once an epoch, whole, and no label that crosses from one to the next."""

import numpy as np
import pytest

from orcalab import packing

METHODS = ["best_fit", "shuffle_partition"]


def draw(seed, n=400, seq_len=256):
    """Lengths with a long tail, as rows have."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(3.5, 0.9, n).astype(int), 2, seq_len).tolist()


def naive_fill(lengths, rooms, seq_len):
    """Best fit by looking at every pack: each length, longest first, into the tightest that still has room, else into a new one."""
    rooms = list(rooms)
    for n in lengths:
        fits = [r for r in rooms if r >= n]
        if fits:
            rooms.remove(min(fits))
        rooms.append((min(fits) if fits else seq_len) - n)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(30))
def test_filling_equals_the_naive_packer(seed):
    rng = np.random.default_rng(seed)
    lengths = np.array(sorted(draw(seed, n=(0, 1, 300, 50, 200)[seed % 5]), reverse=True), np.int64)
    room = rng.integers(0, 257, 40) if seed < 25 else np.zeros(3, np.int64)
    pack = packing._fill(lengths, room, 256)
    left = np.append(room, np.full(max(0, pack.max(initial=-1) + 1 - len(room)), 256)) - np.bincount(pack, lengths, max(len(room), pack.max(initial=-1) + 1))
    assert sorted(left.astype(int).tolist()) == naive_fill(lengths.tolist(), room.tolist(), 256) and left.min() >= 0


def test_long_and_short_share_packs_and_companions_are_left_to_chance():
    lengths = draw(0, n=4000, seq_len=1024)
    plan = packing.best_fit(lengths, 1024)
    middle = float(np.median(lengths))
    assert sum(max(lengths[i] for i in p) < middle for p in plan) <= 1  # no packs of short answers alone
    pairs = [{tuple(p[:2]) for p in packing.best_fit(lengths, 1024, seed)} for seed in (0, 1)]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def naive_partition(lengths, seq_len, order):
    packs = [[]]
    for i in order:
        if sum(lengths[j] for j in packs[-1]) + lengths[i] > seq_len:
            packs.append([])
        packs[-1].append(i)
    return packs


@pytest.mark.parametrize("seed", range(5))
def test_shuffle_partition_equals_the_naive_packer(seed):
    lengths = draw(seed)
    packs = packing.shuffle_partition(lengths, 256, seed)
    order = [i for p in packs for i in p]
    assert list(packs) == naive_partition(lengths, 256, order) and order != sorted(order)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_every_example_once_an_epoch_and_no_pack_over_seq_len(method, seed):
    lengths = draw(seed)
    per_epoch = [len(getattr(packing, method)(lengths, 256, seed + e)) for e in (0, 1)]
    plan = packing.plan(lengths, 256, sum(per_epoch), method, seed)
    assert len(plan) == sum(per_epoch) and plan == packing.plan(lengths, 256, None, method, seed, epochs=2)
    for epoch in (plan[: per_epoch[0]], plan[per_epoch[0]:]):
        assert sorted(i for p in epoch for i in p) == list(range(len(lengths)))
    one, two = ({tuple(sorted(p)) for p in epoch} for epoch in (plan[: per_epoch[0]], plan[per_epoch[0]:]))
    assert len(one & two) < len(one) / 2  # an epoch packs anew
    assert max(sum(lengths[i] for i in p) for p in plan) <= 256 and all(plan)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_is_a_pure_function_and_seeds_differ(method):
    lengths = draw(0)
    assert packing.plan(lengths, 256, 200, method, 3) == packing.plan(lengths, 256, 200, method, 3)
    assert packing.plan(lengths, 256, 200, method, 3) != packing.plan(lengths, 256, 200, method, 4)


def test_best_fit_fills_at_least_as_well_as_shuffle_partition():
    for seed in range(8):
        lengths = draw(seed)
        best, plain = (len(f(lengths, 256, seed)) for f in (packing.best_fit, packing.shuffle_partition))
        assert best <= plain
    assert sum(lengths) / (best * 256) > 0.97  # the best any packer could do is 1


def test_chance_and_not_length_decides_what_a_cut_epoch_leaves_out():
    """Leaving out the emptiest packs would leave out the shortest examples, and so one task more often than another."""
    lengths = [8, 8, 8, 5, 5, 1]
    plans = [packing.plan(lengths, 8, 4, seed=seed) for seed in range(400)]  # the epoch has five: 8, 8, 8, 5 + 1, 5
    left_out = [sum(all(i not in p for p in plan) for plan in plans) / 400 for i in range(6)]
    assert all(len(plan) == 4 for plan in plans) and all(0.12 < share < 0.28 for share in left_out)
    assert len(packing.plan(lengths, 8, 7)) == 7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_packed_arrays_equal_a_naive_layout(method, seed):
    rng, lengths = np.random.default_rng(seed), draw(seed, n=60, seq_len=128)
    examples = [(rng.integers(1, 99, n).tolist(), rng.integers(0, 2, n).tolist()) for n in lengths]
    plan = packing.plan(lengths, 128, 20, method, seed)
    packed = packing.pack(examples, plan, 128, pad_id=0)
    for row, members in enumerate(plan):
        flat = [(s, k, i) for s, i in enumerate(members) for k in range(lengths[i])]
        for at in range(128):
            got = [int(a[row, at]) for a in packed]
            if at >= len(flat):
                assert got == [0, -100, 0, -1]
                continue
            s, k, i = flat[at]
            ids, mask = examples[i]
            last = k + 1 == len(ids)  # nothing is learned at an example's last token: the next one is its neighbour's
            assert got == [ids[k], ids[k + 1] if not last and mask[k + 1] else -100, k, s]
    used = [i for p in plan for i in p]
    assert packed.num_targets == sum(sum(examples[i][1][1:]) for i in used)
    assert packed.fill == pytest.approx(sum(lengths[i] for i in used) / (20 * 128))


def test_num_targets_is_the_mask_total_when_no_first_token_is_learned():
    examples = [([7, 8, 9], [0, 1, 1]), ([5, 6], [0, 1]), ([4, 4, 4], [0, 0, 1])]
    assert packing.pack(examples, [[0, 1], [2]], 6).num_targets == sum(sum(m) for _, m in examples) == 4


def test_lengths_of_a_segment_row():
    packed = packing.pack([([1] * n, [0] * n) for n in (3, 2, 4)], [[0, 1], [2]], 6)
    assert [packing.lengths_of(s) for s in packed.segment] == [[3, 2, 1], [4, 2]]


def test_errors():
    with pytest.raises(ValueError, match="there are no examples to pack"):
        packing.plan([], 8, 1)
    with pytest.raises(ValueError, match="example 1 has 9 tokens; seq_len is 8"):
        packing.plan([3, 9], 8, 1)
    with pytest.raises(ValueError, match="example 1 has 0 tokens"):
        packing.plan([3, 0], 8, 1)


def test_epochs_are_rounded_up_to_whole_steps_and_the_plans_length_says_how_many():
    lengths = draw(1)
    once = len(packing.plan(lengths, 256, seed=3))
    for multiple in (1, 4, 7):
        plan = packing.plan(lengths, 256, seed=3, epochs=3, multiple=multiple)
        counts = np.bincount(plan.members, minlength=len(lengths))
        assert len(plan) % multiple == 0 and set(counts) <= {3, 4} and (counts == 4).sum() <= multiple * max(map(len, plan))
        assert plan[:once] == packing.plan(lengths, 256, seed=3)[:]


@pytest.mark.parametrize("seq_len", [4096, 100_000])
def test_a_hundred_thousand_lengths_leave_less_than_a_thousandth_empty(seq_len):
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(270), 0.8, 100_000).astype(int), 1, seq_len)
    plan = packing.best_fit(lengths, seq_len)
    assert np.bincount(plan.members).tolist() == [1] * 100_000
    sums = np.add.reduceat(lengths[plan.members], np.append(0, plan.ends[:-1]))
    assert sums.max() <= seq_len and len(plan) <= -(-lengths.sum() // seq_len) * 1.001


@pytest.mark.parametrize("lengths", [[5], [8] * 9, [5] * 9, [1] * 100, [7, 1] * 5, [4096] * 3 + [1], list(range(1, 60))])
def test_odd_lengths(lengths):
    plan = packing.best_fit(lengths, max(8, *lengths))
    assert sorted(plan.members.tolist()) == list(range(len(lengths))) and all(plan)
    assert max(sum(lengths[i] for i in p) for p in plan) <= max(8, *lengths)
