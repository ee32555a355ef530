#!/usr/bin/env python3
"""Would the tests notice a fault? Puts faults into the implementation, one at a time, and runs the quick tests.

    tests/quality/mutants.py [--count 240] [--seed 1] [--jobs N] [--list] [--only LINE]

A mutant is the header with one operator, constant or condition changed, chosen by the seed among all that the
implementation has as it stands now. It is compiled as plain C with vectors of four (so that it compiles in seconds) into
a shared library, and the tests that link it run until one fails. mutants-equivalent.txt lists what behaves like the
original, with reasons: changed lines, and patterns of lines that are not changed at all. Exit status 1: less than 95 % of the others
were killed. CC names the compiler (default gcc). Needs cmocka, or builds tests/cmocka.
"""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "gdn_varlen.h"
CC = os.environ.get("CC", "gcc")
# In the order in which they run: the quickest and those that kill most come first.
TESTS = [name for name in ("golden", "refused", "presets", "segments", "seed", "computed", "same_bits")
         if (ROOT / "tests" / f"test_{name}.c").exists()]
IN_CHUNKS = ["computed"]  # these once more, in chunks
TIME_LIMIT = 120  # seconds for one program; a mutant that never ends is killed

# What becomes what. Operators have blanks around them, as the formatter puts them.
CHANGES = [(r" < ", [" <= "]), (r" <= ", [" < "]), (r" > ", [" >= "]), (r" >= ", [" > "]), (r" == ", [" != "]),
           (r" != ", [" == "]), (r" && ", [" || "]), (r" \|\| ", [" && "]), (r" \+ ", [" - "]), (r" - ", [" + "]),
           (r" \* ", [" + "]), (r" / ", [" * "]), (r" % ", [" / "]), (r" << ", [" >> "]), (r" >> ", [" << "]),
           (r" & ", [" | "]), (r" \| ", [" & "]), (r" \^ ", [" & "]), (r"\btrue\b", ["false"]), (r"\bfalse\b", ["true"]),
           (r"(?<=[ ([,-])\d+(?=[ )\];,}])", ["+1"]), (r"\bif \((?=.*\) *[^ ])", ["if (!"]),
           (r"(?<=[(,] )-?\d+\.\d+(?:e-?\d+)?(?=[,)])", ["*1.5"]), (r"\+\+", ["+= 2"]), (r"\bcontinue;", ["break;"])]


def compiled_lines(folder):
    """Numbers of the header's lines that the compiler sees in this build."""
    text = subprocess.run([CC, "-E", "-I", folder, folder / "unit.c"], check=True, capture_output=True, text=True).stdout
    lines, ours, number = set(), False, 0
    for line in text.splitlines():
        marker = re.match(r'# (\d+) "(.*)"', line)
        if marker:
            number, ours = int(marker[1]), marker[2].endswith("gdn_varlen.h")
        else:
            if ours and line.strip():
                lines.add(number)
            number += 1
    return lines


def code_of(line):
    """The line with comments and strings blanked, so that places stay."""
    line = re.sub(r'"(\\.|[^"\\])*"', lambda m: "_" * len(m[0]), line)
    return re.sub(r"/\*.*?(\*/|$)", lambda m: "_" * len(m[0]), line)


def close_of(code, start):
    """The place of the bracket that closes the one at start, or -1."""
    depth = 0
    for i in range(start, len(code)):
        depth += {"(": 1, ")": -1}.get(code[i], 0)
        if depth == 0:
            return i
    return -1


def candidates(lines, seen, spared):
    """All (line number, changed line), in order, but for lines that a pattern spares."""
    found, comment, directive = [], False, False
    begin = next(i for i, line in enumerate(lines) if "==== IMPLEMENTATION" in line)
    for i in range(begin, len(lines)):
        line = lines[i]
        was_comment, comment = comment, (comment or "/*" in line) and not line.rstrip().endswith("*/") and "*/" not in line
        skip = was_comment or directive or line.startswith("#") or i + 1 not in seen or "static const char" in line
        skip = skip or any(pattern.search(line) for pattern in spared)
        directive = (directive or line.startswith("#")) and line.endswith("\\")
        if skip:
            continue
        code = code_of(line)
        for pattern, replacements in CHANGES:
            for match in re.finditer(pattern, code):
                for new in replacements:
                    if new == "+1":
                        new = str(int(match[0]) + 1)
                    elif new == "*1.5":
                        new = repr(float(match[0]) * 1.5 + 0.25)
                    if new == "if (!":
                        end = close_of(code, match.end() - 1)
                        if end < 0:
                            continue
                        changed = line[:match.end()] + "!(" + line[match.end():end] + ")" + line[end:]
                    else:
                        changed = line[:match.start()] + new + line[match.end():]
                    found.append((i + 1, changed))
    return found


def words(line):
    return " ".join(line.split())


def equivalents():
    """Changed lines that mean the same, and patterns ("/...") of lines in which every change does."""
    entries = [line.strip() for line in Path(__file__).with_name("mutants-equivalent.txt").read_text().splitlines()
               if line.strip() and not line.startswith("#")]
    return ({words(entry) for entry in entries if not entry.startswith("/")},
            [re.compile(entry[1:]) for entry in entries if entry.startswith("/")])


def one_target(text):
    """Only the plain instance, with vectors of four where there is SSE2 and two rows at a time, and without the header's own
    optimisation level: half the time."""
    text = re.sub(r"#define (GDNI_AVX2|GDNI_AVX512) 1\b", r"#define \1 0", text)
    text = re.sub(r"#define GDNI_VK_ROWS 1\b", "#define GDNI_VK_ROWS 2", text)
    text = re.sub(r"#define GDNI_STREAM 2\b", "#define GDNI_STREAM 4", text)
    return re.sub(r"(#pragma GCC optimize\()\"O2\", ", r'\1"O1", ', text)


