"""Random numbers from seeds: equal to the published hash, uniform, and independent between seeds and streams."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.method.rng import Stream, hash64, uniform

MASK64 = (1 << 64) - 1


def splitmix64(state):
    """Steele, Lea and Flood (OOPSLA 2014), section 4.2, in Python integers: the output that follows ``state``."""
    z = (state + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def signed(value):
    """The int64 of the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def slow_uniform(seed, stream, count):
    """The definition, number by number."""
    key = splitmix64((splitmix64(seed & MASK64) + int(stream)) & MASK64)
    return [(splitmix64(key ^ splitmix64(i)) >> 40) / 2**24 for i in range(count)]


def test_published_outputs_of_splitmix64():
    """The first five numbers of the generator seeded with 1234567, as in the tests of other implementations."""
    gamma = 0x9E3779B97F4A7C15
    states = torch.tensor([signed((1234567 + k * gamma) & MASK64) for k in range(5)])
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert hash64(states).tolist() == [signed(x) for x in published]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_hash_is_splitmix64(states):
    assert hash64(torch.tensor(states)).tolist() == [signed(splitmix64(x & MASK64)) for x in states]


@settings(max_examples=40, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(Stream))
def test_uniform_is_its_definition(seed, stream):
    assert uniform(torch.tensor([seed]), stream, (2, 3)).flatten().tolist() == slow_uniform(seed, stream, 6)


def test_streams_have_different_numbers():
    """An Enum silently makes two names of one number one member."""
    assert len(Stream) == len(Stream.__members__)


def numbers(count=1 << 18, seed=3, stream=Stream.RAYS):
    return uniform(torch.tensor([seed]), stream, (count,))[0]


def test_range_mean_and_variance():
    x = numbers().double()
    assert 0 <= x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    sigma = len(x) ** -0.5
    assert abs(x.mean() - 0.5) < 4 * sigma * (1 / 12) ** 0.5
    assert abs(x.var() - 1 / 12) < 4 * sigma * (1 / 180) ** 0.5


def test_every_part_of_the_range_is_equally_frequent():
    count, bins = 1 << 18, 256
    seen = torch.histc(numbers(count), bins=bins, min=0, max=1)
    chi_squared = ((seen - count / bins) ** 2 / (count / bins)).sum()
    assert abs(chi_squared - (bins - 1)) < 5 * (2 * (bins - 1)) ** 0.5


def test_every_bit_is_fair():
    bits = (numbers() * 2**24).long()
    for bit in range(24):
        share = ((bits >> bit) & 1).double().mean()
        assert abs(share - 0.5) < 5 * 0.5 * len(bits) ** -0.5, bit


def correlation(x, y):
    return float(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1])


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 32, 100])
def test_neighbouring_counters_are_not_correlated(lag):
    x = numbers()
    assert abs(correlation(x[:-lag], x[lag:])) < 5 * len(x) ** -0.5


@pytest.mark.parametrize("stream", list(Stream))
@pytest.mark.parametrize("other", list(Stream))
def test_streams_are_not_correlated(stream, other):
    if stream < other:
        x, y = numbers(1 << 16, stream=stream), numbers(1 << 16, stream=other)
        assert abs(correlation(x, y)) < 5 * len(x) ** -0.5
        assert (x == y).sum() < 5


@pytest.mark.parametrize("step", [1, 2, 256, 1 << 32, 1 << 48])
def test_seeds_are_not_correlated(step):
    """Neither number by number nor along consecutive seeds, which some callers use."""
    x, y = numbers(1 << 16, seed=5), numbers(1 << 16, seed=5 + step)
    assert abs(correlation(x, y)) < 5 * len(x) ** -0.5
    first = uniform(torch.arange(1 << 14) * step, Stream.MASK, ())
    assert abs(first.double().mean() - 0.5) < 5 * (len(first) * 12) ** -0.5
    assert abs(correlation(first[:-1], first[1:])) < 5 * len(first) ** -0.5


def test_seed_and_stream_are_not_interchangeable():
    """Seed k in stream s is not seed k + 1 in stream s - 1."""
    shifted = [numbers(64, seed=10 - int(s), stream=s) for s in Stream]
    assert len({tuple(x.tolist()) for x in shifted}) == len(Stream)


def test_a_clips_numbers_do_not_depend_on_its_batch():
    seeds = torch.tensor([4, -9, 4, 123456789012345])
    together = uniform(seeds, Stream.MASK, (3, 5))
    assert together.shape == (4, 3, 5)
    assert together.dtype == torch.float32
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i : i + 1], uniform(seed[None], Stream.MASK, (3, 5)))
    assert torch.equal(together[0], together[2])


def test_a_longer_draw_begins_with_the_shorter_one():
    """So padding a batch's LiDAR does not change which points are drawn."""
    seeds = torch.tensor([1, 2])
    few, many = uniform(seeds, Stream.RAYS, (10, 4)), uniform(seeds, Stream.RAYS, (25, 4))
    assert torch.equal(few, many[:, :10])


def test_torchs_generator_is_not_used():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    uniform(torch.tensor([1]), Stream.JITTER, (100,))
    assert torch.equal(before, torch.get_rng_state())
