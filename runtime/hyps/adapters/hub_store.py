"""The bytes of the hub's tensors: frames as they came, passed on as they are, joined and parted by rows."""

from collections.abc import Sequence

from msgspec.structs import replace

from hyps.adapters.frames import Buffer
from hyps.errors import InternalError
from hyps.formats.messages import TensorHeader
from hyps.formats.plan import NamedTensor

Stored = tuple[TensorHeader, Buffer]


class HubStore:
    """Tensors by request, or piece of work, and name."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[int, str], Stored] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Of all frames."""
        return sum(len(frame) for _, frame in self._tensors.values())

    def put(self, number: int, header: TensorHeader, frame: Buffer) -> None:
        """Keep a tensor."""
        self._tensors[number, header.name] = (header, frame)

    def get(self, number: int, name: str) -> Stored:
        """Return a tensor that is kept."""
        stored = self._tensors.get((number, name))
        if stored is None:
            raise InternalError(f"the hub has no tensor `{name}` of request {number}")
        return stored

    def drop(self, number: int, name: str) -> None:
        """Forget a tensor."""
        self._tensors.pop((number, name), None)

    def merge(self, number: int, requests: Sequence[int], names: Sequence[str]) -> None:
        """Keep the tensors of several requests, one after another, as one of `number` each; theirs stay."""
        for name in names:
            parts = [self.get(request, name) for request in requests]
            header = parts[0][0]
            rows = sum(part.shape[0] for part, _ in parts)
            frame = b"".join(data for _, data in parts)
            self.put(number, replace(header, shape=(rows, *header.shape[1:]), nbytes=len(frame)), frame)

    def rows(self, number: int, name: str, first: int, past: int) -> Stored:
        """Return some rows of a tensor, on its own memory."""
        header, frame = self.get(number, name)
        row_nbytes = len(frame) // header.shape[0] if header.shape[0] else 0
        part = memoryview(frame)[first * row_nbytes : past * row_nbytes]
        return replace(header, shape=(past - first, *header.shape[1:]), nbytes=len(part)), part


def batched_inputs(inputs: Sequence[NamedTensor], outputs: Sequence[NamedTensor]) -> frozenset[str]:
    """Return the names of a model's inputs, if one symbolic dimension leads all of them and all outputs; else nothing.

    Requests that agree in all else can then be computed together, rows upon rows.
    """
    shapes = [tensor.shape or (None,) for tensor in (*inputs, *outputs)]
    leading = {shape[0] for shape in shapes}
    symbol = next(iter(leading), None)
    is_elsewhere = any(symbol in shape[1:] for shape in shapes)
    if len(leading) != 1 or not isinstance(symbol, str) or is_elsewhere:
        return frozenset()
    return frozenset(tensor.name for tensor in inputs)


def batch_key(headers: Sequence[TensorHeader], batched: frozenset[str]) -> tuple[tuple[object, ...] | None, int]:
    """Return what requests must agree in to be computed together, and how many rows this one has; None: it cannot be.

    `batched` has the names that `batched_inputs` returned.
    """
    if any(header.name not in batched or not header.shape or header.dtype == "string" for header in headers):
        return None, 1
    rows = {header.shape[0] for header in headers}
    if len(rows) != 1 or min(rows) < 1:
        return None, 1
    return tuple(sorted((header.name, header.dtype, header.shape[1:]) for header in headers)), rows.pop()
