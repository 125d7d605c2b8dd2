"""Running sequences: requests on their way down a prompt's tree.

A sequence waits at one node (or, with beams, at several) and can go on as soon as their scores are there; it does not
matter whether those were computed for it, for another request, or a trial ago.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from llmsearch_optuna.engine.cache.prefix_tree import Node, PromptTree
from llmsearch_optuna.engine.completions import completion_of
from llmsearch_optuna.engine.request import Completion, FinishReason, Request
from llmsearch_optuna.engine.sampling.beam_search import Beams, BeamSearch
from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.dry import DEFAULT_BREAKERS, Breakers, breakers_of
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.engine.sampling.mirostat import MIROSTAT_NAMES, MirostatState
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.stop import Stopper


class TokenSequence:
    """A sequence that takes one token after the other: greedy or sampling.

    It has the members that the sampler reads of a row (see ``SamplerRow``).
    """

    def __init__(
        self, request: Request, tree: PromptTree, row_key: int, stopper: Stopper, dry_breakers: Breakers
    ) -> None:
        self.request = request
        self.dry_breakers = dry_breakers
        self.tree = tree
        self.params: GenerationParams = request.params
        self.context: list[int] = list(tree.start)
        self.prompt_length = len(tree.start)
        self.tokens = np.empty(len(tree.start) + request.params.max_new_tokens, dtype=np.int32)
        self.tokens[: len(tree.start)] = tree.start
        self.seen: set[int] = set(tree.start)
        self.row_key = row_key
        self.mirostat = MirostatState.of(request.params)
        self.step = 0
        self.reason: FinishReason | None = None
        self.cumulative_logprob = 0.0
        self.reasoning = None if request.reasoning is None else request.reasoning.state(tree.start)
        self._stopper = stopper
        self._stop = stopper.start()
        self._pick_as_answer()
        self._node = tree.root
        self._node.acquire()

    @property
    def frontier(self) -> tuple[Node, ...]:
        """The node whose scores it needs."""
        return (self._node,)

    @property
    def is_ready(self) -> bool:
        """Whether these scores are there."""
        return self._node.scores is not None

    @property
    def node(self) -> Node:
        """The node whose scores it needs."""
        return self._node

    @property
    def finished(self) -> bool:
        """Whether its last token has been taken."""
        return self.reason is not None

    def advance(self, token: int) -> None:
        """Take a token; sets ``reason`` when it was the last."""
        self.tokens[len(self.context)] = token
        self.context.append(token)
        self.seen.add(token)
        self.step += 1
        if self.reasoning is not None:
            self.reasoning.push(token)
            self._pick_as_answer()
        self.reason = self._stop.push(token)
        child = self._node.child(token) if self.reason is None else None
        if child is not None:
            child.acquire()
            self._node.release()
            self._node = child

    def _pick_as_answer(self) -> None:
        """Behind a thought, pick by the parameters of the answer; Mirostat begins afresh where they are others."""
        answer = self.request.params.answer
        if self.reasoning is None or self.params is answer or not self.reasoning.is_answering:
            return
        before, self.params = self.params, answer
        if any(before.get(name) != self.params.get(name) for name in MIROSTAT_NAMES):
            self.mirostat = MirostatState.of(self.params, self.step)

    def leave(self) -> None:
        """Leave the tree, finished or cancelled."""
        self._node.release()

    def completion(self) -> Completion:
        """Return the finished text."""
        assert self.reason is not None
        tokens = self.context[self.prompt_length :]
        made = completion_of(self._stopper, tokens, self.reason, len(self.tree.prompt_ids), self.reasoning)
        return replace(made, cumulative_logprob=self.cumulative_logprob) if self.request.logprobs else made


@dataclass(frozen=True, slots=True)
class NextBeams:
    """The next hypotheses of a sequence.

    Attributes:
        beams: Their tokens and scores.
        nodes: The node of each running hypothesis, by its tokens.
        looked_up: Whether all logits had to be looked up.
    """

    beams: Beams
    nodes: Mapping[tuple[int, ...], Node]
    looked_up: bool


class BeamSequence:
    """A sequence of several hypotheses: beam search or beam sampling."""

    def __init__(
        self,
        request: Request,
        tree: PromptTree,
        row_key: int,
        stopper: Stopper,
        dry_breakers: Breakers,
        vocab_size: int,
    ) -> None:
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
            dry_breakers=dry_breakers,
            reasoning=request.reasoning,
        )
        self._nodes: dict[tuple[int, ...], Node] = {(): tree.root}
        tree.root.acquire()

    @property
    def frontier(self) -> tuple[Node, ...]:
        """The nodes of all running hypotheses."""
        return tuple(self._nodes.values())

    @property
    def is_ready(self) -> bool:
        """Whether all their scores are there."""
        return all(node.scores is not None for node in self._nodes.values())

    @property
    def finished(self) -> bool:
        """Whether no hypothesis can become the answer any more."""
        return self._beam.finished

    def next_beams(self, candidates: Candidates) -> NextBeams | None:
        """Return the hypotheses that are one token longer; None where the largest logits do not decide them.

        Nothing moves, whatever fails inside.

        Args:
            candidates: The largest logits of the nodes of the `frontier`, in its order.
        """
        values, ids, totals = (part[:, None] for part in (candidates.values, candidates.ids, candidates.log_total))
        found = {
            path: Candidates(values[row], ids[row], totals[row], candidates.vocab_size)
            for row, path in enumerate(self._nodes)
        }
        beams = self._beam.after(found)
        return None if beams is None else self._following(beams, looked_up=False)

    def next_beams_of_all(self, logits: NDArray[np.float32]) -> NextBeams:
        """Return the hypotheses that are one token longer from all logits of the `frontier`, ``[nodes, vocab]``."""
        return self._following(self._beam.after_full(dict(zip(self._nodes, logits, strict=True))), looked_up=True)

    def advance(self, following: NextBeams) -> None:
        """Take the next hypotheses."""
        self._beam.go_on(following.beams)
        for node in following.nodes.values():
            node.acquire()
        for node in self._nodes.values():
            node.release()
        self._nodes = dict(following.nodes)

    def leave(self) -> None:
        """Leave the tree, finished or cancelled."""
        for node in self._nodes.values():
            node.release()
        self._nodes = {}

    def completion(self) -> Completion:
        """Return the best hypothesis."""
        tokens, reason = self._beam.result()
        span = self.request.reasoning
        kept = self._stopper.replay(tokens).token_ids
        reasoning = None if span is None else span.state(self.tree.start, kept)
        made = completion_of(self._stopper, kept, reason, len(self.tree.prompt_ids), reasoning)
        return replace(made, token_ids=tokens)

    def _following(self, beams: Beams, *, looked_up: bool) -> NextBeams:
        return NextBeams(beams, self._nodes if beams.finished else self._children(beams.paths), looked_up)

    def _children(self, paths: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Node]:
        return {path: self._nodes[path[:-1]].child(path[-1]) for path in paths}


RunningSequence = TokenSequence | BeamSequence


class SequenceFactory:
    """Makes the sequences of requests; those with equal parameters share what recognises their end.

    Args:
        tokenizer: Makes text of tokens.
        tokenizer_decode_args: What its ``decode`` is called with.
        vocab_size: How many tokens the model scores.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokenizer_decode_args: Mapping[str, Any], vocab_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer_decode_args = tokenizer_decode_args
        self._vocab_size = vocab_size
        self._stoppers: dict[GenerationParams, Stopper] = {}
        self._dry_breakers: dict[tuple[str, ...], Breakers] = {}

    def make(self, request: Request, tree: PromptTree) -> RunningSequence:
        """Return a sequence that begins at the root of its prompt's tree.

        Raises:
            DecodingError: The parameters leave no way to decode the request.
        """
        key = row_key(tree.prompt_ids, request.occurrence, request.replicate)
        stopper = self._stoppers.get(request.params)
        if stopper is None:
            stopper = Stopper(request.params, self._tokenizer, self._tokenizer_decode_args)
            self._stoppers[request.params] = stopper
        if request.params.kind in ("beam", "beam_sampling"):
            return BeamSequence(request, tree, key, stopper, self._dry_breakers_of(request.params), self._vocab_size)
        return TokenSequence(request, tree, key, stopper, self._dry_breakers_of(request.params))

    def _dry_breakers_of(self, params: GenerationParams) -> Breakers:
        """Looked up in the whole vocabulary once for each set of breakers."""
        if "dry_multiplier" not in params:
            return {}
        texts = tuple(params.get("dry_sequence_breakers", DEFAULT_BREAKERS))
        if texts not in self._dry_breakers:
            self._dry_breakers[texts] = breakers_of(params, self._tokenizer)
        return self._dry_breakers[texts]
