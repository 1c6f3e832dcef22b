"""Kills sweeps, and says how many kills they took and whether anything was lost.

python tests/chaos --kills 1000 --seed 0          (in the root of a checkout)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rounds import games


def main() -> int:
    """Plays until enough was killed; the exit code says whether all studies came out right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    began, total, lives, wrong = time.monotonic(), Counter[str](), 0, 0
    for game in range(asked.kills):
        if sum(total.values()) >= asked.kills:
            break
        with tempfile.TemporaryDirectory() as place:
            seed = asked.seed + game
            tally, lines = games(Path(place), seed, asked.workers)
        total.update(tally.kills)
        lives += tally.lives
        wrong += bool(lines)
        print(f"seed {seed}: {tally.killed} kills in {tally.lives} runs", *lines, sep="\n  ")
        sys.stdout.flush()
    took = time.monotonic() - began
    print(f"{sum(total.values())} kills in {lives} runs, {took:.0f} s; {wrong} studies wrong")
    for where, count in total.most_common():
        print(f"  {count:5d}  {where}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
