#!/usr/bin/env python3
"""Curves of a scaling study: rate over ranks with the ideal line, and efficiency, for rollouts, training and files.

    tools/plot_scaling.py scaling.jsonl                      a table
    tools/plot_scaling.py scaling.jsonl --output scaling     and scaling.png, scaling.svg

Rows are those of slurm/scaling.sh. Where a measurement is there several times, the last one counts. Drawing needs
matplotlib (Debian: python3-matplotlib).
"""

import argparse
import json
import sys


TITLES = {"rollout": "Rollouts", "train": "Training", "io": "Tables written"}


def refuse(message):
    print(message, file=sys.stderr)
    sys.exit(2)


def read(paths):
    """{(bench, kind): {ranks: tokens or GB a second}}, {ranks: row of the collectives}, and what was measured on what."""
    curves, sums, facts = {}, {}, {"device": "?", "shape": "?"}
    for path in paths:
        try:
            lines = open(path, encoding="utf-8").read().splitlines()
        except OSError as error:
            refuse(f"{path}: {error.strerror}; give the file that slurm/scaling.sh has written")
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["bench"] == "collective":
                    sums[row["ranks"]] = row
                else:
                    rate = row["gb_per_s"]["table_write"] if row["bench"] == "io" else row["tokens_per_second"]
                    curves.setdefault((row["bench"], row["kind"]), {})[row["ranks"]] = rate
                for fact in facts:
                    facts[fact] = row.get(fact, facts[fact])
            except (ValueError, KeyError, TypeError):
                refuse(f"{path}:{number}: is no row of a scaling study; give the file that slurm/scaling.sh has written")
    if not curves:
        refuse(f"{paths[0]}: has no row of rollouts, training or files")
    return curves, sums, facts


def efficiency(curve):
    """Rate beside that of the fewest ranks, scaled up."""
    base = min(curve)
    return {ranks: rate / (curve[base] * ranks / base) for ranks, rate in sorted(curve.items())}


def print_table(curves, sums):
    print(f"{'':18} {'ranks':>6} {'tokens/s':>12} {'efficiency':>11}   (files: GB/s)")
    for (bench, kind), curve in sorted(curves.items()):
        for ranks, share in efficiency(curve).items():
            print(f"{bench + ', ' + kind:18} {ranks:6} {curve[ranks]:12.{3 if bench == 'io' else 1}f} {100 * share:10.1f}%")
    for ranks, row in sorted(sums.items()):
        print(f"{'collective':18} {ranks:6} {row['best_bus_gb_per_s']:7.1f} GB/s (bus)")


def draw(curves, facts, output):
    try:
        import matplotlib
    except ImportError:
        refuse("drawing needs matplotlib: apt-get install python3-matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    benches = sorted({bench for bench, _ in curves})
    figure, axes = plt.subplots(2, len(benches), figsize=(4.6 * len(benches), 6.2), sharex="col", squeeze=False,
                                gridspec_kw={"height_ratios": [3, 2]})
    colours = {"weak": "#1f6fb4", "strong": "#c8571b"}
    for column, bench in enumerate(benches):
        rate, share = axes[0][column], axes[1][column]
        for kind in ("weak", "strong"):
            curve = dict(sorted(curves.get((bench, kind), {}).items()))
            if not curve:
                continue
            ranks, base = list(curve), min(curve)
            rate.plot(ranks, [curve[base] * n / base for n in ranks], "--", color=colours[kind], linewidth=1, alpha=0.6,
                      label=f"{kind}, ideal")
            rate.plot(ranks, list(curve.values()), "o-", color=colours[kind], label=kind)
            share.plot(ranks, [100 * x for x in efficiency(curve).values()], "o-", color=colours[kind], label=kind)
        rate.set(title=TITLES.get(bench, bench), ylabel="GB/s" if bench == "io" else "tokens/s")
        rate.set_xscale("log", base=2)
        rate.set_yscale("log", base=2)
        rate.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:,.3g}" if y < 100 else f"{y:,.0f}"))
        rate.legend(frameon=False, fontsize=8)
        share.set(xlabel="ranks", ylabel="efficiency, %", ylim=(0, 112))
        share.axhline(100, color="#888888", linestyle="--", linewidth=1)
        share.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(
            sorted({n for (name, _), curve in curves.items() if name == bench for n in curve})))
        share.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        share.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        for axis in (rate, share):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{facts['shape']}, {facts['device']}", fontsize=10)
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(f"{output}.{kind}", dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="FILE", help="what slurm/scaling.sh has written")
    parser.add_argument("--output", metavar="NAME", help="draw NAME.png and NAME.svg")
    choice = parser.parse_args()
    curves, sums, facts = read(choice.rows)
    print_table(curves, sums)
    if choice.output:
        draw(curves, facts, choice.output)


if __name__ == "__main__":
    main()
