"""What runs on the nodes of a Ray cluster: one worker as a task, and the mailbox of what workers log.

Light on purpose: a mailbox holds no model, so it imports no library that does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsearch_optuna import __version__
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.progress import Quiet
from llmsearch_optuna.workers.worker import Logged, relay_logs, say

INTERRUPTED = "it was interrupted"
"""What a task returns that was told to end."""


@dataclass(frozen=True, slots=True)
class Began:
    """A worker has found a place.

    Attributes:
        node: The address of its node.
    """

    node: str


@dataclass(frozen=True, slots=True)
class Post:
    """A message, and the number of the worker that sent it."""

    worker: int
    said: Logged | Began


class Mailbox:
    """Keeps messages until they are taken; an actor, so that all nodes reach it."""

    def __init__(self) -> None:
        self._posts: list[Post] = []

    def put(self, post: Post) -> None:
        """Keep a message."""
        self._posts.append(post)

    def flush(self) -> None:
        """Return when all messages that its caller sent before are kept: calls are answered in order."""

    def take(self) -> list[Post]:
        """The messages since the last time."""
        posts, self._posts = self._posts, []
        return posts


@dataclass(frozen=True)
class PostLine:
    """Sends to a mailbox, in order, without waiting for it."""

    mailbox: Any
    worker: int

    def send(self, said: Logged | Began, /) -> None:
        """Send a message."""
        self.mailbox.put.remote(Post(self.worker, said))


@dataclass(frozen=True)
class Errand:
    """All that a worker has to know.

    Attributes:
        number: Which worker it is, from 1.
        arguments: Of `search`.
        folder: Where the parent runs; relative paths of the study are meant from there.
        version: Of the parent's library.
    """

    number: int
    arguments: Mapping[str, Any]
    folder: str
    version: str


def work_on_node(errand: Errand, mailbox: Any) -> str | None:
    """Search, as a Ray task.

    Args:
        errand: What to do.
        mailbox: The actor that takes what is logged.

    Returns:
        Why it could not go on; None where it has done its part.
    """
    import ray

    # The parent ends a task by SIGINT, which a cluster that was started in the background ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line = PostLine(mailbox, errand.number)
    node = ray.util.get_node_ip_address()
    try:
        line.send(Began(node))
        relay_logs(line)
        check_node(errand, node)
        os.chdir(errand.folder)
        from llmsearch_optuna.api import search
        from llmsearch_optuna.optimize.signals import StudyInterrupted

        try:
            search(**errand.arguments, observer=Quiet())
        except StudyInterrupted:
            return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as problem:
        return say(problem)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # the mailbox is gone, and nobody can be told
            ray.get(mailbox.flush.remote())
    return None


def check_node(errand: Errand, node: str) -> None:
    """Raise StudyError where the study cannot be run on this node as it would be run by the parent."""
    if errand.version != __version__:
        raise StudyError(
            f"the node {node} has llmsearch-optuna {__version__}, and this machine has {errand.version}; "
            "install the same version on all"
        )
    if not Path(errand.folder).is_dir():
        raise StudyError(
            f"the node {node} has no folder {errand.folder}, from where the study's paths are meant; "
            "run the command in a folder that all nodes share, under the same path"
        )
