"""The prefix trees and their budget."""

from __future__ import annotations

import torch

from llmsearch_optuna.engine.cache.lru import LeastRecentlyUsed
from llmsearch_optuna.engine.cache.prefix_cache import PrefixCache
from llmsearch_optuna.engine.cache.prefix_tree import BatchRow, KVBlock, Node
from llmsearch_optuna.engine.cache.score_arena import NextTokenScores, ScoreArena


def scores() -> NextTokenScores:
    (found,) = ScoreArena().store(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 8))
    return found


def segment(tokens: int) -> torch.Tensor:
    return torch.arange(tokens, dtype=torch.float32)[None, None, None, :, None].expand(1, 2, 1, tokens, 2).clone()


def grow(node: Node, *tokens: int) -> list[Node]:
    nodes = []
    for token in tokens:
        node = node.child(token)
        node.scores = scores()
        nodes.append(node)
    return nodes


def test_a_prefix_has_one_node() -> None:
    root = PrefixCache(0).tree((5, 6)).root
    assert root.child(1).child(2) is root.child(1).child(2)
    assert [node.token for node in root.child(1).child(2).path()] == [1, 2]
    assert root.child(1).child(2).depth == 2


def test_stored_keys_and_values_come_back_in_long_pieces() -> None:
    store = PrefixCache(10**6)
    tree = store.tree((5, 6, 7))
    store.store_prompt(tree, segment(3))
    path = grow(tree.root, 1, 2, 3, 4)
    store.store_path(path[:3], segment(3))
    store.store_path(path[3:], segment(1))
    segments, covered = store.prompt_segments(tree)
    assert covered == 3
    assert segments[0].shape[3] == 3
    first, end = store.path_segment(path, 1)
    assert first is not None
    assert (first[0, 0, 0, :, 0].tolist(), end) == ([1.0, 2.0], 3)


def test_the_longest_unused_goes_first() -> None:
    kept = LeastRecentlyUsed(3 * segment(1).nbytes)
    blocks = [KVBlock(segment(1)) for _ in range(4)]
    for block in blocks[:3]:
        kept.add(block)
    kept.touch(blocks[0])
    kept.add(blocks[3])
    assert [block.segment is None for block in blocks] == [False, True, False, False]
    assert kept.nbytes == kept.limit


def test_evicted_scores_leave_no_bare_nodes() -> None:
    store = PrefixCache(6 * scores().nbytes)
    tree = store.tree((5,))
    for token in range(9):
        store.store_scores(grow(tree.root, token))
    assert len(tree.root.children) == 6
    assert store.nbytes <= store.budget
    assert store.evictions == 3


