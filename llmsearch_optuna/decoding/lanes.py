"""Lanes: which row of the slot buffer stands on which node, and how rows come in, fork and go.

A lane belongs to a place in a prompt's tree, not to a request: requests that stand on the same node are
computed once, and the beams of one row share what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmsearch_optuna.decoding.executor import Executor
from llmsearch_optuna.decoding.kv_cache import Segment, SlotBuffer
from llmsearch_optuna.decoding.replay import Node, PromptTree, ReplayStore
from llmsearch_optuna.decoding.stats import EngineStats


class Lane:
    """One row of the slot buffer.

    Attributes:
        slot: Where it is in the buffer.
        node: The last node whose token it holds.
        fresh: Nodes that were computed in this lane and are stored nowhere else yet.
    """

    __slots__ = ("fresh", "node", "slot")

    def __init__(self, slot: int, node: Node) -> None:
        self.slot = slot
        self.node = node
        self.fresh: list[Node] = []


class Lanes:
    """The rows that are being decoded; always exactly those that the coming step computes."""

    def __init__(self, buffer: SlotBuffer, store: ReplayStore, executor: Executor, stats: EngineStats) -> None:
        self.buffer = buffer
        self._store = store
        self._executor = executor
        self._stats = stats
        self._by_slot: list[Lane] = []

    def __len__(self) -> int:
        return len(self._by_slot)

    def step(self, wanted: Sequence[Node]) -> None:
        """Compute the scores of these nodes (distinct, none a root) in one pass.

        Whatever fails inside, out of memory included, leaves lanes and nodes so that the call can be repeated.
        """
        pending = self._arrange(wanted)
        for lane, node in pending.items():
            if node.run is not None:  # scores were evicted, keys and values were not: this node is not stored again
                self.settle(lane)
        self.buffer.reserve_step()
        states = self._executor.step(self.buffer, [pending[lane].token for lane in self._by_slot])
        scores = self._executor.scores(states)
        self.buffer.commit_step()
        for lane, node_scores in zip(self._by_slot, scores, strict=True):
            node = pending[lane]
            lane.node = node
            node.scores = node_scores
            if node.run is None:
                lane.fresh.append(node)
                node.lane = lane
        for node in pending.values():
            if node.lane is None:
                self._store.keep_scores([node])
        self._stats.steps += 1
        self._stats.step_rows += len(wanted)

    def settle(self, lane: Lane) -> None:
        """Hand what was computed in a lane over to the store."""
        if not lane.fresh:
            return
        nodes = lane.fresh
        first = len(nodes[0].tree.start) + nodes[0].depth - 1
        segment = self.buffer.read(lane.slot, first, first + len(nodes)) if self._store.budget else None
        lane.fresh = []  # only now: reading may run out of memory
        for node in nodes:
            node.lane = None
        if segment is not None:
            self._store.keep_path(nodes, segment)
        self._store.keep_scores(nodes)

    def release_all(self) -> None:
        """End every lane."""
        for lane in list(self._by_slot):
            self._release(lane)

    def abandon(self) -> None:
        """Drop every lane without storing anything: there is no memory to store it in."""
        for lane in self._by_slot:
            for node in lane.fresh:
                node.lane = None
            self._store.keep_scores(lane.fresh)
        self._by_slot = []
        self.buffer.clear()

    def _arrange(self, wanted: Sequence[Node]) -> dict[Lane, Node]:
        """Bring the lanes into the state before the step: one at the parent of each wanted node, no other."""
        heads = {lane.node: lane for lane in self._by_slot}
        pending: dict[Lane, Node] = {}
        others: list[Node] = []
        for node in wanted:
            lane = heads.get(node.parent) if node.parent is not None else None
            if lane is None or lane in pending:
                others.append(node)
            else:
                pending[lane] = node
        for lane in [lane for lane in self._by_slot if lane not in pending]:
            self._release(lane)
        if others:
            longest = max(len(node.tree.start) + node.depth - 1 for node in others)
            self.buffer.make_room(len(wanted), longest)
        for node in others:
            assert node.parent is not None
            head = heads.get(node.parent)
            slot = self._join(node.parent) if head is None else self.buffer.fork(head.slot)
            lane = Lane(slot, node.parent)
            self._by_slot.append(lane)
            pending[lane] = node
        return pending

    def _release(self, lane: Lane) -> None:
        self.settle(lane)
        moved = self._by_slot.pop()
        self.buffer.leave(lane.slot)
        if moved is not lane:
            moved.slot = lane.slot
            self._by_slot[lane.slot] = moved

    def _join(self, node: Node) -> int:
        segments = self._fetch(node)
        return self.buffer.join(segments, self._store.cross_segment(node.tree))

    def _fetch(self, node: Node) -> list[Segment]:
        """Keys and values of a node's prompt and path: stored, read from lanes, or computed again."""
        tree, path = node.tree, node.path()
        segments, covered = self._store.prompt_segments(tree)
        if covered < len(tree.start) and self._executor.starts_with_encoder:
            segments, covered = self._restart(tree)
        if covered == len(tree.start):
            index = 0
            while index < len(path):
                segment, end = self._next_segment(path, index, len(tree.start))
                if segment is None:
                    break
                segments.append(segment)
                index = end
            covered += index
        missing = (*tree.start, *(n.token for n in path))[covered:]
        if missing:
            segments.append(self._recompute(tree, path, segments, covered, missing))
        return segments

    def _next_segment(self, path: Sequence[Node], index: int, start_length: int) -> tuple[Segment | None, int]:
        lane = path[index].lane
        if not isinstance(lane, Lane):
            return self._store.path_segment(path, index)
        end = index + 1
        while end < len(path) and path[end].lane is lane:
            end += 1
        return self.buffer.read(lane.slot, start_length + index, start_length + end), end

    def _restart(self, tree: PromptTree) -> tuple[list[Segment], int]:
        """Run an evicted prompt through the encoder again."""
        (prompt,) = self._executor.prefill([tree.prompt_ids])
        self._stats.recomputed_tokens += len(tree.prompt_ids)
        self._store.keep_prompt(tree, prompt.segment, prompt.cross)
        return [prompt.segment], len(tree.start)

    def _recompute(
        self,
        tree: PromptTree,
        path: Sequence[Node],
        segments: Sequence[Segment],
        covered: int,
        missing: Sequence[int],
    ) -> Segment:
        """Run the missing tokens behind what is there, in one pass, and store them again."""
        segment = self._executor.extend(missing, segments, self._store.cross_segment(tree))
        self._stats.recomputed_tokens += len(missing)
        start_part = max(0, len(tree.start) - covered)
        if start_part:
            self._store.keep_prompt(tree, segment[:, :, :, :start_part].clone())
        tail = path[max(0, covered - len(tree.start)) :]
        if tail and self._store.budget and all(n.run is None and n.lane is None for n in tail):
            self._store.keep_path(tail, segment[:, :, :, start_part:].clone())
        return segment
