#!/usr/bin/env python3
"""Lines and branches of a header that were run, over all instances of its functions together.

    tests/quality/coverage.py HEADER IGNORED GCDA...

gcov counts each instance of a function for itself (gdni_sweep_plain, gdni_sweep_avx2) and lists the branches of a line
once for each. Here a line was run if one instance ran it, and a branch was taken if one took it. IGNORED holds regular
expressions of source lines whose branches are not counted, with the reason above each. Exit status 1: less than 98 % of
the lines or 95 % of the branches.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

if {"-h", "--help"} & set(sys.argv[1:]):
    print(__doc__.strip())
    sys.exit()
if len(sys.argv) < 4 or sys.argv[1].startswith("-"):
    print(__doc__.strip(), file=sys.stderr)
    sys.exit(2)
header, ignored_file, objects = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
source = header.read_text().split("\n")
ignored = [re.compile(line) for line in ignored_file.read_text().split("\n") if line and not line.startswith("#")]

excluded, off = set(), False
for number, line in enumerate(source, 1):
    off = off or "COVERAGE_OFF" in line
    if off:
        excluded.add(number)
    off = off and "COVERAGE_ON" not in line

lines, branches = {}, {}  # number: was run; (number, how many branches): which were taken
for gcda in objects:
    result = subprocess.run(["gcov", "--json-format", "--stdout", "--branch-probabilities", gcda], check=True,
                            capture_output=True, text=True)
    for record in result.stdout.splitlines():
        for file in json.loads(record)["files"]:
            if Path(file["file"]).resolve() != header.resolve():
                continue
            for line in file["lines"]:
                number, taken = line["line_number"], [b["count"] > 0 for b in line["branches"]]
                if number in excluded:
                    continue
                lines[number] = lines.get(number, False) or line["count"] > 0
                if taken and not any(pattern.search(source[number - 1]) for pattern in ignored):
                    before = branches.setdefault(number, {}).setdefault(len(taken), [False] * len(taken))
                    branches[number][len(taken)] = [x or y for x, y in zip(before, taken)]

# Where a condition is a constant of the instance, the instances have different numbers of branches: the best counts.
best = {number: max(forms.values(), key=lambda taken: (sum(taken) / len(taken), len(taken)))
        for number, forms in branches.items()}
for number in sorted(lines):
    if not lines[number]:
        print(f"not run: {number}: {source[number - 1].strip()}")
    elif number in best and not all(best[number]):
        print(f"branches {''.join('x-'[not taken] for taken in best[number])}: {number}: {source[number - 1].strip()}")
run, taken, total = sum(lines.values()), sum(map(sum, best.values())), sum(map(len, best.values()))
line_rate, branch_rate = 100 * run / len(lines), 100 * taken / total
print(f"lines {line_rate:.1f} % ({run} of {len(lines)}), branches {branch_rate:.1f} % ({taken} of {total})")
sys.exit(line_rate < 98 or branch_rate < 95)
