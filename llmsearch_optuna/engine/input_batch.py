"""The running batch: the rows of the slot buffer, always exactly those that the coming step computes."""

from __future__ import annotations

from collections.abc import Sequence

from llmsearch_optuna.engine.cache.cache_shape import Segment
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import BatchRow, Node, PromptTree
from llmsearch_optuna.engine.cache.slots import SlotBuffer
from llmsearch_optuna.engine.model_runner import ModelRunner
from llmsearch_optuna.engine.stats import EngineStats


class InputBatch:
    """Brings rows into the slot buffer, computes one token for each, and stores rows that leave.

    Args:
        buffer: Holds the rows' keys and values.
        cache: Stores them when a row leaves, and gives those of a row that joins.
        runner: Runs the model.
        stats: Counts steps, rows and what is computed again.
    """

    def __init__(self, buffer: SlotBuffer, cache: PrefixCache, runner: ModelRunner, stats: EngineStats) -> None:
        self.buffer = buffer
        self._cache = cache
        self._runner = runner
        self._stats = stats
        self._rows: list[BatchRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def slots(self) -> int:
        """Rows that the buffer has memory for."""
        return self.buffer.slots

    def step(self, nodes: Sequence[Node]) -> None:
        """Compute the scores of these nodes (distinct, none a root) in one pass.

        Whatever fails inside, out of memory included, leaves rows and nodes so that the call can be repeated.
        """
        targets = self._arrange(nodes)
        # Of these the scores were evicted and the keys and values were not: they are not stored again.
        stored = {row: node for row, node in targets.items() if self._cache.is_stored(node)}
        for row in stored:
            self._store(row)
        self.buffer.reserve_step()
        states = self._runner.step(self.buffer, [targets[row].token for row in self._rows])
        scores = self._runner.scores(states)
        self.buffer.commit_step()
        for row, node_scores in zip(self._rows, scores, strict=True):
            targets[row].scores = node_scores
        for row, node in targets.items():
            self._cache.hold(row, node)
        for node in stored.values():
            self._cache.store_scores([node])
        self._stats.steps += 1
        self._stats.step_rows += len(nodes)

    def discard(self) -> None:
        """Drop every row and keep only its scores: there is no memory to store it in."""
        for row in self._rows:
            self._cache.store_row(row, None)
        self._rows = []
        self.buffer.clear()

    def _arrange(self, nodes: Sequence[Node]) -> dict[BatchRow, Node]:
        """Have one row end at the parent of each node, and no other row; returns the node of each row."""
        ends = {row.node: row for row in self._rows}
        targets: dict[BatchRow, Node] = {}
        others: list[Node] = []
        for node in nodes:
            row = ends.get(node.parent) if node.parent is not None else None
            if row is None or row in targets:
                others.append(node)
            else:
                targets[row] = node
        for row in [row for row in self._rows if row not in targets]:
            self._remove(row)
        if others:
            longest = max(len(node.tree.start) + node.depth - 1 for node in others)
            self.buffer.make_room(len(nodes), longest)
        for node in others:
            assert node.parent is not None
            end = ends.get(node.parent)
            slot = self._join(node.parent) if end is None else self.buffer.fork(end.slot)
            row = BatchRow(slot, node.parent)
            self._rows.append(row)
            targets[row] = node
        return targets

    def _store(self, row: BatchRow) -> None:
        """Store what only this row holds."""
        if not row.unstored:
            return
        nodes, segment = row.unstored, None
        # Reading may run out of memory, so nothing has changed before it.
        if self._cache.budget:
            first = len(nodes[0].tree.start) + nodes[0].depth - 1
            segment = self.buffer.read(
                row.slot, first, first + len(nodes)
            )  # may run out of memory: nothing has changed
        self._cache.store_row(row, segment)

    def _remove(self, row: BatchRow) -> None:
        self._store(row)
        moved = self._rows.pop()
        self.buffer.leave(row.slot)
        if moved is not row:
            moved.slot = row.slot
            self._rows[row.slot] = moved

    def _join(self, node: Node) -> int:
        segments = self._segments(node)
        return self.buffer.join(segments, self._cache.cross_segment(node.tree))

    def _segments(self, node: Node) -> list[Segment]:
        """Keys and values of a node's prompt and path: stored, read from other rows, or computed again."""
        tree, path = node.tree, node.path()
        segments, covered = self._cache.prompt_segments(tree)
        if covered < len(tree.start) and self._runner.starts_with_encoder:
            segments, covered = self._encode_again(tree)
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
            segments.append(self._compute_again(tree, path, segments, covered, missing))
        return segments

    def _next_segment(self, path: Sequence[Node], index: int, start_length: int) -> tuple[Segment | None, int]:
        row, end = self._cache.row_of(path, index)
        if row is None:
            return self._cache.path_segment(path, index)
        return self.buffer.read(row.slot, start_length + index, start_length + end), end

    def _encode_again(self, tree: PromptTree) -> tuple[list[Segment], int]:
        """Run an evicted prompt through the encoder again."""
        (prompt,) = self._runner.prefill([tree.prompt_ids])
        self._stats.recomputed_tokens += len(tree.prompt_ids)
        self._cache.store_prompt(tree, prompt.segment, prompt.cross)
        return [prompt.segment], len(tree.start)

    def _compute_again(
        self,
        tree: PromptTree,
        path: Sequence[Node],
        segments: Sequence[Segment],
        covered: int,
        missing: Sequence[int],
    ) -> Segment:
        """Run the missing tokens behind the others, in one pass, and store them again."""
        segment = self._runner.extend(missing, segments, self._cache.cross_segment(tree))
        self._stats.recomputed_tokens += len(missing)
        start_part = max(0, len(tree.start) - covered)
        if start_part and (self._cache.stores_running_prompts or not tree.references):
            self._cache.store_prompt(tree, segment[:, :, :, :start_part].clone())
        tail = path[max(0, covered - len(tree.start)) :]
        if tail and self._cache.budget and all(n.location is None for n in tail):
            self._cache.store_path(tail, segment[:, :, :, start_part:].clone())
        return segment
