"""Restoration: both functions against the published implementation's results, the fast one against the plain one."""

import copy
import functools
import gc
import json
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mood_submission.networks.checkpoint_names import convert_prior
from mood_submission.networks.pixelsnail import PixelSNAIL, PixelSNAILSettings
from mood_submission.restoration.cached_prior import CachedPrior
from mood_submission.restoration.plain import inverse_cdf, restore_plain
from mood_submission.restoration.restore import restore
from mood_submission.runtime.memory import CPU_BYTES

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
VARIANTS = {
    "brain": {"first_kernel": 7, "downsample": 2},
    "abdom": {"first_kernel": 3, "downsample": 1},
    "coarse": {"first_kernel": 5, "downsample": 3},
}
CODES = 11


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny models are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_prior(variant: str, dtype: torch.dtype = torch.float64) -> PixelSNAIL:
    """Weights and biases large enough for every path through the network to matter."""
    torch.manual_seed(0)
    settings = PixelSNAILSettings(
        codebook_size=CODES, n_channels=8, n_block=2, n_res_block=2, key_size=4, **VARIANTS[variant]
    )
    prior = PixelSNAIL(settings)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1.5) if parameter.ndim > 1 else parameter.normal_(std=0.3)
        prior.out.weight.mul_(4)
        for block in prior.blocks:  # attention that differs from an average
            block.attention.key.linear.weight.mul_(6)
            block.attention.query.linear.weight.mul_(6)
    return prior.to(dtype).eval()


