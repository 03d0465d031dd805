"""`python -m hyps_compiler.rehearsal`."""

from hyps_compiler.rehearsal.command import main

main()
