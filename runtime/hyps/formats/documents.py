"""What all JSON files of HyPS share: format and version at the head, every key once, each refusal one sentence."""

import json
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from hyps.errors import HypsError, printable

_T = TypeVar("_T", bound=Struct)


class _Header(Struct):
    format: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Document(Generic[_T]):
    """One kind of file: what it is called, which type holds it, and how it is refused."""

    kind: type[_T]
    format: str
    version: int
    shown: str
    """What messages call the file: `plan.json`."""
    noun: str
    """What it is: `plan`."""
    error: type[HypsError]
    hint: str
    """What to do about a file that is wrong."""
    max_nbytes: int = 64 * 2**20
    order: Literal["deterministic"] | None = "deterministic"
    """How keys of dictionaries are sorted; msgspec cannot sort numbers, which stand as their maker put them."""

    def encode(self, value: _T) -> bytes:
        """Return the bytes of the file; equal values, their keys in the same order or sorted, give equal bytes."""
        return msgspec.json.format(msgspec.json.encode(value, order=self.order), indent=1) + b"\n"

    def decode(self, data: bytes) -> _T:
        """Return what the file holds, checked for its form alone.

        Raises:
            HypsError: of the kind `error`: too large, of another format, from the future, with a doubled key, or not
                of the type.
        """
        if len(data) > self.max_nbytes:
            raise self.error(f"`{self.shown}` has {len(data)} bytes, more than the {self.max_nbytes} allowed")
        try:
            header = msgspec.json.decode(data, type=_Header)
            if header.format == self.format and header.version > self.version:
                raise self.error(
                    f"`{self.shown}` has version {header.version} and this hyps reads up to {self.version}",
                    f"upgrade hyps, or {self.hint} with this version",
                    "E_VERSION",
                )
            value = msgspec.json.decode(data, type=self.kind)
            json.loads(data, object_pairs_hook=self._refuse_doubled)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = printable(str(error), 200)
            raise self.error(f"`{self.shown}` is no {self.noun}: {reason}", self.hint) from error
        return value

    def schema(self) -> bytes:
        """Return the JSON Schema of the file, generated from the type that decodes it."""
        return (
            msgspec.json.format(msgspec.json.encode(msgspec.json.schema(self.kind), order="sorted"), indent=2) + b"\n"
        )

    def refuse(self, problems: list[str]) -> None:
        """Refuse the file if there are problems, by the first of them and the number of the others.

        Raises:
            HypsError: of the kind `error`.
        """
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise self.error(f"`{self.shown}` is wrong: {problems[0]}{more}", self.hint)

    def _refuse_doubled(self, pairs: list[tuple[str, object]]) -> None:
        """Refuse an object with a key that stands twice: of two values each reader might take another."""
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise self.error(f"`{self.shown}` has the key `{printable(key)}` twice", self.hint)
            seen.add(key)
