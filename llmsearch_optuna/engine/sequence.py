"""Walkers: requests on their way down a prompt's tree.

A sequence stands on one node (or, with beams, on several) and can go on as soon as their scores are there; it
does not matter whether those were computed for it, for another request, or a trial ago.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmsearch_optuna.engine.cache.prefix_cache import Node, PromptTree
from llmsearch_optuna.engine.model_runner import NextTokenScores
from llmsearch_optuna.engine.request import Completion, FinishReason, Request
from llmsearch_optuna.engine.sampling.beam_search import BeamSearch
from llmsearch_optuna.engine.sampling.mirostat import MirostatState
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.settings import Candidates
from llmsearch_optuna.engine.sampling.stop import Stopper

LogitsOf = Callable[[Sequence[Node]], NDArray[np.float32]]
"""All logits ``[nodes, vocab]`` of nodes that have scores."""


class TokenSequence:
    """A request that takes one token after the other: greedy or sampling.

    It carries what picking needs to know of a row (the ``SamplerRow`` protocol of the warpers).
    """

    def __init__(self, request: Request, tree: PromptTree, row_key: int, stopper: Stopper) -> None:
        self.request = request
        self.tree = tree
        self.params: GenerationParams = request.params
        self.context: list[int] = list(tree.start)
        self.prompt_length = len(tree.start)
        self.seen: set[int] = set(tree.start)
        self.row_key = row_key
        self.mirostat = MirostatState.of(request.params)
        self.step = 0
        self.reason: FinishReason | None = None
        self._stop = stopper.start()
        self._node = tree.root
        self._node.enter()

    @property
    def frontier(self) -> tuple[Node, ...]:
        """Where it stands."""
        return (self._node,)

    @property
    def node(self) -> Node:
        """Where it stands."""
        return self._node

    def advance(self, token: int) -> None:
        """Go on by one token; sets ``reason`` when it was the last."""
        self.context.append(token)
        self.seen.add(token)
        self.step += 1
        self.reason = self._stop.push(token)
        child = self._node.child(token) if self.reason is None else None
        if child is not None:
            child.enter()
            self._node.leave()
            self._node = child

    def leave(self) -> None:
        """Leave the tree, finished or cancelled."""
        self._node.leave()

    def completion(self) -> Completion:
        """The finished text."""
        assert self.reason is not None
        tokens = tuple(self.context[self.prompt_length :])
        return Completion(self._stop.text(), tokens, self.reason, len(self.tree.prompt_ids))


class BeamSequence:
    """A request that follows several hypotheses: beam search or beam sampling."""

    def __init__(self, request: Request, tree: PromptTree, row_key: int, stopper: Stopper, vocab_size: int) -> None:
        self.request = request
        self.tree = tree
        self.params: GenerationParams = request.params
        self._stopper = stopper
        self._vocab_size = vocab_size
        self._beam = BeamSearch(
            request.params,
            prompt_token_ids=tree.start,
            row_key=row_key,
            stopper=stopper,
            vocab_size=vocab_size,
        )
        self._nodes: dict[tuple[int, ...], Node] = {(): tree.root}
        tree.root.enter()

    @property
    def frontier(self) -> tuple[Node, ...]:
        """The nodes of all running hypotheses."""
        return tuple(self._nodes.values())

    @property
    def finished(self) -> bool:
        """Whether no hypothesis can become the answer any more."""
        return self._beam.finished

    def advance(self, logits_of: LogitsOf) -> bool:
        """Go on by one token in all hypotheses; tells whether all logits had to be looked up.

        Whatever fails inside, out of memory included, leaves it where it was.
        """
        scores = {path: self._candidates(node.scores) for path, node in self._nodes.items() if node.scores is not None}
        beams = self._beam.after(scores)
        looked_up = beams is None
        if beams is None:
            rows = logits_of(list(self._nodes.values()))
            beams = self._beam.after_full(dict(zip(self._nodes, rows, strict=True)))
        nodes = self._nodes if beams.finished else self._children(beams.paths)
        self._beam.go_on(beams)
        self._move_to(nodes)
        return looked_up

    def leave(self) -> None:
        """Leave the tree, finished or cancelled."""
        for node in self._nodes.values():
            node.leave()
        self._nodes = {}

    def completion(self) -> Completion:
        """The best hypothesis."""
        tokens, reason = self._beam.result()
        text, _ = self._stopper.finish(tokens)
        return Completion(text, tokens, reason, len(self.tree.prompt_ids))

    def _children(self, paths: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Node]:
        return {path: self._nodes[path[:-1]].child(path[-1]) for path in paths}

    def _move_to(self, nodes: dict[tuple[int, ...], Node]) -> None:
        for node in nodes.values():
            node.enter()
        for node in self._nodes.values():
            node.leave()
        self._nodes = nodes

    def _candidates(self, scores: NextTokenScores) -> Candidates:
        return Candidates(scores.values[None], scores.ids[None], np.array([scores.log_total]), self._vocab_size)


RunningSequence = TokenSequence | BeamSequence
