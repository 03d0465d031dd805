"""A manager's echoes with its nodes, one at a time each: what it sends when a node joins to measure the way there."""

from collections.abc import Callable
from dataclasses import dataclass

from hyps.core.link_estimates import LinkEstimates
from hyps.core.link_probing import LinkProbing
from hyps.formats.node_messages import Echo

_MOST_ANSWER_S = 10.0
"""A way that takes longer for an echo is not measured further: what has to be sent there comes first."""


@dataclass(slots=True)
class _Asked:
    probing: LinkProbing
    number: int = 0
    sent_s: float = 0.0
    behind_nbytes: int = 0


class Echoes:
    """The echoes of all nodes; belongs to the manager's thread."""

    def __init__(
        self,
        links: LinkEstimates,
        send: Callable[[int, Echo, bytes], None],
        backlog_nbytes: Callable[[int], int],
    ) -> None:
        """Prepare to measure.

        Args:
            links: told what is measured.
            send: sends an echo with its frame over a link.
            backlog_nbytes: what was sent over a link and not taken yet.
        """
        self._links, self._send, self._backlog_nbytes = links, send, backlog_nbytes
        self._asked: dict[int, _Asked] = {}
        self._number = 0

    def begin(self, link: int, device: str, now_s: float) -> None:
        """Measure the way to a node that has joined."""
        self._asked[link] = _Asked(LinkProbing(device))
        self._ask(link, now_s)

    def answered(self, link: int, number: int, now_s: float) -> None:
        """Take a node's `Echoed`; one that nobody waits for is ignored."""
        asked = self._asked.get(link)
        if asked is None or asked.number != number:
            return
        seconds = max(0.0, now_s - asked.sent_s)
        asked.probing.answered(seconds, now_s, self._links, asked.behind_nbytes)
        if seconds > _MOST_ANSWER_S:
            del self._asked[link]
        else:
            self._ask(link, now_s)

    def forget(self, link: int) -> None:
        """A link is gone."""
        self._asked.pop(link, None)

    def _ask(self, link: int, now_s: float) -> None:
        asked = self._asked[link]
        echo = asked.probing.next_echo()
        if echo is None:
            del self._asked[link]
            return
        self._number += 1
        asked.number, asked.sent_s, asked.behind_nbytes = self._number, now_s, self._backlog_nbytes(link)
        self._send(link, Echo(asked.number, echo.back_nbytes), bytes(echo.there_nbytes))