class Builder:
    def __init__(self, folder):
        self.folder = folder
        cmocka = ["-lcmocka"] if subprocess.run([CC, "-x", "c", "-", "-o", os.devnull, "-lcmocka"], input="int main(void){return 0;}",
                                                text=True, capture_output=True).returncode == 0 else []
        tests = ROOT / "tests"
        self.flags = ["-std=c11", "-O1", "-g0", "-w"]
        includes = ["-I", ROOT, "-I", ROOT / "examples", "-I", tests / "support"]
        if not cmocka:
            includes += ["-I", tests / "cmocka"]
        sources = [s for s in sorted((tests / "support").glob("*.c")) if s.name != "gdn_impl.c"]
        sources += [] if cmocka else [tests / "cmocka" / "cmocka.c"]
        self.library(folder / "original", HEADER.read_text())
        for name in TESTS:
            subprocess.run([CC, *self.flags, *includes, f'-DGDN_GOLDEN_DIR="{tests / "golden"}"', tests / f"test_{name}.c",
                            *sources, "-o", folder / name, "-L", folder / "original", "-lgdn", *cmocka, "-lm", "-pthread"], check=True)

    def write(self, folder, text):
        folder.mkdir(exist_ok=True)
        (folder / "gdn_varlen.h").write_text(text)
        (folder / "unit.c").write_text('#define GDN_IMPLEMENTATION\n#include "gdn_varlen.h"\n')

    def library(self, folder, text):
        self.write(folder, one_target(text))
        # Of the sanitizers under which the tests run as well, the cheapest.
        traps = ["-fsanitize=bounds,shift", "-fsanitize-undefined-trap-on-error"]
        return subprocess.run([CC, *self.flags, *traps, "-fPIC", "-shared", "-I", folder, folder / "unit.c", "-o",
                               folder / "libgdn.so", "-lm"], capture_output=True).returncode == 0

    def killer(self, folder):
        """The first test that fails with this library; None: they all pass."""
        for name, compute in [(name, "") for name in TESTS] + [(name, "f32_chunks") for name in IN_CHUNKS]:
            environment = dict(os.environ, LD_LIBRARY_PATH=str(folder), GDN_TEST_REQUIRE_ISA="plain")
            if compute:
                environment["GDN_TEST_COMPUTE"] = compute
            try:
                if subprocess.run([self.folder / name], env=environment, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, timeout=TIME_LIMIT).returncode != 0:
                    return name
            except subprocess.TimeoutExpired:
                return name + ", which does not end"
        return self.bits(folder)

    def bits(self, folder):
        """The hashes of fixed calls, in a program that holds the implementation itself: only for what passes the others."""
        program = folder / "bits"
        subprocess.run([CC, *self.flags, "-I", folder, "-I", ROOT / "tests" / "support", ROOT / "tests" / "bits" / "bits.c", "-o",
                        program, "-lm"], check=True)
        try:
            result = subprocess.run([program, "--require", "plain"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                    timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            return "bits, which does not end"
        return "bits" if result.returncode != 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="print all candidates")
    parser.add_argument("--only", type=int, help="all mutants of one line of the header")
    arguments = parser.parse_args()
    lines = HEADER.read_text().split("\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        builder = Builder(folder)
        known, spared = equivalents()
        found = candidates(lines, compiled_lines(folder / "original"), spared)
        if arguments.list:
            for number, changed in found:
                print(f"{number}: {words(changed)}")
            return 0
        print(f"{len(found)} candidates, seed {arguments.seed}; tests: {' '.join(TESTS)}", flush=True)
        killer = builder.killer(folder / "original")
        if killer:
            sys.exit(f"{killer} fails without a mutant")
        # An order in which a change of the header moves only the mutants of the changed lines.
        chosen = sorted(found, key=lambda c: hashlib.sha256(f"{arguments.seed} {words(c[1])}".encode()).digest())
        if arguments.only:
            chosen = [c for c in chosen if c[0] == arguments.only]
        tally = {"killed": 0, "survived": 0, "equivalent": 0, "refused by the compiler": 0}

        def run(index):
            number, changed = chosen[index]
            work = folder / f"m{index}"
            text = "\n".join(lines[:number - 1] + [changed] + lines[number:])
            try:
                if not builder.library(work, text):
                    return "refused by the compiler", None
                killer = builder.killer(work)
                if killer:
                    return "killed", killer
                return ("equivalent" if words(changed) in known else "survived"), None
            finally:
                shutil.rmtree(work, ignore_errors=True)

        position = 0
        with ThreadPoolExecutor(arguments.jobs) as pool:
            while position < len(chosen):
                missing = arguments.count - tally["killed"] - tally["survived"] - tally["equivalent"]
                if missing <= 0 and not arguments.only:
                    break
                batch = range(position, min(position + max(missing, 1), len(chosen)))
                position = batch.stop
                for index, (result, killer) in zip(batch, pool.map(run, batch)):
                    tally[result] += 1
                    number, changed = chosen[index]
                    if result != "refused by the compiler":
                        print(f"{result:10} {number}: {words(lines[number - 1])}\n        ->  {words(changed)}"
                              + (f"  [{killer}]" if killer else ""), flush=True)
        total = tally["killed"] + tally["survived"]
        rate = 100 * tally["killed"] / max(total, 1)
        print(", ".join(f"{count} {what}" for what, count in tally.items()))
        print(f"killed {rate:.1f} % of {total} mutants that are not known to be equivalent")
        return 0 if rate >= 95 else 1


if __name__ == "__main__":
    sys.exit(main())
