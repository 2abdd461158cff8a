import json
import random

import numpy as np
import pytest

from rollouts.windows import BUCKETS, UNITS, Metric, Sample, Window, bin_of, value_of


def samples(count: int, seed: int = 1) -> list[Sample]:
    draw = random.Random(seed)
    return [
        Sample(
            f"user-{draw.randrange(99)}",
            error=draw.random() < 0.1,
            first_token=draw.random(),
            waiting=draw.random() < 0.1,
            tokens=draw.randrange(500),
            cut=True,
        )
        for _ in range(count)
    ]


def test_windows_add_up_to_the_window_of_all() -> None:
    some = samples(100)
    together = sum((Window.of([sample]) for sample in some), Window())
    assert together.as_json() == Window.of(some).as_json()
    assert together.requests == 100


def test_a_window_comes_back_from_json() -> None:
    window = Window.of(samples(200)) + Window.of_thumbs([("ann", True), ("bob", False)])
    again = Window.from_json(json.loads(json.dumps(window.as_json())))
    assert again.as_json() == window.as_json()
    assert Window.from_json({}).requests == 0
    older = {name: value for name, value in window.as_json().items() if name != "waiting"}
    assert Window.from_json(older).samples(Metric.LENGTH) == 200


def test_what_was_not_measured_is_not_counted() -> None:
    window = Window.of([Sample("ann", error=True), Sample("bob", first_token=0.2, invalid=False)])
    assert [window.samples(metric) for metric in (Metric.ERRORS, Metric.FIRST_TOKEN, Metric.SCHEMA)] == [2, 1, 1]
    assert window.samples(Metric.THUMBS) == window.samples(Metric.EVALUATION) == 0


def test_a_wait_in_vain_is_a_sample_of_its_own_kind() -> None:
    window = Window.of([Sample("ann", first_token=2.0, waiting=True, tokens=3), Sample("bob", first_token=0.2)])
    assert window.samples(Metric.FIRST_TOKEN) == 2
    assert window.tally(Metric.FIRST_TOKEN).sum() == 1
    waits = window.waits(Metric.FIRST_TOKEN)
    assert waits is not None
    assert waits[:, bin_of(2.0)].sum() == waits.sum() == 1
    assert window.tally(Metric.LENGTH).sum() == 1
    assert window.waits(Metric.LENGTH) is None


def test_a_thumb_counts_no_request() -> None:
    window = Window.of_thumbs([("ann", False)])
    assert window.requests == 0
    assert window.tally(Metric.THUMBS)[:, 1].sum() == 1


def test_a_unit_is_always_in_the_same_bucket() -> None:
    tally = Window.of([Sample("ann") for _ in range(50)]).tally(Metric.ERRORS)
    assert np.count_nonzero(tally.sum(1)) == 1
    many = Window.of([Sample(f"user-{number}") for number in range(3000)])
    assert np.count_nonzero(many.tally(Metric.ERRORS).sum(1)) == BUCKETS
    assert len(many.units) == UNITS


@pytest.mark.parametrize("value", [0.002, 0.1, 1, 7, 3000, 500_000])
def test_a_bin_is_as_good_as_its_value(value: float) -> None:
    assert value_of(bin_of(value)) == pytest.approx(value, rel=0.03)


def test_absurd_values_go_into_the_outermost_bins() -> None:
    assert bin_of(0) == bin_of(-1) == bin_of(1e-9) == 0
    assert bin_of(1e12) == bin_of(1e30)
