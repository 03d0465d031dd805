"""Files, sessions, frames and sockets: one effect per module."""
