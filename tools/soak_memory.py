"""What a server holds while it works: its whole memory, and what stays when ComfyUI has freed all that it can.

ComfyUI keeps the outputs of earlier workflows for as long as the machine has memory, and files that are mapped into
memory count while they are read; a leak is in what stays without both.
"""

from __future__ import annotations

import statistics
from itertools import combinations

MIB = 2**20


class Memory:
    """MiB of a LiveServer's process, which has the tiny pack."""

    def __init__(self, server):
        import psutil

        self.server, self.process, self.settlings = server, psutil.Process(server.process.pid), 0

    def plain(self) -> float:
        """All pages of it that are in memory, mapped files among them."""
        return self.process.memory_info().rss / MIB

    def settled(self) -> float:
        """Its own pages, no files, after models and caches are freed, garbage is collected, and the C library has given
        back what it kept."""
        self.server.post("/free", {"unload_models": True, "free_memory": True})
        for _ in range(2):  # ComfyUI frees before the first of them, or right after it
            self.settlings += 1
            inputs = {"number": self.settlings}
            self.server.run({"trim": {"class_type": "MMDiffTinyTrim", "inputs": inputs}})
        info = self.process.memory_info()
        return (info.rss - getattr(info, "shared", 0)) / MIB  # Linux alone says what is shared


def trend(points: list[tuple[int, float]]) -> float:
    """MiB per 100 jobs of (jobs, MiB): the median slope of all pairs, which no single point moves; 0 of one point."""
    slopes = [(later - held) / (after - jobs) for (jobs, held), (after, later) in combinations(points, 2)]
    return 100 * statistics.median(slopes) if slopes else 0.0
