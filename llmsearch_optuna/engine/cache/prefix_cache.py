"""The prefix cache: what earlier trials have computed, by prompt and by path of tokens, within a budget.

It alone knows where a prefix's keys and values are: in a stored block, on the device or on the host, or in a row of the
running batch. Nothing here runs a model or samples a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmsearch_optuna.engine.cache.cache_shape import Segment
from llmsearch_optuna.engine.cache.lru import LeastRecentlyUsed
from llmsearch_optuna.engine.cache.offload import HostOffload
from llmsearch_optuna.engine.cache.prefix_tree import BatchRow, KVBlock, Node, PromptTree, ScoreBlock
from llmsearch_optuna.engine.memory import forget_traceback, is_out_of_memory


class PrefixCache:
    """All prompt trees, and the budget under which they keep what was computed.

    Scores are a few kilobytes a token and save a forward pass each; keys and values are larger and save the
    recomputation of a prefix. So a third of the budget is reserved for scores and the rest for keys and values; what
    one of them does not need the other may borrow. Keys and values for which the device has no room are moved to the
    host's memory, and given up when that is full, too.

    Args:
        budget: Bytes that stored scores, keys and values may take together; 0 keeps nothing.
        start: What the decoder of an encoder-decoder model begins with; None where that is the prompt.
        host: The memory behind the device's; None where there is none.
    """

    def __init__(self, budget: int, start: tuple[int, ...] | None = None, host: HostOffload | None = None) -> None:
        self.budget = budget
        self._start = start
        self._host = host if budget and host is not None and host.budget else None
        self.scores: LeastRecentlyUsed[ScoreBlock] = LeastRecentlyUsed(budget)
        self.blocks: LeastRecentlyUsed[KVBlock] = LeastRecentlyUsed(budget, evict=self._move_to_host)
        self.host_blocks: LeastRecentlyUsed[KVBlock] = LeastRecentlyUsed(0 if self._host is None else self._host.budget)
        self.trees: dict[tuple[int, ...], PromptTree] = {}
        self._shared: dict[tuple[int, ...], Segment] = {}
        self.stores_running_prompts = True
        """Whether a prompt that is computed again for a row in flight is stored; off while memory is short."""

    @property
    def nbytes(self) -> int:
        """Bytes that are kept within the budget (not those on the host)."""
        return self.scores.nbytes + self.blocks.nbytes

    @property
    def evictions(self) -> int:
        """How many things were given up."""
        blocks = self.blocks if self._host is None else self.host_blocks
        return self.scores.evictions + blocks.evictions

    def tree(self, prompt_ids: tuple[int, ...]) -> PromptTree:
        """Return the tree of a prompt, as a new one where there is none."""
        tree = self.trees.get(prompt_ids)
        if tree is None:
            begun = [ids for ids in self._shared if len(prompt_ids) > len(ids) and prompt_ids[: len(ids)] == ids]
            shared = max(begun, key=len, default=())
            tree = PromptTree(prompt_ids, self._start or prompt_ids, len(shared), self._shared.get(shared))
            self.trees[prompt_ids] = tree
        return tree

    def share_prefix(self, prefix: tuple[int, ...], segment: Segment) -> None:
        """Store the keys and values of a prefix once for all prompts that begin with it; called before any tree.

        There may be several: a task that asks in several ways has one for each. A prompt has the longest.
        """
        if not self.trees:
            self._shared[prefix] = segment

    def acquire(self, tree: PromptTree) -> None:
        """Count a sequence of this prompt from now on."""
        tree.references += 1

    def release(self, tree: PromptTree) -> None:
        """Count a sequence that has ended; with the last one the prompt falls under the budget."""
        tree.references -= 1
        if not tree.references and tree.prompt_block is not None:
            self._budget(tree.prompt_block)

    def store_prompt(self, tree: PromptTree, segment: Segment, cross: Segment | None = None) -> None:
        """Store the keys and values of a prompt (without the shared prefix), and what its rows attend to."""
        tree.prompt_block = KVBlock(segment, tree=tree, cross=cross)
        if not tree.references:
            self._budget(tree.prompt_block)

    def store_path(self, nodes: Sequence[Node], segment: Segment) -> None:
        """Store the keys and values of consecutive nodes (``segment`` has one token a node)."""
        block = KVBlock(segment, nodes=nodes)
        for offset, node in enumerate(nodes):
            node.location, node.offset = block, offset
        self._budget(block)

    def store_scores(self, nodes: Sequence[Node]) -> None:
        """Count the scores of these nodes against the budget (they are there already)."""
        scored = [node for node in nodes if node.scores is not None and not node.budgeted]
        if scored:
            self.scores.add(ScoreBlock(scored))
            self._balance()

    def prompt_segments(self, tree: PromptTree) -> tuple[list[Segment], int]:
        """Return the stored keys and values of a prompt, and how many of its tokens they cover."""
        segments: list[Segment] = []
        if tree.shared_segment is not None:
            segments.append(tree.shared_segment)
        block = tree.prompt_block
        if block is None or block.segment is None:
            return segments, tree.shared
        return [*segments, self._use(block, block.segment)], len(tree.start)

    def cross_segment(self, tree: PromptTree) -> Segment | None:
        """Return what the rows of an encoder-decoder model's prompt attend to; None where it is not stored."""
        block = tree.prompt_block
        return None if block is None or block.cross is None else self._use(block, block.cross)

    def path_segment(self, path: Sequence[Node], first: int) -> tuple[Segment | None, int]:
        """Return the stored keys and values of consecutive nodes from ``path[first]`` on, and the index after them."""
        block, offset = path[first].location, path[first].offset
        if not isinstance(block, KVBlock) or block.segment is None:
            return None, first
        end = first + 1
        while end < len(path) and path[end].location is block and path[end].offset == offset + end - first:
            end += 1
        # The whole block: a part of it on the host would be gathered there at once, before its copy has arrived.
        return self._use(block, block.segment)[:, :, :, offset : offset + end - first], end

    def _use(self, block: KVBlock, part: Segment) -> Segment:
        """Return part of a block on the device.

        What is on the host stays there: every round of trials asks for every prompt, so whatever it replaced would be
        wanted next.
        """
        if self._host is None or block not in self.host_blocks:
            self.blocks.touch(block)
            return part
        self.host_blocks.touch(block)
        return self._host.fetch(part)

    def _move_to_host(self, block: KVBlock) -> None:
        """Move a block that the device has no room for, or drop it."""
        if self._host is None or block.nbytes > self._host.budget:
            block.drop()
            return
        try:
            block.move(self._host.store)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_traceback(error)
            block.drop()
        else:
            self.host_blocks.add(block)

    def _budget(self, block: KVBlock) -> None:
        """Count a block against the budget, as the one that was used last."""
        if block in self.host_blocks:
            self.host_blocks.touch(block)
            return
        self.blocks.add(block)
        self._balance()

    def _balance(self) -> None:
        """Evict down to the budget: first what is borrowed by the scores, then what is by keys and values."""
        excess = self.nbytes - self.budget
        if excess > 0:
            self.scores.shrink(max(self.budget // 3, self.scores.nbytes - excess))
            self.blocks.shrink(self.budget - self.scores.nbytes)

    # the running batch's rows

    def hold(self, row: BatchRow, node: Node) -> None:
        """Note that a row of the running batch ends with a node's token, which is there alone unless it is stored."""
        row.node = node
        if node.location is None:
            node.location = row
            row.unstored.append(node)

    def is_stored(self, node: Node) -> bool:
        """Whether a node's keys and values are in a block."""
        return isinstance(node.location, KVBlock)

    def store_row(self, row: BatchRow, segment: Segment | None) -> None:
        """Store what only a row of the running batch holds; without a segment (one token a node) the scores alone."""
        nodes, row.unstored = row.unstored, []
        for node in nodes:
            node.location = None
        if segment is not None:
            self.store_path(nodes, segment)
        self.store_scores(nodes)

    def row_of(self, path: Sequence[Node], first: int) -> tuple[BatchRow | None, int]:
        """Return the row that holds consecutive nodes from ``path[first]`` on, and the index after them."""
        row, end = path[first].location, first + 1
        if not isinstance(row, BatchRow):
            return None, first
        while end < len(path) and path[end].location is row:
            end += 1
        return row, end

    # giving memory back

    def evict_blocks(self) -> int:
        """Evict stored keys and values (to the host where there is one); scores stay. Returns the bytes freed."""
        return self.blocks.shrink(0)

    def evict_running_prompts(self) -> int:
        """Evict the prompts of running sequences; from now on what is computed again of them is not stored again.

        They move to the host where there is one. Returns the bytes freed.
        """
        self.stores_running_prompts = False
        blocks = [tree.prompt_block for tree in self.trees.values() if tree.references]
        held = [
            block
            for block in blocks
            if block is not None and block not in self.blocks and block not in self.host_blocks
        ]
        freed = sum(block.nbytes for block in held)
        for block in held:
            self._move_to_host(block)
        return freed

    def evict_scores(self) -> int:
        """Evict next-token scores; what running sequences need of them is computed again. Returns the bytes freed."""
        return self.scores.shrink(0)

    def evict_host_blocks(self) -> int:
        """Evict what takes the host's memory, where nothing may move to now. Returns the bytes freed."""
        return self.blocks.shrink(0) if self._host is None else self.host_blocks.shrink(0)
