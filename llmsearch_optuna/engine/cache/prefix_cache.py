"""The prefix trees: what earlier trials have computed, by prompt and by path of tokens.

Raw next-token scores depend only on the tokens before them, never on generation parameters. Each prompt has
a tree; a node stands for one prefix and keeps the scores that follow it and, while the budget lasts, the
keys and values of its token. Nothing here runs a model or picks a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsearch_optuna.engine.cache.lru import LeastRecentlyUsed
from llmsearch_optuna.engine.cache.offload import HostOffload
from llmsearch_optuna.engine.cache.slots import Segment, SlotBuffer
from llmsearch_optuna.engine.memory import forget_traceback, is_out_of_memory
from llmsearch_optuna.engine.model_runner import ModelRunner, NextTokenScores
from llmsearch_optuna.engine.stats import EngineStats


class Node:
    """One prefix of one prompt's continuations: the path of tokens from the root to here.

    Attributes:
        token: The last token of the path (-1 at the root, which stands for the prompt itself).
        depth: Tokens on the path.
        scores: What follows; None while it has not been computed or after it was evicted.
        run, offset: The stored keys and values that hold this node's token, and where in them.
        lane: The row of the slot buffer that holds this node's token now, if one does.
        visitors: How many requests stand here; scores are not evicted from under them.
        budgeted: Whether the scores are counted in the budget (and will be evicted from there).
        known: Whether the scores were ever computed (for counting distinct prefixes).
    """

    __slots__ = (
        "budgeted",
        "children",
        "depth",
        "known",
        "lane",
        "offset",
        "parent",
        "run",
        "scores",
        "token",
        "tree",
        "visitors",
    )

    def __init__(self, tree: PromptTree, parent: Node | None, token: int) -> None:
        self.tree = tree
        self.parent = parent
        self.token = token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[int, Node] = {}
        self.scores: NextTokenScores | None = None
        self.run: Run | None = None
        self.offset = 0
        self.lane: object | None = None
        self.visitors = 0
        self.budgeted = False
        self.known = False

    def enter(self) -> None:
        """A request stands here from now on."""
        self.visitors += 1

    def leave(self) -> None:
        """A request has gone on; scores that nobody keeps go with the last one."""
        self.visitors -= 1
        if not self.visitors and not self.budgeted and self.lane is None:
            self.scores = None
            forget_if_bare(self)

    def child(self, token: int) -> Node:
        """The prefix that is longer by this token; made when nobody was there before."""
        node = self.children.get(token)
        if node is None:
            node = self.children[token] = Node(self.tree, self, token)
        return node

    def path(self) -> list[Node]:
        """The nodes from the root (not included) down to this one."""
        nodes: list[Node] = []
        node: Node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PromptTree:
    """Everything that is known about the continuations of one prompt (its token ids are the key).

    Attributes:
        prompt_ids: The prompt.
        start: What stands before the first new token in the decoder: the prompt itself, or the start token of an
            encoder-decoder model.
        shared: How many of its first tokens it has in common with all prompts (kept once, not here).
        prompt_block: The keys and values of the rest of ``start``.
        visitors: Requests on this tree; while there are any, the prompt's keys and values are working memory.
    """

    __slots__ = ("prompt_block", "prompt_ids", "root", "shared", "start", "visitors")

    def __init__(self, prompt_ids: tuple[int, ...], start: tuple[int, ...], shared: int) -> None:
        self.prompt_ids = prompt_ids
        self.start = start
        self.shared = shared
        self.root = Node(self, None, -1)
        self.prompt_block: Run | None = None
        self.visitors = 0


class Run:
    """Stored keys and values of consecutive tokens: of a prompt, or of nodes on one path.

    A prompt's run also holds what its rows attend to in an encoder-decoder model (``cross``).
    """

    __slots__ = ("cross", "nodes", "segment", "tree")

    def __init__(
        self,
        segment: Segment,
        *,
        tree: PromptTree | None = None,
        nodes: Sequence[Node] = (),
        cross: Segment | None = None,
    ) -> None:
        self.segment: Segment | None = segment
        self.cross = cross
        self.tree = tree
        self.nodes = tuple(nodes)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.segment, self.cross) if part is not None)

    def move(self, copy: Callable[[Segment], Segment]) -> None:
        """Keep copies in the place of what is held; nothing has changed when copying fails."""
        segment, cross = (None if part is None else copy(part) for part in (self.segment, self.cross))
        self.segment, self.cross = segment, cross

    def drop(self) -> None:
        self.segment = self.cross = None
        for node in self.nodes:
            if node.run is self:
                node.run = None
        if self.tree is not None and self.tree.prompt_block is self:
            self.tree.prompt_block = None


class ScoreBlock:
    """The scores of nodes that were computed one after the other; evicted together."""

    __slots__ = ("nbytes", "nodes")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.nbytes = sum(node.scores.nbytes for node in nodes if node.scores is not None)
        for node in nodes:
            node.budgeted = True

    def drop(self) -> None:
        for node in self.nodes:
            node.budgeted = False
            if not node.visitors:
                node.scores = None
                forget_if_bare(node)


def forget_if_bare(node: Node) -> None:
    """Take a node out of its tree when nothing is stored at it or below, and so on upwards."""
    while node.parent is not None and not (node.children or node.scores or node.run or node.visitors or node.lane):
        parent = node.parent
        if parent.children.get(node.token) is node:
            del parent.children[node.token]
        node = parent


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
        self.runs: LeastRecentlyUsed[Run] = LeastRecentlyUsed(budget, evict=self._move_to_host)
        self.host_blocks: LeastRecentlyUsed[Run] = LeastRecentlyUsed(0 if self._host is None else self._host.budget)
        self.trees: dict[tuple[int, ...], PromptTree] = {}
        self.shared_ids: tuple[int, ...] = ()
        self.shared_segment: Segment | None = None
        self.keeps_prompts = True
        """Whether a prompt that is computed again for a row in flight is stored; off while memory is short."""

    @property
    def nbytes(self) -> int:
        """Bytes that are kept within the budget (not those on the host)."""
        return self.scores.nbytes + self.runs.nbytes

    @property
    def evictions(self) -> int:
        """How many things were given up."""
        runs = self.runs if self._host is None else self.host_blocks
        return self.scores.evictions + runs.evictions

    def tree(self, prompt_ids: tuple[int, ...]) -> PromptTree:
        """The tree of a prompt; made when nobody asked this prompt before."""
        tree = self.trees.get(prompt_ids)
        if tree is None:
            shared = self.shared_ids
            common = len(shared) if len(prompt_ids) > len(shared) and prompt_ids[: len(shared)] == shared else 0
            tree = self.trees[prompt_ids] = PromptTree(prompt_ids, self._start or prompt_ids, common)
        return tree

    def share_prefix(self, prefix: tuple[int, ...]) -> None:
        """Keep the keys and values of this prefix once for all prompts that begin with it; set before any tree."""
        if not self.trees:
            self.shared_ids = prefix

    def visit(self, tree: PromptTree) -> None:
        """A request works on this tree from now on."""
        tree.visitors += 1

    def depart(self, tree: PromptTree) -> None:
        """A request is done with this tree; with the last one the prompt falls under the budget."""
        tree.visitors -= 1
        if not tree.visitors and tree.prompt_block is not None:
            self._keep_block(tree.prompt_block)

    def keep_prompt(self, tree: PromptTree, segment: Segment, cross: Segment | None = None) -> None:
        """Keep the keys and values of a prompt (without the shared prefix), and what its rows attend to."""
        tree.prompt_block = Run(segment, tree=tree, cross=cross)
        if not tree.visitors:
            self._keep_block(tree.prompt_block)

    def keep_path(self, nodes: Sequence[Node], segment: Segment) -> None:
        """Keep the keys and values of consecutive nodes (``segment`` has one token a node)."""
        run = Run(segment, nodes=nodes)
        for offset, node in enumerate(nodes):
            node.run, node.offset = run, offset
        self._keep_block(run)

    def keep_scores(self, nodes: Sequence[Node]) -> None:
        """Count the scores of these nodes against the budget (they are there already)."""
        scored = [node for node in nodes if node.scores is not None and not node.budgeted]
        if scored:
            self.scores.add(ScoreBlock(scored))
            self._balance()

    def prompt_segments(self, tree: PromptTree) -> tuple[list[Segment], int]:
        """The stored keys and values of a prompt, and how many of its tokens they cover."""
        segments: list[Segment] = []
        if tree.shared:
            if self.shared_segment is None:
                return [], 0
            segments.append(self.shared_segment)
        run = tree.prompt_block
        if run is None or run.segment is None:
            return segments, tree.shared
        return [*segments, self._use(run, run.segment)], len(tree.start)

    def cross_segment(self, tree: PromptTree) -> Segment | None:
        """What the rows of an encoder-decoder model's prompt attend to, while it is stored."""
        run = tree.prompt_block
        return None if run is None or run.cross is None else self._use(run, run.cross)

    def path_segment(self, path: Sequence[Node], first: int) -> tuple[Segment | None, int]:
        """The stored keys and values of consecutive nodes from ``path[first]`` on, and the index after them."""
        run, offset = path[first].run, path[first].offset
        if run is None or run.segment is None:
            return None, first
        end = first + 1
        while end < len(path) and path[end].run is run and path[end].offset == offset + end - first:
            end += 1
        # The whole run: a part of it on the host would be gathered there at once, before its copy has arrived.
        return self._use(run, run.segment)[:, :, :, offset : offset + end - first], end

    def _use(self, run: Run, part: Segment) -> Segment:
        """What a run holds, on the device. What is on the host stays there: every round of trials asks for every
        prompt, so whatever it replaced would be wanted next."""
        if self._host is None or run not in self.host_blocks:
            self.runs.touch(run)
            return part
        self.host_blocks.touch(run)
        return self._host.fetch(part)

    def _move_to_host(self, run: Run) -> None:
        """What the device has no room for."""
        if self._host is None or run.nbytes > self._host.budget:
            run.drop()
            return
        try:
            run.move(self._host.store)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_traceback(error)
            run.drop()
        else:
            self.host_blocks.add(run)

    def _keep_block(self, run: Run) -> None:
        if run in self.host_blocks:
            self.host_blocks.touch(run)
            return
        self.runs.add(run)
        self._balance()

    def _balance(self) -> None:
        """Evict down to the budget: first what is borrowed by the scores, then what is by keys and values."""
        excess = self.nbytes - self.budget
        if excess > 0:
            self.scores.shrink(max(self.budget // 3, self.scores.nbytes - excess))
            self.runs.shrink(self.budget - self.scores.nbytes)

    def release(self) -> int:
        """Give stored keys and values back because memory is short; scores stay. Returns the bytes freed."""
        return self.runs.shrink(0)

    def release_prompts(self) -> int:
        """Give back the prompts of rows in flight; from now on what is computed again of them is not stored again.

        They move to the host where there is one. Returns the bytes freed.
        """
        self.keeps_prompts = False
        runs = [tree.prompt_block for tree in self.trees.values() if tree.visitors]
        held = [run for run in runs if run is not None and run not in self.runs and run not in self.host_blocks]
        freed = sum(run.nbytes for run in held)
        for run in held:
            self._move_to_host(run)
        return freed

    def release_scores(self) -> int:
        """Give stored next-token scores back as well; what rows stand on is computed again."""
        return self.scores.shrink(0)

    def release_host(self) -> int:
        """The same because the host's memory is short: where that is another, nothing may move there now."""
        return self.runs.shrink(0) if self._host is None else self.host_blocks.shrink(0)


class BatchRow:
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


class InputBatch:
    """The rows that are being decoded; always exactly those that the coming step computes."""

    def __init__(self, buffer: SlotBuffer, store: PrefixCache, runner: ModelRunner, stats: EngineStats) -> None:
        self.buffer = buffer
        self._cache = store
        self._runner = runner
        self._stats = stats
        self._by_slot: list[BatchRow] = []

    def __len__(self) -> int:
        return len(self._by_slot)

    @property
    def slots(self) -> int:
        """Rows that the buffer has memory for."""
        return self.buffer.slots

    def step(self, wanted: Sequence[Node]) -> None:
        """Compute the scores of these nodes (distinct, none a root) in one pass.

        Whatever fails inside, out of memory included, leaves lanes and nodes so that the call can be repeated.
        """
        pending = self._arrange(wanted)
        for lane, node in pending.items():
            if node.run is not None:  # scores were evicted, keys and values were not: this node is not stored again
                self.settle(lane)
        self.buffer.reserve_step()
        states = self._runner.step(self.buffer, [pending[lane].token for lane in self._by_slot])
        scores = self._runner.scores(states)
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
                self._cache.keep_scores([node])
        self._stats.steps += 1
        self._stats.step_rows += len(wanted)

    def settle(self, lane: BatchRow) -> None:
        """Hand what was computed in a lane over to the store."""
        if not lane.fresh:
            return
        nodes = lane.fresh
        first = len(nodes[0].tree.start) + nodes[0].depth - 1
        segment = self.buffer.read(lane.slot, first, first + len(nodes)) if self._cache.budget else None
        lane.fresh = []  # only now: reading may run out of memory
        for node in nodes:
            node.lane = None
        if segment is not None:
            self._cache.keep_path(nodes, segment)
        self._cache.keep_scores(nodes)

    def release_all(self) -> None:
        """End every lane."""
        for lane in list(self._by_slot):
            self._release(lane)

    def abandon(self) -> None:
        """Drop every lane without storing anything: there is no memory to store it in."""
        for lane in self._by_slot:
            for node in lane.fresh:
                node.lane = None
            self._cache.keep_scores(lane.fresh)
        self._by_slot = []
        self.buffer.clear()

    def _arrange(self, wanted: Sequence[Node]) -> dict[BatchRow, Node]:
        """Bring the lanes into the state before the step: one at the parent of each wanted node, no other."""
        heads = {lane.node: lane for lane in self._by_slot}
        pending: dict[BatchRow, Node] = {}
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
            lane = BatchRow(slot, node.parent)
            self._by_slot.append(lane)
            pending[lane] = node
        return pending

    def _release(self, lane: BatchRow) -> None:
        self.settle(lane)
        moved = self._by_slot.pop()
        self.buffer.leave(lane.slot)
        if moved is not lane:
            moved.slot = lane.slot
            self._by_slot[lane.slot] = moved

    def _join(self, node: Node) -> int:
        segments = self._fetch(node)
        return self.buffer.join(segments, self._cache.cross_segment(node.tree))

    def _fetch(self, node: Node) -> list[Segment]:
        """Keys and values of a node's prompt and path: stored, read from lanes, or computed again."""
        tree, path = node.tree, node.path()
        segments, covered = self._cache.prompt_segments(tree)
        if covered < len(tree.start) and self._runner.starts_with_encoder:
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
        if not isinstance(lane, BatchRow):
            return self._cache.path_segment(path, index)
        end = index + 1
        while end < len(path) and path[end].lane is lane:
            end += 1
        return self.buffer.read(lane.slot, start_length + index, start_length + end), end

    def _restart(self, tree: PromptTree) -> tuple[list[Segment], int]:
        """Run an evicted prompt through the encoder again."""
        (prompt,) = self._runner.prefill([tree.prompt_ids])
        self._stats.recomputed_tokens += len(tree.prompt_ids)
        self._cache.keep_prompt(tree, prompt.segment, prompt.cross)
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
        segment = self._runner.extend(missing, segments, self._cache.cross_segment(tree))
        self._stats.recomputed_tokens += len(missing)
        start_part = max(0, len(tree.start) - covered)
        if start_part and (self._cache.keeps_prompts or not tree.visitors):
            self._cache.keep_prompt(tree, segment[:, :, :, :start_part].clone())
        tail = path[max(0, covered - len(tree.start)) :]
        if tail and self._cache.budget and all(n.run is None and n.lane is None for n in tail):
            self._cache.keep_path(tail, segment[:, :, :, start_part:].clone())
        return segment
