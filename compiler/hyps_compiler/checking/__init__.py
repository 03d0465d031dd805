"""`hypsc check`: models against a budget and against an earlier plan, for continuous integration."""

__all__: list[str] = []
