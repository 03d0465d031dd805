"""What is traced is told once, or gives way."""

from hyps.core.spans import SpanBook
from hyps.formats.node_messages import Span, decode_from_node, encode_node_message


def span(number: int) -> Span:
    return Span(number, "compute", "conv1", number, number + 0.5)


def test_nothing_is_kept_while_nobody_wants_it() -> None:
    book = SpanBook()
    book.add(span(1))
    assert len(book) == 0
    assert book.take().spans == ()


def test_everything_is_told_once_in_its_order() -> None:
    book = SpanBook()
    book.wants_spans = True
    for number in range(10_000):
        book.add(span(number))
    told = []
    while len(book):
        message = decode_from_node(encode_node_message(book.take()))
        assert message == message
        told += list(getattr(message, "spans", ()))
    assert [one.request for one in told] == list(range(10_000))


def test_a_manager_that_does_not_listen_costs_no_more_memory() -> None:
    book = SpanBook()
    book.wants_spans = True
    for number in range(100_000):
        book.add(span(number))
    assert len(book) < 20_000
    assert book.take().spans[-1].request < 100_000
