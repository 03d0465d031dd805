"""Asks for new placements without waiting: the search runs in a process of its own, where the compiler is installed."""

from typing import Protocol

from hyps.formats.replanning import Question, Reply


class Planner(Protocol):
    """One question at a time. All belongs to the manager's thread; `wake` is called from another one.

    Whoever makes a planner gives it `wake`, a callable without arguments that is called once a reply can be polled
    (`Links.wake` is one).
    """

    def missing(self) -> str:
        """Return what is to be installed before anything can be asked, in a sentence; empty: nothing."""

    def ask(self, question: Question) -> None:
        """Begin to search and return at once; a question that has no reply yet will have none."""

    def poll(self) -> Reply | None:
        """Return the reply to the latest question, once; None while it is not there."""

    def close(self) -> None:
        """End the search and its process."""
