"""The report's plots as inline SVG: no script, no font of their own, the page's own text colour.

matplotlib is imported where it draws, so that training does not need it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
PIXELS = 96  # of the page for one inch of a figure
INK = "#101112"  # replaced by the page's text colour
COLOURS = ("#2f6f9f", "#c4622d", "#4f8a4c", "#8a5aa8", "#9a7b26", "#3f8f8f", "#b04a6f", "#6b6f76")
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8c8f94",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "medrestore",
    "font.family": "sans-serif",
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Runs a plotting function in the report's style."""

    @wraps(draw)
    def wrapper(*given: P.args, **named: P.kwargs) -> R:
        from matplotlib import rc_context

        with rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*given, **named)

    return wrapper


def axes(columns: int = 1, width: float = 4.6, height: float = 2.8) -> tuple[Any, list[Any]]:
    """A figure of `columns` plots side by side; sizes of one plot in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def svg(figure: Any, label: str) -> str:
    """The figure as an <svg> element that takes the page's text colour; equal figures give equal bytes."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'font: [^;"]*?([0-9.]+px)[^;"]*', r"font: \1 inherit", text)
    text = re.sub(r' (?:width|height)="[0-9.]+pt"', "", text, count=2)
    scoped = re.sub(r"[^a-zA-Z0-9]", "-", label) + "-"  # several figures share one page
    text = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{scoped}", text)
    width = round(figure.get_figwidth() * PIXELS)
    opening = f'<svg role="img" aria-label="{escape(label)}" style="width: {width}px" '
    return text.replace("<svg ", opening, 1).replace(INK, "currentColor")


@styled
def level_function(name: str, points: Sequence[Sequence[float]], laws: Sequence[tuple[float, float]]) -> str:
    """Noise against signal: measured blocks, each image's fitted law, and the median law of the set."""
    figure, (plot,) = axes()
    if points:
        signal, noise = np.array(points).T
        plot.scatter(signal, noise, s=7, color=COLOURS[0], alpha=0.45, linewidths=0, label="smooth blocks")
    low, high = (min(p[0] for p in points), max(p[0] for p in points)) if points else (0.0, 1.0)
    grid = np.linspace(low, max(high, low + 1e-3), 100)
    for a, b in laws:
        plot.plot(grid, np.sqrt(np.maximum(a * grid + b, 0)), color=COLOURS[7], alpha=0.3, linewidth=0.7)
    if laws:
        a, b = np.median(np.array(laws), axis=0)
        plot.plot(grid, np.sqrt(np.maximum(a * grid + b, 0)), color=COLOURS[1], label="median fit")
    plot.set(xlabel="signal", ylabel="standard deviation", ylim=(0, None))
    plot.legend()
    return svg(figure, f"noise level function {name}")


@styled
def population(observed: Mapping[str, Sequence[float]], drawn: Sequence[float], lags: Any, drawn_lags: Any) -> str:
    """Levels (255ths at mid-grey) and lag-1 correlations: observed in each set, and drawn from the population."""
    figure, (levels, colours) = axes(2)
    everything = [value for values in observed.values() for value in values] + list(drawn)
    edges = np.geomspace(max(min(everything), 1e-3), max(*everything, 1e-2) * 1.01, 25)
    levels.hist(np.clip(drawn, edges[0], edges[-1]), edges, density=True, color=COLOURS[7], alpha=0.4, label="drawn")
    pooled = [value for values in observed.values() for value in values]
    if pooled:
        levels.hist(pooled, edges, density=True, histtype="step", color=COLOURS[1], label="observed")
    levels.set(xscale="log", xlabel="level at mid-grey, 255ths", ylabel="density")
    levels.legend()
    if len(drawn_lags):
        across, down = np.array(drawn_lags)[:, 1], np.array(drawn_lags)[:, 0]
        colours.scatter(across, down, s=8, color=COLOURS[7], alpha=0.4, linewidths=0, label="drawn")
    for number, (name, lag) in enumerate(lags.items()):
        colours.scatter([lag[1]], [lag[0]], s=42, marker="D", color=COLOURS[number % 7], label=name)
    colours.set(xlabel="lag-1 correlation across", ylabel="lag-1 correlation down", xlim=(-1, 1), ylim=(-1, 1))
    figure.legend(*colours.get_legend_handles_labels(), loc="outside right upper")
    return svg(figure, "learned population")