def random_inputs(batch: int, restorations: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, position (float64) and uniforms (float64)."""
    rng = torch.Generator().manual_seed(1)
    codes = torch.randint(0, CODES, (batch, *grid), generator=rng)
    position = torch.rand(batch, 1, generator=rng, dtype=torch.float64) - 0.5
    return codes, position, torch.rand(batch, restorations, *grid, generator=rng, dtype=torch.float64)


@torch.no_grad()
def nll_between(prior: PixelSNAIL, codes: Tensor, position: Tensor, quantile: float) -> float:
    """A threshold half way between two codes' NLL, so that rounding decides nothing."""
    nll = prior.nll(codes, position).flatten().sort().values
    i = int(quantile * (len(nll) - 1))
    return float(nll[i : i + 2].mean())


@pytest.mark.parametrize("region", ["brain", "abdom"])
@pytest.mark.parametrize("function", [restore, restore_plain])
def test_published_implementation(region, function):
    path = REFERENCE / f"{region}_small.npz"
    if not path.exists():
        pytest.skip(f"no test vectors at {path}")
    with np.load(path) as stored:
        vectors = {name: torch.from_numpy(stored[name]) for name in stored.files if stored[name].dtype.kind != "U"}
        threshold = json.loads(str(stored["meta"]))["threshold"]
    settings, parameters, _ = convert_prior(
        {name.removeprefix("prior/"): value for name, value in vectors.items() if name.startswith("prior/")}
    )
    prior = PixelSNAIL(settings).double().eval()
    prior.load_state_dict(parameters)
    codes, position, uniforms = vectors["codes"].long(), vectors["coord"].double(), vectors["uniforms"]
    expected = vectors["restored_codes"].long()
    if function is restore_plain:  # it is slow: part of them will do
        codes, position, uniforms, expected = codes[:1], position[:1], uniforms[:1, :2], expected[:1, :2]
    assert torch.equal(function(prior, codes, position, uniforms, threshold), expected)


@pytest.mark.parametrize("restorations", [1, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("grid", [(7, 9), (5, 5), (4, 8)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fast_equals_plain(variant, grid, restorations):
    prior = random_prior(variant)
    codes, position, uniforms = random_inputs(3, restorations, grid)
    replaced = []
    for threshold in (0.0, *(nll_between(prior, codes, position, q) for q in (0.75, 0.99)), math.inf):
        plain = restore_plain(prior, codes, position, uniforms, threshold)
        assert torch.equal(restore(prior, codes, position, uniforms, threshold), plain), f"threshold {threshold}"
        replaced.append(int((plain != codes[:, None]).sum()))
    assert replaced[0] > replaced[1] > replaced[2] > replaced[3] == 0


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (6, 1), (2, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_small_grids(variant, grid):
    prior = random_prior(variant)
    codes, position, uniforms = random_inputs(4, 2, grid)
    threshold = nll_between(prior, codes, position, 0.3)
    plain = restore_plain(prior, codes, position, uniforms, threshold)
    assert torch.equal(restore(prior, codes, position, uniforms, threshold), plain)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("grid", [(7, 9), (5, 5), (4, 8)])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_cached_logits_are_the_forward_s(variant, grid, dtype, tolerance):
    prior = random_prior(variant, dtype)
    codes, position, _ = random_inputs(5, 1, grid)
    cached = CachedPrior(prior, *grid)
    cached.reserve(6)
    for rows in (5, 3):  # the second time with what the first left behind
        expected = prior(codes[:rows], position[:rows].to(dtype))
        got = cached.logits(codes[:rows], position[:rows].to(dtype))
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def case():
    """A prior, its inputs and threshold, and the result: slices start at different places, and one has no start."""
    prior = random_prior("brain")
    codes, position, uniforms = random_inputs(5, 3, (7, 9))
    with torch.no_grad():
        for place in range(codes[0].numel()):  # the likeliest codes: nothing to be replaced
            r, c = divmod(place, 9)
            codes[1, r, c] = prior(codes[1:2], position[1:2])[0, :, r, c].argmax()
        codes[3, :4], position[3] = codes[1, :4], position[1]  # a late start
        nll = prior.nll(codes, position).flatten(1)
    threshold = nll_between(prior, codes, position, 0.8)
    assert float(nll[1].max()) < threshold
    expected = restore_plain(prior, codes, position, uniforms, threshold)
    return prior, codes, position, uniforms, threshold, expected


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_are_not_seen(case, batch_size):
    prior, codes, position, uniforms, threshold, expected = case
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 1, 0, 3]):
        got = restore(prior, codes[order], position[order], uniforms[order], threshold, batch_size=batch_size)
        assert torch.equal(got, expected[order]), f"order {order}"
    plain = restore_plain(prior, codes, position, uniforms, threshold, batch_size=batch_size)
    assert torch.equal(plain, expected)


def test_each_place_can_have_its_own_threshold(case):
    """Below 0 a code is always drawn anew, at infinity never; the rest is as with one threshold."""
    prior, codes, position, uniforms, threshold, _ = case
    generator = torch.Generator().manual_seed(5)
    kinds = torch.randint(3, codes.shape, generator=generator)
    kinds[1, 2:], kinds[2] = 2, 2
    thresholds = torch.tensor([-1.0, threshold, math.inf], dtype=torch.float64)[kinds]
    restored = restore(prior, codes, position, uniforms, thresholds, batch_size=4)
    assert torch.equal(restored, restore_plain(prior, codes, position, uniforms, thresholds))
    kept = (kinds == 2)[:, None].expand_as(restored)
    assert torch.equal(restored[kept], codes[:, None].expand_as(restored)[kept]) and not torch.equal(
        restored[0, 0], codes[0]
    )
    everywhere = torch.full(codes.shape, threshold, dtype=torch.float64)
    assert torch.equal(
        restore(prior, codes, position, uniforms, everywhere), restore(prior, codes, position, uniforms, threshold)
    )
    nothing = torch.full(codes.shape, math.inf)
    assert torch.equal(restore(prior, codes, position, uniforms, nothing), codes[:, None].expand_as(restored))


def test_each_grid_can_have_its_own_threshold(case):
    prior, codes, position, uniforms, threshold, expected = case
    thresholds = torch.tensor([threshold, 0.0, math.inf, threshold, 1.0], dtype=torch.float64)
    restored = restore(prior, codes, position, uniforms, thresholds, batch_size=4)
    assert torch.equal(restored, restore_plain(prior, codes, position, uniforms, thresholds))
    for i, value in enumerate(thresholds.tolist()):
        alone = restore(prior, codes[i : i + 1], position[i : i + 1], uniforms[i : i + 1], value)
        assert torch.equal(restored[i : i + 1], alone)
    assert torch.equal(restored[[0, 3]], expected[[0, 3]]) and (restored[1] != expected[1]).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(case):
    prior, codes, position, uniforms, threshold, expected = case
    prior, codes, position, uniforms = (
        copy.deepcopy(prior).cuda(),
        codes.cuda(),
        position.cuda(),
        uniforms.cuda(),
    )
    cached = CachedPrior(prior, *codes.shape[1:])
    for _ in range(3):  # plainly, recorded, replayed
        got = restore(prior, codes, position, uniforms, threshold, cached=cached)
        assert torch.equal(got.cpu(), expected)
    assert cached.record and cached.replays, "CUDA graphs could not be recorded, or gave something else"
    assert torch.equal(restore(prior, codes, position, uniforms, threshold, batch_size=8).cpu(), expected)


def test_places_before_the_start_stay(case):
    prior, codes, position, uniforms, threshold, _ = case
    restored = restore(prior, codes, position, uniforms, threshold)
    with torch.no_grad():
        unlikely = (prior.nll(codes, position) > threshold).flatten(1)
    assert not unlikely[1].any() and not unlikely[3, :36].any() and unlikely[3].any()
    before = (unlikely.cumsum(1) == 0)[:, None].expand(-1, uniforms.shape[1], -1)
    assert torch.equal(restored.flatten(2)[before], codes[:, None].expand_as(restored).flatten(2)[before])
    assert torch.equal(restored[1], codes[1].expand_as(restored[1]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch(case, error, monkeypatch):
    prior, codes, position, uniforms, threshold, expected = case
    reserve, asked = CachedPrior.reserve, []

    def small_reserve(self: CachedPrior, rows: int) -> None:
        asked.append(rows)
        if rows > 2:
            raise error
        reserve(self, rows)

    monkeypatch.setattr(CachedPrior, "reserve", small_reserve)
    assert torch.equal(restore(prior, codes, position, uniforms, threshold, batch_size=8), expected)
    assert asked[:3] == [8, 4, 2] and set(asked[3:]) == {2}


def test_other_errors_and_a_row_too_large_are_raised(case, monkeypatch):
    prior, codes, position, uniforms, threshold, _ = case
    for error in (RuntimeError("something else"), torch.OutOfMemoryError("CUDA out of memory")):

        def fail(self: CachedPrior, rows: int) -> None:
            raise error

        monkeypatch.setattr(CachedPrior, "reserve", fail)
        with pytest.raises(type(error), match=str(error)):
            restore(prior, codes, position, uniforms, threshold)


def recorder(replayed: list[int], works: bool = True):
    """What CUDA graphs do, on a CPU: the steps themselves; or steps that do nothing."""

    def record(step, count):
        for i in range(count):
            step(i)

        def replay(i: int) -> None:
            replayed.append(i)
            if works:
                step(i)

        return [functools.partial(replay, i) for i in range(count)]

    return record


def test_replays_of_recorded_rows_give_the_same(case):
    prior, codes, position, uniforms, threshold, expected = case
    replayed = []
    cached = CachedPrior(prior, *codes.shape[1:], recorder(replayed))
    orders = ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 3, 2, 0, 4], [3, 1, 3, 1, 3])
    for used, order in enumerate(orders):  # first plainly, then both ways, then only replayed
        got = restore(prior, codes[order], position[order], uniforms[order], threshold, cached=cached)
        assert torch.equal(got, expected[order])
        assert len(replayed) >= 7 * used - 4 if used else not replayed  # slice 3 starts in its fifth row
    assert cached.rows == 15 and len(cached.replays) == 7
    few = restore(prior, codes[:1], position[:1], uniforms[:1], threshold, cached=cached)  # other rows: plainly again
    assert torch.equal(few, expected[:1]) and cached.rows == 3 and not cached.replays
    again = restore(prior, codes, position, uniforms.float(), threshold, cached=cached)
    assert torch.equal(again, restore(prior, codes, position, uniforms.float(), threshold))


def test_replays_that_fail_or_do_otherwise_are_not_used(case):
    prior, codes, position, uniforms, threshold, expected = case

    def fail(step, count):
        raise RuntimeError("operation not permitted when stream is capturing")

    for record in (fail, recorder([], works=False)):
        cached = CachedPrior(prior, *codes.shape[1:], record)
        for _ in range(4):
            got = restore(prior, codes, position, uniforms, threshold, cached=cached)
            assert torch.equal(got, expected)
        assert cached.record is None and not cached.replays


def test_caches_are_let_go_of_at_once(case):
    """Not when Python next looks for cycles: each volume has hundreds of megabytes of them."""
    prior, codes, position, uniforms, threshold, _ = case
    gc.collect()
    gc.disable()
    try:
        cached = CachedPrior(prior, *codes.shape[1:])
        restore(prior, codes, position, uniforms, threshold, cached=cached)
        layers = [weakref.ref(layer) for layer in cached.layers]
        assert len(layers) > 4
        del cached
        assert not any(layer() for layer in layers)
    finally:
        gc.enable()


def test_prior_and_arguments_are_left_alone(case):
    prior, codes, position, uniforms, threshold, expected = case
    before = [tensor.clone() for tensor in (codes, position, uniforms)]
    with torch.inference_mode():
        restored = restore(prior, codes, position, uniforms, threshold)
    assert torch.equal(restored, expected) and restored.dtype == torch.int64
    assert all(torch.equal(a, b) for a, b in zip(before, (codes, position, uniforms)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in prior.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    prior = random_prior("brain", dtype)
    codes, position, uniforms = random_inputs(3, 2, (7, 9))
    restored = restore(prior, codes, position.to(dtype), uniforms.float(), 2.5)
    assert restored.min() >= 0 and restored.max() < CODES and (restored != codes[:, None]).any()
    if dtype == torch.float32:
        assert torch.equal(restored, restore_plain(prior, codes, position.to(dtype), uniforms.float(), 2.5))


def shares(restored: Tensor) -> Tensor:
    """How often each code came at each place: (B, h, w, K)."""
    return torch.nn.functional.one_hot(restored, CODES).double().mean(1)


@pytest.mark.parametrize("variant", ["brain", "abdom"])
@pytest.mark.slow
def test_bfloat16_draws_as_often_what_float32_draws(variant):
    """Over many restorations every place's marginal is that of float32, as near as other draws of float32 are."""
    prior = random_prior(variant, torch.float32)
    rough = copy.deepcopy(prior).bfloat16()
    codes, position, uniforms = random_inputs(2, 4000, (4, 5))
    position, uniforms = position.float(), uniforms.float()
    thresholds = torch.tensor([0.0, 2.5])  # all drawn anew; some
    exact, other = (shares(restore(prior, codes, position, u, thresholds)) for u in uniforms.chunk(2, dim=1))
    got = shares(restore(rough, codes, position.bfloat16(), uniforms.chunk(2, dim=1)[1], thresholds))
    apart, by_chance = (got - exact).abs().sum(-1) / 2, (other - exact).abs().sum(-1) / 2  # total variation
    # codes that lie at the threshold itself may go either way: a place's NLL is known to 1% or so
    assert apart.mean() < 1.25 * by_chance.mean() + 0.005 and apart[0].max() < by_chance[0].max() + 0.02


def test_tf32_is_allowed_only_where_asked_for(monkeypatch):
    prior, (codes, position, uniforms) = random_prior("abdom", torch.float32), random_inputs(1, 1, (3, 3))
    seen, forward = [], PixelSNAIL.forward

    def spy(self: PixelSNAIL, *arguments: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return forward(self, *arguments)

    monkeypatch.setattr(PixelSNAIL, "forward", spy)
    before = torch.backends.cuda.matmul.fp32_precision
    for tf32 in (False, True):
        restore(prior, codes, position.float(), uniforms.float(), 1.0, tf32=tf32)
    assert seen == ["ieee", "tf32"] and torch.backends.cuda.matmul.fp32_precision == before


def test_no_slices_and_no_restorations():
    prior = random_prior("abdom")
    for batch, restorations in ((0, 2), (2, 0)):
        codes, position, uniforms = random_inputs(batch, restorations, (4, 4))
        for function in (restore, restore_plain):
            assert function(prior, codes, position, uniforms, 1.0).shape == (batch, restorations, 4, 4)


def test_wrong_arguments():
    prior = random_prior("abdom")
    codes, position, uniforms = random_inputs(2, 3, (4, 4))
    for function in (restore, restore_plain):
        for arguments, named in (
            ((codes.float(), position, uniforms, 1.0), "codes"),
            ((codes, position[:1], uniforms, 1.0), "position"),
            ((codes, position, uniforms[:, 0], 1.0), "uniforms"),
            ((codes, position, uniforms[..., :3], 1.0), "uniforms"),
            ((codes, position, (uniforms * 9).long(), 1.0), "uniforms"),
            ((codes, position, uniforms, math.nan), "threshold"),
            ((codes, position, uniforms, torch.tensor([1.0, math.nan])), "threshold"),
            ((codes, position, uniforms, torch.ones(3)), "threshold"),
        ):
            with pytest.raises(ValueError, match=named):
                function(prior, *arguments)
        with pytest.raises(ValueError, match="batch_size"):
            function(prior, codes, position, uniforms, 1.0, batch_size=0)
        with pytest.raises(ValueError, match="training"):
            function(random_prior("abdom").train(), codes, position, uniforms, 1.0)


def test_cached_prior_says_what_it_has_room_for():
    cached = CachedPrior(random_prior("abdom"), 4, 4)
    cached.reserve(2)
    for batch, grid in ((3, (4, 4)), (2, (4, 5))):
        codes, position, _ = random_inputs(batch, 1, grid)
        with pytest.raises(ValueError, match="codes"):
            cached.logits(codes, position)


def test_draw_is_the_inverse_cdf():
    logits = torch.tensor([0.0, 0.25, 0.5, 0.25], dtype=torch.float64).log()  # -inf: a class that never comes
    for u, expected in ((0.0, 1), (0.2499, 1), (0.2501, 2), (0.7499, 2), (0.7501, 3), (1 - 2**-53, 3)):
        assert inverse_cdf(logits[None], torch.tensor([u], dtype=torch.float64)).item() == expected
    exact = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    assert inverse_cdf(exact, torch.tensor([0.5], dtype=torch.float64)).item() == 1  # cumsum must be above u, not at it


def test_draw_stays_below_k_where_the_cdf_ends_below_one():
    logits = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    u = torch.full((1000,), 1 - 2**-53, dtype=torch.float64)  # above many a float32 cdf's last value
    assert (logits.softmax(-1).cumsum(-1)[:, -1] < u).any()
    assert (inverse_cdf(logits, u) == 99).all()


def test_draw_follows_the_distribution():
    logits = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log().expand(10_000, 3)
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert inverse_cdf(logits, u).bincount().tolist() == [1000, 6000, 3000]


def test_default_batch_fits_its_budget():
    cached = CachedPrior(random_prior("brain"), 7, 9)
    rows = cached.affordable_rows()
    numbers = sum(math.prod(buffer.shape) for buffer in cached.buffers)
    assert 1 <= rows and rows * numbers * 8 <= CPU_BYTES
