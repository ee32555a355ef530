#!/usr/bin/env python3
"""Draws the README's pictures, layouts.svg and work_items.svg, beside this file. Standard library only.

    examples/pictures/draw.py
"""

import argparse
from pathlib import Path

INK, FAINT, PAPER = "#24292f", "#8c959f", "#ffffff"
HEADS = ["#0969da", "#1a7f37", "#bf8700", "#8250df"]


class Picture:
    """A white sheet, so that it reads the same on a dark page."""

    def __init__(self, width, height, title):
        self.size = width, height
        self.parts = [f"<title>{title}</title>",
                      f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}" stroke="{FAINT}"/>']

    def rect(self, x, y, width, height, fill="none", stroke=INK):
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{stroke}"/>')

    def text(self, x, y, text, size=14, anchor="start", fill=INK, mono=False, bold=False):
        family = "monospace" if mono else "sans-serif"
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x}" y="{y}" font-family="{family}" font-size="{size}" text-anchor="{anchor}" '
                          f'fill="{fill}"{weight}>{text}</text>')

    def line(self, x1, y1, x2, y2, colour=INK, arrow=False):
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="1.5"{end}/>')

    def write(self, name):
        width, height = self.size
        arrow = (f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                 f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>')
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
               f'height="{height}">\n' + "\n".join([arrow, *self.parts]) + "\n</svg>\n")
        (Path(__file__).parent / name).write_text(svg, encoding="ascii")


def matrix(picture, x, y, rows, columns, numbered, marked):
    """Cells with the place of each in memory; `marked` is one of them."""
    side = 34
    for i in range(rows):
        for j in range(columns):
            here = (i, j) == marked
            picture.rect(x + j * side, y + i * side, side, side, HEADS[2] if here else "#f6f8fa")
            picture.text(x + j * side + side / 2, y + i * side + 22, numbered(i, j), 13, "middle",
                         PAPER if here else INK, mono=True)
    return x + columns * side, y + rows * side


def layouts():
    K, V = 3, 5
    picture = Picture(760, 470, "The two layouts of a state, and the two maps of heads")
    picture.text(30, 36, "state_layout: where S[k=1][v=3] lies in a slot", 16, bold=True)
    picture.text(30, 66, "GDN_STATE_KV   [slot, HV, K, V]", mono=True)
    right, _ = matrix(picture, 70, 100, K, V, lambda i, j: i * V + j, (1, 3))
    picture.line(70, 90, right, 90, arrow=True)
    picture.text(right + 8, 95, "v: contiguous", 13)
    picture.line(58, 100, 58, 100 + 34 * K, arrow=True)
    picture.text(44, 100 + 17 * K + 5, "k", 13, "middle")
    picture.text(70, 300, "place = k * V + v = 1 * 5 + 3 = 8", 13, mono=True)
    picture.text(400, 66, "GDN_STATE_VK   [slot, HV, V, K]", mono=True)
    right, _ = matrix(picture, 440, 100, V, K, lambda i, j: i * K + j, (3, 1))
    picture.line(440, 90, right, 90, arrow=True)
    picture.text(right + 8, 95, "k: contiguous", 13)
    picture.line(428, 100, 428, 100 + 34 * V, arrow=True)
    picture.text(414, 100 + 17 * V + 5, "v", 13, "middle")
    picture.text(440, 300, "place = v * K + k = 3 * 3 + 1 = 10", 13, mono=True)

    picture.text(30, 346, "head_map: H = 2 key heads, HV = 4 value heads", 16, bold=True)
    for x, name, key_head in ((30, "GDN_HEADS_GROUPED   hv / (HV / H)", lambda hv: hv // 2),
                              (400, "GDN_HEADS_TILED   hv % H", lambda hv: hv % 2)):
        picture.text(x, 372, name, mono=True)
        for hv in range(4):
            colour = HEADS[key_head(hv)]
            picture.line(x + 90 + key_head(hv) * 120, 408, x + 40 + hv * 76, 432, colour)
            picture.rect(x + 10 + hv * 76, 432, 60, 24, colour)
            picture.text(x + 40 + hv * 76, 449, f"v {hv}", 13, "middle", PAPER, mono=True)
        for h in range(2):
            picture.rect(x + 60 + h * 120, 384, 60, 24, HEADS[h])
            picture.text(x + 90 + h * 120, 401, f"q,k {h}", 13, "middle", PAPER, mono=True)
    picture.write("layouts.svg")


def work_items():
    lengths, slots, value_heads, slices, threads = [5, 1, 7], [4, 0, 2], 2, 2, 5
    picture = Picture(760, 400, "From packed sequences to work items")
    picture.text(30, 36, "packed tokens: q, k, v, a, b and o", 16, bold=True)
    side, x = 34, 150
    picture.text(30, 76, "cu_seqlens", 13, mono=True)
    starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    for n, length in enumerate(lengths):
        for t in range(length):
            picture.rect(x + (starts[n] + t) * side, 90, side, 28, HEADS[n])
        middle = starts[n] + length // 2 + 0.5
        picture.text(x + middle * side, 109, f"n={n}", 12, "middle", PAPER)
    for start in starts:
        picture.text(x + start * side, 76, start, 13, "middle", mono=True)
        picture.line(x + start * side, 80, x + start * side, 90)

    picture.text(30, 156, "state pool: initial_state_indices = 4, 0, 2", 16, bold=True)
    for slot in range(6):
        used = slots.index(slot) if slot in slots else None
        picture.rect(x + slot * 90, 172, 84, 36, HEADS[used] if used is not None else "#f6f8fa")
        label = f"slot {slot}" + (f": n={used}" if used is not None else "")
        picture.text(x + slot * 90 + 42, 195, label, 13, "middle", INK if used is None else PAPER)

    items = len(lengths) * value_heads * slices
    picture.text(30, 246, "work items: one sequence, one value head, 32 columns of V", 16, bold=True)
    width = 580 / items
    for i in range(items):
        n, hv, c = i // (value_heads * slices), i // slices % value_heads, i % slices
        picture.rect(x + i * width, 290, width, 40, HEADS[n])
        picture.text(x + (i + 0.5) * width, 315, f"{hv},{c}", 13, "middle", PAPER, mono=True)
    picture.text(30, 280, "thread", 13, mono=True)
    for thread in range(threads):
        left, right = x + items * thread // threads * width, x + items * (thread + 1) // threads * width
        picture.line(left + 3, 284, right - 3, 284)
        picture.text((left + right) / 2, 278, f"ith = {thread}", 13, "middle", mono=True)
    picture.text(30, 315, "item", 13, mono=True)
    picture.text(x, 352, "value head, slice of V", 13, fill=FAINT)
    picture.text(30, 384, "Any range may run on any thread at any time: an item owns its state and its columns of o.",
                 13)
    picture.write("work_items.svg")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    layouts()
    work_items()