@styled
def correlation_maps(name: str, maps: Mapping[str, Any]) -> str:
    """Autocorrelation at small lags, (K, K) each with 1 in the middle; None is left blank."""
    figure, plots = axes(len(maps), 2.4, 2.2)
    image = None
    for plot, (title, values) in zip(plots, maps.items(), strict=True):
        plot.grid(visible=False)
        plot.set(title=title, xticks=[], yticks=[])
        if values is None:
            plot.text(0.5, 0.5, "too little noise", ha="center", transform=plot.transAxes, fontsize=8)
            continue
        reach = len(values) // 2 + 0.5
        extent = (-reach, reach, reach, -reach)
        image = plot.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent, interpolation="nearest")
        plot.set(xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    if image is not None:
        figure.colorbar(image, ax=plots, shrink=0.8)
    return svg(figure, f"autocorrelation {name}")


def spectrum(correlation: Any) -> tuple[Any, Any, Any]:
    """Frequencies (cycles per pixel) and normalised noise power down and across, from a correlation (K, K)."""
    power = np.abs(np.fft.fft2(np.fft.ifftshift(np.array(correlation)), s=None))
    power /= power.mean()
    half = len(power) // 2 + 1
    return np.arange(half) / len(power), power[:half, 0], power[0, :half]


@styled
def power_spectra(correlations: Mapping[str, Any]) -> str:
    """Normalised noise power spectra of every set, along the two axes; white noise is 1 everywhere."""
    figure, (down, across) = axes(2)
    for number, (name, correlation) in enumerate(correlations.items()):
        frequency, first, second = spectrum(correlation)
        down.plot(frequency, first, color=COLOURS[number % 8], marker="o", markersize=2.5, label=name)
        across.plot(frequency, second, color=COLOURS[number % 8], marker="o", markersize=2.5, label=name)
    for plot, title in ((down, "down"), (across, "across")):
        plot.axhline(1, color=COLOURS[7], linewidth=0.8, linestyle="--")
        plot.set(title=title, xlabel="cycles per pixel", ylabel="noise power, mean 1", ylim=(0, None))
    figure.legend(*down.get_legend_handles_labels(), loc="outside right upper")
    return svg(figure, "noise power spectra")


@styled
def training_curves(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """One plot per kind of quantity: `curves[quantity][graph]` are rows [step, value].

    Quantities that differ in a number at their end ("psnr_15", "psnr_25") share a plot.
    """
    kinds: dict[str, dict[str, Sequence[Sequence[float]]]] = {}
    for quantity, graphs in curves.items():
        kind, _, level = quantity.rpartition("_") if quantity[-1].isdigit() else (quantity, "", "")
        for graph, rows in graphs.items():
            kinds.setdefault(kind, {})[f"{graph}, {level}" if level else graph] = rows
    figure, plots = axes(len(kinds), 3.6)
    for plot, (kind, lines) in zip(plots, kinds.items(), strict=True):
        for number, (label, rows) in enumerate(lines.items()):
            steps, values = np.array(rows, dtype=float).T
            plot.plot(steps, values, color=COLOURS[number % 8], label=label)
            if kind == "loss" and values.min() > 0:
                plot.set(yscale="log")
        plot.set(title=kind.replace("_", " "), xlabel="step")
        plot.legend()
    return svg(figure, "training curves " + " ".join(sorted({g for graphs in curves.values() for g in graphs})))


@styled
def grouped_curves(name: str, groups: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """One plot per group, three beside each other: `groups[title][label]` are rows [step, value].

    Several positive quantities of different size share a logarithmic scale.
    """
    from matplotlib.figure import Figure

    columns, rows = min(3, len(groups)), -(-len(groups) // 3)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    plots = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for plot in plots[len(groups) :]:
        plot.set_visible(False)
    for plot, (title, lines) in zip(plots, groups.items(), strict=False):
        everything = []
        for number, (label, points) in enumerate(lines.items()):
            steps, values = np.array(points, dtype=float).T
            marker = "o" if len(steps) < 8 else None
            plot.plot(steps, values, color=COLOURS[number % 8], label=label, marker=marker, markersize=2.5)
            everything += list(values)
        if min(everything) > 0 and max(everything) > 20 * min(everything):
            plot.set(yscale="log")
        plot.set(title=title, xlabel="step")
        plot.legend()
    return svg(figure, f"training curves {name}")


@styled
def method_gains(scores: Sequence[Mapping[str, Any]]) -> str:
    """Gain in PSNR over bicubic interpolation of every other method, by set and way of reduction."""
    cases = list(dict.fromkeys((row["set"], row["degradation"]) for row in scores))
    methods = [m for m in dict.fromkeys(row["method"] for row in scores) if m != "bicubic"]
    found = {(row["set"], row["degradation"], row["method"]): row["gain"] for row in scores}
    figure, (plot,) = axes(1, max(4.6, 1.3 * len(cases)))
    place, width = np.arange(len(cases)), 0.8 / len(methods)
    for number, method in enumerate(methods):
        values = [found.get((*case, method)) or 0.0 for case in cases]
        plot.bar(
            place + (number - (len(methods) - 1) / 2) * width, values, 0.9 * width, color=COLOURS[number], label=method
        )
    plot.axhline(0, color=INK, linewidth=0.8)
    plot.set_xticks(place, ["\n".join(case) for case in cases])
    plot.set(ylabel="PSNR over bicubic, dB")
    plot.legend()
    return svg(figure, "gain in PSNR")


@styled
def gains(scores: Sequence[Mapping[str, Any]]) -> str:
    """Gain over BM3D told the level (over the noisy image where BM3D is not there), for every noise."""
    base = "BM3D" if "BM3D" in scores[0] else "noisy"
    figure, (plot,) = axes(1, 6.4)
    names = [row["noise"] for row in scores]
    place = np.arange(len(names))
    for shift, (column, label) in zip(
        (-0.2, 0.2), (("model", "blind"), ("model, told", "told the noise")), strict=True
    ):
        colour = COLOURS[0] if shift < 0 else COLOURS[7]
        plot.bar(place + shift, [row[column] - row[base] for row in scores], 0.36, color=colour, label=label)
    plot.axhline(0, color=INK, linewidth=0.8)
    plot.set_xticks(place, names)
    plot.set(ylabel=f"PSNR over {base}, dB")
    plot.legend()
    return svg(figure, "gain in PSNR")
