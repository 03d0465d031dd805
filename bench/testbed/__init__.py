"""Slow devices joined by slow links, made on one Linux machine: network namespaces, tbf rates, control groups.

    layout = Layout({"camera": Machine(0.25, core=0), "server": Machine(core=1)}, (Wire("camera", "server", 7.1e6),))
    with testbed.build(layout) as devices:
        devices["server"].popen(["hyps-worker", "plan", "--bind", f"tcp://{devices['server'].address}:5757"])
        devices["camera"].run(["ping", "-c", "1", devices["server"].address])

Needs root and the tools of iproute2 and util-linux. `python -m testbed up cluster.toml` builds the devices of a cluster
file, `python -m testbed run NAME -- COMMAND` runs programs on them, and `python -m testbed sweep` removes what a killed
run left behind. docs/testbed.md tells what is emulated, and how well.
"""

from testbed.bed import Device, build, missing, missing_to_delay, missing_to_pace, sweep
from testbed.layout import SWITCH, Layout, Machine, Wire

__all__ = [
    "SWITCH",
    "Device",
    "Layout",
    "Machine",
    "Wire",
    "build",
    "missing",
    "missing_to_delay",
    "missing_to_pace",
    "sweep",
]
