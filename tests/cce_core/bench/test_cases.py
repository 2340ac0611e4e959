"""What a selection measures, and which rows on record it is held to."""

from pathlib import Path

from cce_core.bench import cases, data, ours, trained

SHAPE = data.SHAPES["gemma-2-2b"]


def selection(*sizes, peers=(), eps=()) -> cases.Selection:
    return cases.Selection(sizes, peers, eps, 1, trained.SMOKE, Path("unused"))


def row(**changes):
    return {
        "shape": SHAPE.name, "data": "flat", "impl": ours.NAME, "preset": "default", "n": 8192
    } | changes  # fmt: skip


def test_a_selection_covers_what_it_measures() -> None:
    chosen = selection((SHAPE, "flat", 8192))
    assert all(chosen.covers(row(preset=name)) for name in ours.presets())
    for other in ({"shape": "llama-3-8b"}, {"data": "shuffled"}, {"n": 1024}, {"impl": "eager"}):
        assert not chosen.covers(row(**other))


def test_peers_and_thresholds_count_where_they_were_asked_for() -> None:
    chosen = selection((SHAPE, "flat", 8192), peers=("eager",), eps=(2.0**-10,))
    assert chosen.covers(row(impl="eager", preset=""))
    assert chosen.covers(row(preset="eps=2^-10"))
    assert not chosen.covers(row(preset="eps=2^-14"))


def test_the_trained_head_is_a_case_of_its_own(tmp_path) -> None:
    size = (trained.SMOKE.shape, trained.KIND, 512)
    assert selection(size).covers(row(shape="python-smoke", data="trained", n=512))


def test_the_sweep_takes_each_size_over_its_range_and_past_two_to_the_31() -> None:
    sizes = cases.sweep()
    rows = {n for _, _, n in sizes}
    columns = {shape.v for shape, *_ in sizes}
    widths = {shape.d for shape, *_ in sizes}
    assert {1024, 65536} <= rows
    assert {2**15, 2**19} <= columns
    assert {512, 8192} <= widths
    assert any(shape.v * shape.d > 2**31 for shape, *_ in sizes)
    assert len({(shape.name, n) for shape, _, n in sizes}) == len(sizes)