def test_scores_borrow_what_keys_and_values_do_not_need_and_give_it_back() -> None:
    store = PrefixCache(9 * scores().nbytes)
    tree = store.tree((5, 6))
    for token in range(9):
        store.store_scores(grow(tree.root, token))
    assert store.scores.nbytes == store.budget
    node = tree.root.child(8)
    store.store_path([node], segment(store.budget // 2 // segment(1).nbytes))
    assert store.budget // 3 <= store.scores.nbytes <= store.budget // 2
    assert store.nbytes <= store.budget
    assert node.location is not None
    assert node.scores is not None


def test_scores_are_not_evicted_from_under_a_visitor() -> None:
    store = PrefixCache(0)
    (node,) = grow(store.tree((5,)).root, 1)
    node.acquire()
    store.store_scores([node])
    assert node.scores is not None
    node.release()
    assert node.scores is None
    assert not store.tree((5,)).root.children


def test_release_gives_keys_and_values_back_and_keeps_scores() -> None:
    store = PrefixCache(10**6)
    tree = store.tree((5, 6))
    store.store_prompt(tree, segment(2))
    path = grow(tree.root, 1, 2)
    store.store_path(path, segment(2))
    store.store_scores(path)
    assert store.evict_blocks() == segment(4).nbytes
    assert tree.prompt_block is None
    assert path[0].location is None
    assert path[0].scores is not None


def test_a_token_in_a_row_of_the_batch_is_nowhere_else_until_it_is_stored() -> None:
    store = PrefixCache(10**6)
    tree = store.tree((5, 6))
    path = grow(tree.root, 1, 2)
    row = BatchRow(0, tree.root)
    for node in path:
        store.hold(row, node)
    assert row.node is path[1]
    assert row.unstored == path
    assert store.row_of(path, 0) == (row, 2)
    assert store.path_segment(path, 0) == (None, 0)
    store.store_row(row, segment(2))
    assert row.unstored == []
    assert store.row_of(path, 0) == (None, 0)
    assert all(map(store.is_stored, path))
    found, end = store.path_segment(path, 1)
    assert found is not None
    assert (found[0, 0, 0, :, 0].tolist(), end) == ([1.0], 2)


def test_what_is_stored_is_not_stored_again_for_a_row() -> None:
    store = PrefixCache(10**6)
    tree = store.tree((5, 6))
    first, second = grow(tree.root, 1, 2)
    store.store_path([first], segment(1))
    row = BatchRow(0, tree.root)
    store.hold(row, first)
    store.hold(row, second)
    assert row.unstored == [second]
    assert store.is_stored(first)


def test_a_row_that_is_dropped_leaves_its_scores() -> None:
    store = PrefixCache(10**6)
    tree = store.tree((5, 6))
    (node,) = grow(tree.root, 1)
    row = BatchRow(0, tree.root)
    store.hold(row, node)
    store.store_row(row, None)
    assert node.location is None
    assert node.scores is not None
    assert store.nbytes == node.scores.nbytes


def test_scores_of_a_row_in_flight_stay_when_nobody_waits_for_them() -> None:
    store = PrefixCache(0)
    tree = store.tree((5, 6))
    (node,) = grow(tree.root, 1)
    row = BatchRow(0, tree.root)
    node.acquire()
    store.hold(row, node)
    node.release()
    assert node.scores is not None
    store.store_row(row, None)
    assert node.scores is None
    assert not tree.root.children


def test_prompts_of_running_sequences_are_outside_the_budget_until_the_last_one_ends() -> None:
    store = PrefixCache(segment(1).nbytes)
    tree = store.tree((5, 6))
    store.acquire(tree)
    store.acquire(tree)
    store.store_prompt(tree, segment(2))
    store.release(tree)
    assert tree.prompt_block is not None
    assert store.nbytes == 0
    store.release(tree)
    assert tree.prompt_block is None, "it alone is over the budget"


def test_a_shared_prefix_is_stored_once_and_comes_before_every_prompt() -> None:
    store = PrefixCache(10**6)
    store.share_prefix((1, 2), segment(2))
    tree, other = store.tree((1, 2, 3)), store.tree((4, 5, 6))
    assert (tree.shared, other.shared) == (2, 0)
    store.store_prompt(tree, segment(1))
    segments, covered = store.prompt_segments(tree)
    assert [part.shape[3] for part in segments] == [2, 1]
    assert covered == 3
    assert store.prompt_segments(other) == ([], 0)


def test_a_prompt_has_the_longest_shared_prefix_that_it_begins_with() -> None:
    store = PrefixCache(10**6)
    for prefix in ((1, 2), (1, 2, 3), (7,)):
        store.share_prefix(prefix, segment(len(prefix)))
    prompts = ((1, 2, 3, 4), (1, 2, 3), (7, 8), (7,), (8, 7))
    assert [store.tree(prompt).shared for prompt in prompts] == [3, 2, 1, 0, 0]
    assert [store.prompt_segments(store.tree(prompt))[1] for prompt in prompts] == [3, 2, 1, 0, 0]
    store.share_prefix((8,), segment(1))
    assert store.tree((8, 9)).shared == 0, "not once there are trees"
