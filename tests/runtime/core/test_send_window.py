"""How wide a client's window is."""

from hyps.core.send_window import SendWindow


def test_every_answer_widens_it_up_to_the_bound() -> None:
    window = SendWindow(12)
    widths = []
    for _ in range(6):
        widths.append(window.width)
        window.note_answer()
    assert widths == [8, 9, 10, 11, 12, 12]


def test_a_small_bound_holds_from_the_first() -> None:
    assert SendWindow(2).width == 2


def test_a_refusal_narrows_it_to_what_was_taken() -> None:
    window = SendWindow(64)
    window.note_refusal(5)
    assert window.width == 5
    window.note_refusal(4)
    window.note_refusal(0)
    assert window.width == 1


def test_after_a_refusal_it_widens_by_one_per_round() -> None:
    window = SendWindow(64)
    window.note_refusal(4)
    for _ in range(4):
        window.note_answer()
    assert window.width == 4
    window.note_answer()
    assert window.width == 5


def test_a_late_refusal_never_widens_it() -> None:
    window = SendWindow(8)
    window.note_refusal(2)
    window.note_refusal(7)
    assert window.width == 2
