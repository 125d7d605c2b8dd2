"""The slot buffer against a plain list of rows, under every order of joining, forking, stepping and leaving."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from llmsearch_optuna.engine.cache import slot_part
from llmsearch_optuna.engine.cache.cache_shape import CacheShape, Segment
from llmsearch_optuna.engine.cache.slot_part import SlotPart, parts_of
from llmsearch_optuna.engine.cache.slots import SlotBuffer, SlotLayer, assemble, extract, shape_of

SHAPE = CacheShape(layers=2, heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def segment(tokens: int, value: float) -> Segment:
    numbers = torch.arange(tokens, dtype=torch.float32) + value
    return numbers[None, None, None, :, None].expand(2, 2, 3, tokens, 4).clone()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 90)),
        st.tuples(st.just("fork"), st.integers(0, 5)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("step"), st.integers(1, 70)),
    ),
    max_size=14,
)


@given(operations, st.booleans())
def test_every_row_keeps_its_tokens(steps: list[tuple[str, int]], several: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            slot_part,
            "devices_of",
            lambda shape: [(torch.device("cpu"), 1)] * 2 if several else [(torch.device("cpu"), 2)],
        )
        buffer = SlotBuffer(SHAPE, 1)
    assert len(buffer._parts) == 1 + several
    rows: list[list[float]] = []
    stamp = 1000.0
    for what, number in steps:
        stamp += 1000.0
        if what == "join":
            first = number // 2
            parts = (
                [segment(first, stamp), segment(number - first, stamp + first)] if first else [segment(number, stamp)]
            )
            assert buffer.join(parts) == len(rows)
            rows.append([stamp + i for i in range(number)])
        elif what == "fork" and rows:
            slot = number % len(rows)
            assert buffer.fork(slot) == len(rows)
            rows.append(list(rows[slot]))
        elif what == "leave" and rows:
            slot = number % len(rows)
            assert buffer.leave(slot) == len(rows) - 1
            rows[slot] = rows[-1]
            rows.pop()
        elif what == "step" and rows:
            for _ in range(number):
                take_step(buffer, rows, stamp)
                stamp += len(rows)
        assert buffer.rows == len(rows)
        for slot, row in enumerate(rows):
            kept = buffer.read(slot, 0, len(row))
            assert kept.shape == (2, 2, 3, len(row), 4)
            assert kept[1, 0, 2, :, 3].tolist() == row
            assert kept[0, 1, 0, :, 0].tolist() == row


def take_step(buffer: SlotBuffer, rows: list[list[float]], stamp: float) -> None:
    buffer.reserve_step()
    mask = buffer.attention_mask()
    assert mask.sum(dim=1).tolist() == [len(row) + 1 for row in rows]
    new = torch.tensor([stamp + i for i in range(len(rows))])[:, None, None, None].expand(-1, 3, 1, 4)
    for _ in range(2):  # a step that failed after writing is repeated
        for layer in buffer.cache.layers:
            keys, _ = layer.update(new, new)
            assert keys.shape[2] == mask.shape[1] == buffer.width + 1
    for slot, row in enumerate(rows):
        row.append(stamp + slot)
        visible = keys[slot, 0, mask[slot].bool(), 0].tolist()
        assert visible == row
    buffer.commit_step()


@pytest.mark.parametrize("failing", [0, 1])
def test_rows_are_where_they_were_when_there_is_no_memory_for_one_of_several_parts(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_part, "devices_of", lambda shape: [(torch.device("cpu"), 1)] * 2)
    buffer = SlotBuffer(SHAPE, 1)
    buffer.join([segment(70, 1.0)])
    buffer.join([segment(3, 500.0)])
    realign, allowed = SlotPart.realign, [failing]

    def short_of_memory(part: SlotPart, *given: int) -> None:
        if not allowed[0]:
            raise MemoryError
        allowed[0] -= 1
        realign(part, *given)

    monkeypatch.setattr(SlotPart, "realign", short_of_memory)
    with pytest.raises(MemoryError):
        buffer.join([segment(200, 2000.0)])
    assert torch.equal(buffer.read(0, 0, 70), segment(70, 1.0))
    assert torch.equal(buffer.read(1, 1, 3), segment(3, 500.0)[:, :, :, 1:])
    buffer.leave(0)
    assert torch.equal(buffer.read(0, 0, 3), segment(3, 500.0))
    allowed[0] = 10
    rows = [[500.0, 501.0, 502.0]]
    take_step(buffer, rows, 7000.0)
    buffer.join([segment(200, 2000.0)])
    rows.append([2000.0 + i for i in range(200)])
    take_step(buffer, rows, 8000.0)
    assert buffer.read(0, 0, 5)[1, 0, 2, :, 3].tolist() == rows[0]


def test_a_device_beside_the_processor_has_its_layers_in_several_parts() -> None:
    devices = (torch.device("cuda", 0),) * 5 + (torch.device("cuda", 1),) * 2
    shape = CacheShape(7, 3, 4, torch.float16, devices[0], devices)
    assert [(part.layers.start, part.layers.stop) for part in parts_of(shape)] == [
        (0, 2),
        (2, 4),
        (4, 5),
        (5, 6),
        (6, 7),
    ]
    assert [part.device.index for part in parts_of(shape)] == [0, 0, 0, 1, 1]
    assert len(parts_of(SHAPE)) == 1


def test_cutting_out_and_putting_together_are_inverse() -> None:
    parts = [segment(3, 0.0), segment(2, 3.0)]
    cache = assemble(parts, 2, torch.device("cpu"))
    assert cache.get_seq_length() == 5
    assert torch.equal(extract(cache, 1, 0, 5), torch.cat(parts, dim=3))
    assert shape_of(cache) == SHAPE


def test_a_cache_whose_rows_cannot_be_cut_is_named() -> None:
    assert "fills no cache" in str(shape_of(DynamicCache()))
    cache = assemble([segment(3, 0.0)], 1, torch.device("cpu"))
    cache.update(torch.zeros(1, 3, 3, 8), torch.zeros(1, 3, 3, 8), 2)
    assert "different shapes" in str(shape_of(cache))


def test_transformers_still_asks_a_layer_for_what_slots_override() -> None:
    """The methods below are the whole of what we replace; a renamed one would silently bypass the buffer."""
    for name in ("update", "get_seq_length", "get_mask_sizes"):
        assert name in vars(DynamicLayer), f"transformers' DynamicLayer has no {name} any more"
        assert name in vars(SlotLayer)
