"""The trees that the prefix cache keeps: a node for every prefix of a prompt's continuations, and what is known there.

Raw next-token scores depend only on the tokens before them, never on generation parameters, so all trials share one
tree for each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsearch_optuna.engine.cache.cache_shape import Segment
from llmsearch_optuna.engine.cache.score_arena import NextTokenScores
from llmsearch_optuna.engine.memory import allocated_bytes


class Node:
    """One prefix of one prompt's continuations: the path of tokens from the root to here.

    Attributes:
        token: The last token of the path (-1 at the root, which stands for the prompt itself).
        depth: Tokens on the path.
        scores: The scores of the next token; None while they have not been computed or after they were evicted.
        location: Where the keys and values of this node's token are: stored, or in a row of the running batch; None
            where they are nowhere. Only the prefix cache sets it.
        offset: The token's place in what is stored.
        references: How many sequences wait here; scores are not evicted from under them.
        budgeted: Whether the scores are counted in the budget (and will be evicted from there).
        known: Whether the scores were ever computed (for counting distinct prefixes).
    """

    __slots__ = (
        "budgeted",
        "children",
        "depth",
        "known",
        "location",
        "offset",
        "parent",
        "references",
        "scores",
        "token",
        "tree",
    )

    def __init__(self, tree: PromptTree, parent: Node | None, token: int) -> None:
        self.tree = tree
        self.parent = parent
        self.token = token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[int, Node] = {}
        self.scores: NextTokenScores | None = None
        self.location: KVBlock | BatchRow | None = None
        self.offset = 0
        self.references = 0
        self.budgeted = False
        self.known = False

    def acquire(self) -> None:
        """Count a sequence that waits here from now on."""
        self.references += 1

    def release(self) -> None:
        """Count a sequence that has gone on; scores outside the budget are dropped with the last one."""
        self.references -= 1
        if not self.references and not self.budgeted and not isinstance(self.location, BatchRow):
            self.scores = None
            prune(self)

    def child(self, token: int) -> Node:
        """Return the prefix that is longer by this token, as a new node where there is none."""
        node = self.children.get(token)
        if node is None:
            node = self.children[token] = Node(self.tree, self, token)
        return node

    def path(self) -> list[Node]:
        """Return the nodes from the root (not included) down to this one."""
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
        start: What precedes the first new token in the decoder: the prompt itself, or the start token of an
            encoder-decoder model.
        shared: How many of its first tokens are a prefix that many prompts share (stored once, not here).
        shared_segment: The keys and values of these tokens; None where there are none.
        prompt_block: The keys and values of the rest of ``start``.
        references: Sequences of this prompt; while there are any, the prompt's keys and values are outside the budget.
    """

    __slots__ = ("prompt_block", "prompt_ids", "references", "root", "shared", "shared_segment", "start")

    def __init__(
        self, prompt_ids: tuple[int, ...], start: tuple[int, ...], shared: int, shared_segment: Segment | None = None
    ) -> None:
        self.prompt_ids = prompt_ids
        self.start = start
        self.shared = shared
        self.shared_segment = shared_segment
        self.root = Node(self, None, -1)
        self.prompt_block: KVBlock | None = None
        self.references = 0


class KVBlock:
    """Stored keys and values of consecutive tokens: of a prompt, or of nodes on one path.

    A prompt's block also holds what its rows attend to in an encoder-decoder model (``cross``).
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
        """Bytes that the block takes."""
        return sum(allocated_bytes(part) for part in (self.segment, self.cross) if part is not None)

    def move(self, copy: Callable[[Segment], Segment]) -> None:
        """Replace the tensors by copies; nothing has changed when copying fails."""
        segment, cross = (None if part is None else copy(part) for part in (self.segment, self.cross))
        self.segment, self.cross = segment, cross

    def drop(self) -> None:
        """Free the tensors, and take the block from its nodes or its prompt."""
        self.segment = self.cross = None
        for node in self.nodes:
            if node.location is self:
                node.location = None
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
        """Free the scores of nodes that no sequence waits at."""
        for node in self.nodes:
            node.budgeted = False
            if not node.references:
                node.scores = None
                prune(node)


class BatchRow:
    """One row of the running batch.

    Attributes:
        slot: Its place in the slot buffer.
        node: The last node whose token it holds.
        unstored: Nodes whose keys and values are in this row and stored nowhere.
    """

    __slots__ = ("node", "slot", "unstored")

    def __init__(self, slot: int, node: Node) -> None:
        self.slot = slot
        self.node = node
        self.unstored: list[Node] = []


def prune(node: Node) -> None:
    """Take a node out of its tree when nothing is known at it or below, and so on upwards."""
    while node.parent is not None and not (node.children or node.scores or node.location or node.references):
        parent = node.parent
        if parent.children.get(node.token) is node:
            del parent.children[node.token]
        node = parent
