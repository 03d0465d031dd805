"""One self-contained HTML page on a plan: what `hypsc report` writes."""
