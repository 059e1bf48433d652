#!/usr/bin/env python3
"""Curves of a scaling study: rate over ranks with the ideal line, and efficiency, for rollouts, training and files;
and of bench simulate: efficiency and idle share over replicas.

    tools/plot_scaling.py scaling.jsonl                      a table
    tools/plot_scaling.py scaling.jsonl --output scaling     and scaling.png, scaling.svg

Rows are those of slurm/scaling.sh and of bench simulate. Where a measurement is there several times, the last one
counts. Drawing needs matplotlib (Debian: python3-matplotlib).
"""

import argparse
import json
import sys


TITLES = {"rollout": "Rollouts", "train": "Training", "io": "Tables written"}
WAYS = {"dynamic": "handed out", "static": "split beforehand"}


def refuse(message):
    print(message, file=sys.stderr)
    sys.exit(2)


def read(paths):
    """{(bench, kind): {ranks: tokens or GB a second}}, {ranks: row of the collectives}, {(scaling, cut): {replicas: row of
    bench simulate}}, and what was measured on what."""
    curves, sums, simulated, facts = {}, {}, {}, {"device": "?", "shape": "?"}
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
                elif row["bench"] == "simulate":
                    for way in WAYS:
                        row[way]["efficiency"], row[way]["idle_share"], row[way]["seconds"]
                    simulated.setdefault((row["scaling"], row["straggler_cut"]), {})[row["replicas"]] = row
                elif row["bench"] == "decode" or row["bench"] == "prefill":
                    pass  # steps, for bench simulate
                else:
                    rate = row["gb_per_s"]["table_write"] if row["bench"] == "io" else row["tokens_per_second"]
                    curves.setdefault((row["bench"], row["kind"]), {})[row["ranks"]] = rate
                for fact in facts:
                    facts[fact] = row.get(fact, facts[fact])
            except (ValueError, KeyError, TypeError):
                refuse(f"{path}:{number}: is no row of a scaling study; give the file that slurm/scaling.sh has written")
    if not curves and not simulated:
        refuse(f"{paths[0]}: has no row of rollouts, training, files or simulations")
    return curves, sums, simulated, facts


def efficiency(curve):
    """Rate beside that of the fewest ranks, scaled up."""
    base = min(curve)
    return {ranks: rate / (curve[base] * ranks / base) for ranks, rate in sorted(curve.items())}


def print_simulated(simulated):
    print(f"{'simulated':18} {'replicas':>8}" + "".join(f" {way + ', s':>12} {'efficiency':>11} {'idle':>7}" for way in WAYS))
    for (scaling, cut), rows in sorted(simulated.items()):
        for replicas, row in sorted(rows.items()):
            print(f"{scaling + ', cut ' + str(cut):18} {replicas:8}" + "".join(
                f" {row[way]['seconds']:12.1f} {100 * row[way]['efficiency']:10.1f}% {100 * row[way]['idle_share']:6.2f}%"
                for way in WAYS))


def print_table(curves, sums):
    print(f"{'':18} {'ranks':>6} {'tokens/s':>12} {'efficiency':>11}   (files: GB/s)")
    for (bench, kind), curve in sorted(curves.items()):
        for ranks, share in efficiency(curve).items():
            print(f"{bench + ', ' + kind:18} {ranks:6} {curve[ranks]:12.{3 if bench == 'io' else 1}f} {100 * share:10.1f}%")
    for ranks, row in sorted(sums.items()):
        print(f"{'collective':18} {ranks:6} {row['best_bus_gb_per_s']:7.1f} GB/s (bus)")


def plotting():
    try:
        import matplotlib
    except ImportError:
        refuse("drawing needs matplotlib: apt-get install python3-matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt, matplotlib


def draw(curves, facts, output):
    plt, matplotlib = plotting()
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
    save(figure, output)


def save(figure, output):
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(f"{output}.{kind}", dpi=90)


def draw_simulated(simulated, output):
    """A column for each way to scale, a colour for each cut: efficiency and idle share over replicas."""
    plt, matplotlib = plotting()
    columns = sorted({scaling for scaling, _ in simulated})
    colours = dict(zip(sorted({cut for _, cut in simulated}), ("#1f6fb4", "#c8571b", "#3a8f4d", "#7a4fa3")))
    figure, axes = plt.subplots(2, len(columns), figsize=(4.2 * len(columns), 5.6), sharex="col", squeeze=False)
    for (scaling, cut), rows in sorted(simulated.items()):
        rate, idle = axes[:, columns.index(scaling)]
        rows = dict(sorted(rows.items()))
        for way, style in (("dynamic", "o-"), ("static", "x--")):
            for axis, what in ((rate, "efficiency"), (idle, "idle_share")):
                axis.plot(list(rows), [100 * row[way][what] for row in rows.values()], style, markersize=4, linewidth=1,
                          color=colours.get(cut, "#555555"), label=f"cut {cut:g}, {WAYS[way]}")
        first = next(iter(rows.values()))
        each = f"{first['samples'] // first['replicas']:,} samples a replica" if scaling == "weak" else f"{first['samples']:,} samples"
        rate.set(title=f"{scaling}: {each}", ylabel="efficiency, %", ylim=(0, 105))
        idle.set(xlabel="replicas", ylabel="mean idle share, %", ylim=(0, 100))
        rate.legend(frameon=False, fontsize=8)
        idle.set_xscale("log", base=2)
        idle.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        for axis in (rate, idle):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("bench simulate: a model, not a measurement", fontsize=10)
    save(figure, output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="FILE", help="what slurm/scaling.sh or bench simulate has written")
    parser.add_argument("--output", metavar="NAME", help="draw NAME.png and NAME.svg; simulations NAME_simulated")
    choice = parser.parse_args()
    curves, sums, simulated, facts = read(choice.rows)
    if curves:
        print_table(curves, sums)
    if simulated:
        print_simulated(simulated)
    if choice.output and curves:
        draw(curves, facts, choice.output)
    if choice.output and simulated:
        draw_simulated(simulated, f"{choice.output}_simulated")


if __name__ == "__main__":
    main()
