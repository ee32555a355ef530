#!/usr/bin/env python3
"""The peers' own tests of the gated delta rule, on the CPU, with this library behind their imports; prints a table.

    tests/peers/run.py [PEER...] [--tests PEER=FOLDER] [--build FOLDER]      PEER: fla vllm sglang flashinfer mlx_lm

A peer's tests come out of its source package, and its references out of its package, both from PyPI by pip; what needs
torch goes with it into an environment under --build ($BUILD_DIR, default build-peers/): 6 GB. --tests names a checkout
of a peer's repository, where its packages hold no tests. $PYTHON: one that has everything; none is made then.

A case that asks for what the operator does not do is "not expressible", and the table says what that is; one that is
about something else is "other". Exit status 1: a case failed, or a suite has none that passes; 2: a suite cannot run.
"""

import argparse
import ast
import collections
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ["fla", "vllm", "sglang", "flashinfer", "mlx_lm"]
BASE = ["numpy", "pytest", "torch"]
BUILDERS = [
    "ninja",
    "packaging",
    "setuptools",
    "setuptools_scm",
    "setuptools_rust",
    "wheel",
    "jinja2",
]  # vLLM's metadata


class CannotRun(Exception):
    pass


def run(log, command, **options):
    with open(log, "w") as file:
        status = subprocess.run(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, **options
        ).returncode
    return status


def need(log, command, **options):
    if run(log, command, **options):
        tail = "".join(open(log, errors="replace").readlines()[-15:])
        raise CannotRun(f"{tail}{' '.join(map(str, command))} failed (all of it: {log})")


def suite_of(peer):
    """The constants of its suite, without what that imports: it may not be there yet."""
    body = ast.parse((HERE / f"suite_{peer}.py").read_text()).body
    constants = [node for node in body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in constants}


def environment(build, suites):
    """The python that has torch and the peers' packages."""
    if os.environ.get("PYTHON"):
        return Path(os.environ["PYTHON"])
    python = build / "venv/bin/python"
    if not python.exists():
        need(build / "venv.log", [sys.executable, "-m", "venv", build / "venv"])
    pip = [python, "-m", "pip", "install", "--quiet"]
    packages = BASE + (BUILDERS if any(suite.get("BUILD") for suite in suites) else [])
    need(build / "pip.log", [*pip, *packages])
    for suite in suites:
        # The packages alone, but mlx's: their dependencies are for GPUs.
        alone = [] if any(name.startswith("mlx") for name in suite.get("INSTALL", [])) else ["--no-deps"]
        if suite.get("INSTALL"):
            need(build / "pip.log", [*pip, *alone, *suite["INSTALL"]])
    return python


def sources(build, python, suite):
    """The folder of a source package."""
    name, version = suite["PACKAGE"]
    folder = build / f"{name.replace('-', '_')}-{version}"
    if not folder.exists():
        isolated = ["--no-build-isolation"] if suite.get("BUILD") else []
        command = [
            python,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            name,
            *isolated,
            "--dest",
            build,
        ]
        need(build / f"{name}.log", [*command, f"{name}=={version}"], env=os.environ | suite.get("BUILD", {}))
        with tarfile.open(f"{folder}.tar.gz") as archive:
            inside = f"{folder.name}/tests/"
            archive.extractall(build, [member for member in archive.getmembers() if member.name.startswith(inside)])
    return folder


def outcomes_of(build, python, peer, suite, checkout):
    """[test, outcome, reason] of every case."""
    if checkout:
        folder, tests = checkout, suite.get("CHECKOUT", suite["TESTS"])
    elif "PACKAGE" in suite:
        folder, tests = sources(build, python, suite), suite["TESTS"]
    else:
        folder, tests = HERE, suite["TESTS"]
    absent = [test for test in tests if not (folder / test).is_file()]
    if absent:
        raise CannotRun(f"{folder} has no {', '.join(absent)}")
    file, log = build / f"{peer}.jsonl", build / f"{peer}.log"
    file.unlink(missing_ok=True)
    command = [python, "-B", "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider", "--noconftest"]
    command += ["--rootdir", folder, "-o", "addopts=", "--peer", peer, "--outcomes", file]
    command += ["-k", suite["ONLY"]] if "ONLY" in suite else []
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    status = run(log, command + tests, cwd=folder, env=os.environ | {"PYTHONPATH": path})
    if status not in (0, 1) or not file.exists():
        raise CannotRun(f"{''.join(open(log, errors='replace').readlines()[-15:])}pytest ended with {status} ({log})")
    return [json.loads(line) for line in file.read_text().splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER")
    parser.add_argument("--tests", action="append", default=[], metavar="PEER=FOLDER")
    parser.add_argument("--build", type=Path, default=Path(os.environ.get("BUILD_DIR") or ROOT / "build-peers"))
    options = parser.parse_args()
    checkouts = dict(entry.partition("=")[::2] for entry in options.tests)
    for name in [*options.peers, *checkouts]:
        if name not in PEERS:
            parser.error(f"{name!r} is none of {', '.join(PEERS)}")
    peers = options.peers or PEERS
    build = options.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    suites = {peer: suite_of(peer) for peer in peers}
    status = 0
    try:
        python = environment(build, suites.values())
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 2
    rows, reasons = [], []
    for peer, suite in suites.items():
        print(f"{peer} ...", file=sys.stderr, flush=True)
        try:
            checkout = Path(checkouts[peer]).resolve() if peer in checkouts else None
            cases = outcomes_of(build, python, peer, suite, checkout)
        except CannotRun as error:
            print(error, file=sys.stderr)
            rows.append((peer, *["-"] * 5))
            status = 2
            continue
        counts = collections.Counter(outcome for _, outcome, _ in cases)
        rows.append((peer, len(cases), *(counts[name] for name in ("passed", "not expressible", "skipped", "failed"))))
        if counts["failed"] or not counts["passed"]:
            status = status or 1
        for (outcome, reason), count in collections.Counter((o, r) for _, o, r in cases if r).items():
            reasons.append((peer, count, outcome.replace("skipped", "other"), reason))
    print(f"{'peer':12}{'cases':>7}{'passed':>8}{'not expressible':>17}{'other':>7}{'failed':>8}")
    for row in rows:
        print(f"{row[0]:12}{row[1]:>7}{row[2]:>8}{row[3]:>17}{row[4]:>7}{row[5]:>8}")
    print()
    for peer, count, outcome, reason in reasons:
        print(f"{peer:12}{count:>5}  {outcome}: {reason}")
    return status


if __name__ == "__main__":
    sys.exit(main())
