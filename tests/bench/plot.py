#!/usr/bin/env python3
"""Draws the lines of gdn_bench as SVG.

    tests/bench/plot.py FOLDER FILE...        FILE: what gdn_bench, or gdn_bench --ggml, has printed

Writes into FOLDER, from the lines that there are:

    fma_rate.svg        fraction of the fused multiply-add rate, prefill, by case
    bandwidth.svg       fraction of the in-place bandwidth, decode of 64 sequences, by case
    ggml.svg            how many times faster than ggml's operator
    tokens.svg          time per token against the length of one sequence, token by token and in chunks
    short.svg           time per token of one sequence of 2 to 16 tokens, by case
    sequences.svg       time per token of decode against the number of sequences

Each instruction set and number of threads has its own colour. Needs nothing but Python.
"""

import math
import pathlib
import sys
from xml.sax.saxutils import escape

COLOURS = ["#2f6db5", "#d9822b", "#3b9a5f", "#b0413e", "#7a5ba8", "#5f6b76"]
WIDTH = 760
INK, FAINT = "#24292f", "#d0d7de"


def read(paths):
    """The lines of all files as dictionaries, numbers as float; a later line replaces one of the same run."""
    runs = {}
    for path in paths:
        for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
            pairs = [pair.partition("=") for pair in line.split()]
            run = {key: value for key, _, value in pairs}
            if "case" not in run:
                sys.exit(f"plot.py: {path}:{number} is not a line of gdn_bench")
            for key, value in run.items():
                if key not in ("case", "isa"):
                    run[key] = float(value)
            threads = int(run["threads"])
            run["series"] = f"{run['isa']}, {threads} thread{'s' if threads > 1 else ''}"
            runs[run["case"], run["series"]] = run
    return list(runs.values())


class Drawing:
    def __init__(self, title, height):
        self.height = height
        self.parts = [f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>']
        self.text(16, 26, title, size=15, weight="bold")

    def text(self, x, y, content, size=12, anchor="start", weight="normal", turn=None):
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn is not None else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{INK}"{turned}>{escape(content)}</text>'
        )

    def line(self, x1, y1, x2, y2, colour=FAINT):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>')

    def bar(self, x, y, width, height, colour):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def curve(self, points, colour):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')

    def legend(self, series, y):
        x = 16
        for name, colour in series.items():
            self.bar(x, y - 10, 12, 12, colour)
            self.text(x + 18, y, name)
            x += 42 + 7 * len(name)

    def write(self, path):
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="system-ui, sans-serif">\n' + "\n".join(self.parts) + "\n</svg>\n"
        )


def colours(runs):
    names = list(dict.fromkeys(run["series"] for run in runs))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def ticks(limit):
    """Round numbers from 0 that reach the limit."""
    step = 10 ** math.floor(math.log10(limit))
    while limit / step < 4:
        step /= 2
    return [i * step for i in range(math.ceil(limit / step - 1e-9) + 1)]


def bars(path, title, runs, key, at_least):
    """Horizontal bars, one group for each case."""
    series = colours(runs)
    cases = list(dict.fromkeys(run["case"] for run in runs))
    thick, gap, left, top = 15, 9, 190, 64
    group = len(series) * thick + gap
    height = top + len(cases) * group + 34
    marks = ticks(max([at_least] + [run[key] for run in runs]))
    scale = (WIDTH - left - 60) / marks[-1]
    drawing = Drawing(title, height)
    drawing.legend(series, 48)
    for mark in marks:
        drawing.line(left + mark * scale, top - 4, left + mark * scale, height - 28)
        drawing.text(left + mark * scale, height - 12, f"{mark:g}", anchor="middle")
    for i, case in enumerate(cases):
        y = top + i * group
        drawing.text(left - 10, y + (group - gap) / 2 + 4, case, anchor="end")
        for j, name in enumerate(series):
            for run in runs:
                if run["case"] == case and run["series"] == name:
                    drawing.bar(left, y + j * thick, run[key] * scale, thick - 2, series[name])
                    drawing.text(left + run[key] * scale + 6, y + j * thick + 11, f"{run[key]:.2f}", size=11)
    drawing.write(path)


def curves(path, title, runs, x_key, x_label):
    """Time per token over a logarithmic axis."""
    series = colours(runs)
    left, right, top, bottom, height = 70, 30, 70, 56, 380
    marks = ticks(max(run["us_per_token"] for run in runs))
    places = sorted({run[x_key] for run in runs})
    span = math.log(places[-1] / places[0]) or 1.0
    drawing = Drawing(title, height)
    drawing.legend(series, 48)

    def across(x):
        return left + (WIDTH - left - right) * math.log(x / places[0]) / span

    def up(y):
        return height - bottom - (height - bottom - top) * y / marks[-1]

    for mark in marks:
        drawing.line(left, up(mark), WIDTH - right, up(mark))
        drawing.text(left - 8, up(mark) + 4, f"{mark:g}", anchor="end")
    for place in places:
        drawing.text(across(place), height - bottom + 18, f"{place:g}", anchor="middle")
    drawing.text((left + WIDTH - right) / 2, height - 12, x_label, anchor="middle")
    drawing.text(18, (top + height - bottom) / 2, "microseconds per token", anchor="middle", turn=-90)
    for name, colour in series.items():
        points = sorted((run[x_key], run["us_per_token"]) for run in runs if run["series"] == name)
        drawing.curve([(across(x), up(y)) for x, y in points], colour)
    drawing.write(path)


def main(arguments):
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    if len(arguments) < 2:
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    folder = pathlib.Path(arguments[0])
    runs = read(arguments[1:])
    compared = [run for run in runs if "ratio" in run]
    own = [run for run in runs if "ratio" not in run]
    prefill = [run for run in own if run["T"] >= 64]
    decode = [run for run in own if run["T"] == 1 and run["N"] == 64]
    lengths = [run for run in own if run["case"] in ("decode_one_in_cache", "prefill_f32") or "prefill_T" in run["case"]]
    lengths += [
        {**run, "series": run["series"] + ", chunks"} for run in own
        if run["case"] == "prefill_chunked_f32" or "prefill_chunked_T" in run["case"]
    ]
    short = [run for run in own if 2 <= run["T"] <= 16 and run["N"] == 1]
    counts = [run for run in own if run["case"] in ("decode_one_in_cache", "decode_f32") or "decode_N" in run["case"]]

    folder.mkdir(parents=True, exist_ok=True)
    plots = [
        ("fma_rate.svg", prefill, lambda path: bars(
            path, "Prefill: fraction of the float32 fused multiply-add rate", prefill, "peak_fraction", 1.0)),
        ("bandwidth.svg", decode, lambda path: bars(
            path, "Decode, 64 sequences: fraction of the in-place memory bandwidth", decode, "bandwidth_fraction", 1.0)),
        ("ggml.svg", compared, lambda path: bars(path, "Times faster than ggml's operator", compared, "ratio", 1.0)),
        ("tokens.svg", lengths, lambda path: curves(
            path, "One sequence: time per token, all 32 heads of 128x128", lengths, "T", "tokens of the sequence")),
        ("short.svg", short, lambda path: bars(
            path, "One short sequence: microseconds per token, all 32 heads of 128x128", short, "us_per_token", 1.0)),
        ("sequences.svg", counts, lambda path: curves(
            path, "Decode: time per token, all 32 heads of 128x128", counts, "N", "sequences")),
    ]
    for name, runs_of_plot, draw in plots:
        if runs_of_plot:
            draw(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
            print(f"plot.py: no lines for {name}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
