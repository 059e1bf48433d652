#!/usr/bin/env python3
"""How many words a model writes: against the number asked for, and against the way of decoding.

    tools/pilot_study.py rows.jsonl --model MODEL            asks the model, writes the rows, prints a table
    tools/pilot_study.py rows.jsonl                          the table again
    tools/pilot_study.py rows.jsonl --output pilot           and pilot.png, pilot.svg

For a first look: --count 2 --lengths 100 200 --strategy-length 100 --max-tokens 300. What stands behind -- goes to
every `selflengthen generate`: -- --device cuda --max-sequences 32. Drawing needs matplotlib (Debian: python3-matplotlib).
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from text_measures import count_words, median

ROOT = Path(__file__).resolve().parents[1]
TOPICS = [
    "the history of lighthouses", "how cities can prepare for hot summers", "the life of a travelling clockmaker",
    "what sailors knew about the stars", "bread and the people who bake it", "the return of wolves to old valleys",
    "a school in a village without roads", "how music is written down", "the first winter of a young gardener",
    "why we keep diaries", "the bridge between two quarrelling towns", "water in the farming of dry countries",
]


def refuse(message):
    print(message, file=sys.stderr)
    sys.exit(2)


def prompt_of(index, words):
    return f"Write an article about {TOPICS[index % len(TOPICS)]}. It should have about {words:,} words."


def strategies(choice):
    """The ways of decoding: name -> options of generate. The first is the method's own."""
    beams = ["--beams", str(choice.beams)]
    ways = {"sampling": [], "sampling, no repetition penalty": ["--repetition-penalty", "1"],
            f"sampling, at least {choice.min_tokens:,} tokens": ["--min-tokens", str(choice.min_tokens)],
            "greedy": ["--temperature", "0"]}
    for penalty in choice.length_penalties:
        ways[f"{choice.beams} beams, length penalty {penalty:g}"] = [*beams, "--length-penalty", str(penalty)]
    ways[f"{choice.beams} beams, at least {choice.min_tokens:,} tokens"] = [*beams, "--min-tokens", str(choice.min_tokens)]
    return ways


def generate(choice, asked, options):
    """The rows that generate gives for the prompts {"requested", "prompt"}."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "prompts.jsonl"), Path(folder, "responses.jsonl")
        source.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
        command = [*shlex.split(choice.launcher), choice.program, "generate", "--model", choice.model, "--input", str(source),
                   "--output", str(target), "--max-tokens", str(choice.max_tokens), *options, *choice.more]
        try:
            done = subprocess.run(command, check=False)
        except OSError as error:
            refuse(f"{command[0]}: {error.strerror}; build the program, or name it with --program")
        if done.returncode != 0:
            refuse(f"`{shlex.join(command)}` ended with exit code {done.returncode}; its message is above")
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def study(choice):
    """Runs everything, appending to the file after each part, so that what is done is not lost."""
    ways = strategies(choice)
    own = next(iter(ways))
    parts = [("length", own, choice.lengths)] + [("strategy", way, [choice.strategy_length]) for way in ways]
    try:
        file = open(choice.rows, "x", encoding="utf-8")
    except FileExistsError:
        refuse(f"{choice.rows}: is there already; name another file, or leave out --model to see it")
    except OSError as error:
        refuse(f"{choice.rows}: {error.strerror}; name a file that can be written")
    with file:
        for part, way, lengths in parts:
            print(f"{way}: {choice.count} articles of {', '.join(f'{n:,}' for n in lengths)} words", file=sys.stderr)
            asked = [{"requested": n, "prompt": prompt_of(i, n)} for n in lengths for i in range(choice.count)]
            for row in generate(choice, asked, ways[way]):
                file.write(json.dumps({"part": part, "model": Path(choice.model).name, "strategy": way, **row,
                                       "words": count_words(row["response"])}, ensure_ascii=False) + "\n")
            file.flush()


def read(path):
    """{part: {requested or strategy: rows}}, and the model's name."""
    parts, model = {"length": {}, "strategy": {}}, ""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        refuse(f"{path}: {error.strerror}; give --model to make it")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key = row["requested"] if row["part"] == "length" else row["strategy"]
            parts[row["part"]].setdefault(key, []).append((row["words"], row["finish_reason"]))
            model = row["model"]
        except (ValueError, KeyError, TypeError):
            refuse(f"{path}:{number}: is no row of a pilot study; give the file that this script has written")
    if not model:
        refuse(f"{path}: has no rows; remove it and give --model")
    return parts, model


def words_of(rows):
    return sorted(words for words, _ in rows)


def print_table(parts):
    print(f"{'':44} {'texts':>6} {'least':>7} {'median':>7} {'most':>7}  cut off (--max-tokens)")
    for part, title in (("length", "asked for {:,} words"), ("strategy", "{}")):
        for key, rows in parts[part].items():
            words = words_of(rows)
            cut = sum(reason != "stop" for _, reason in rows)
            print(f"{title.format(key):44} {len(words):6} {words[0]:7,} {median(words):7,} {words[-1]:7,}  {cut}")


def pyplot():
    try:
        import matplotlib
    except ImportError:
        refuse("drawing needs matplotlib: apt-get install python3-matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return matplotlib, plt


def draw(parts, model, output):
    matplotlib, plt = pyplot()
    dots, line = "#1f6fb4", "#c8571b"
    figure, (asked, ways) = plt.subplots(1, 2, figsize=(11.5, 4.4), gridspec_kw={"width_ratios": [1, 1.15]})

    lengths = sorted(parts["length"])
    for n in lengths:
        words = words_of(parts["length"][n])
        asked.plot([n] * len(words), words, "o", color=dots, alpha=0.45, markersize=4)
    asked.plot(lengths, lengths, "--", color="#888888", linewidth=1, label="as asked")
    asked.plot(lengths, [median(words_of(parts["length"][n])) for n in lengths], "o-", color=line, label="median")
    asked.set(title="Requested and produced words", xlabel="words asked for", ylabel="words written", xscale="log")
    shortest, longest = (f([*lengths, *(w for n in lengths for w in words_of(parts["length"][n]))]) for f in (min, max))
    asked.set_yscale("symlog", linthresh=10)  # a text may have no words
    asked.set_ylim(shortest / 1.5, longest * 1.5)
    for axis in (asked.xaxis, asked.yaxis):
        axis.set_major_locator(matplotlib.ticker.FixedLocator(lengths))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    asked.legend(frameon=False, fontsize=8)

    names = list(parts["strategy"])
    for place, name in enumerate(names):
        words = words_of(parts["strategy"][name])
        ways.plot(words, [place] * len(words), "o", color=dots, alpha=0.45, markersize=4)
        ways.plot([median(words)], [place], "D", color=line, label="median" if place == 0 else None)
    ways.set_yticks(range(len(names)), names, fontsize=8)
    ways.invert_yaxis()
    ways.set(title="Words and decoding", xlabel="words written", xlim=(0, None))
    ways.legend(frameon=False, fontsize=8)

    thousands = matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}")
    for axis in (asked.xaxis, asked.yaxis, ways.xaxis):
        axis.set_major_formatter(thousands)
    for axes in (asked, ways):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(model, fontsize=10)
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(f"{output}.{kind}", dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", metavar="FILE", help="JSON lines: every text with the words asked for and written")
    parser.add_argument("--output", metavar="NAME", help="draw NAME.png and NAME.svg")
    parser.add_argument("--model", metavar="PATH", help="Hugging Face folder or .gguf file: make FILE")
    parser.add_argument("--program", default=str(ROOT / "build" / "release" / "bin" / "selflengthen"), metavar="PATH")
    parser.add_argument("--launcher", default="", metavar="WORDS", help='what starts the ranks: "mpirun -n 4"')
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 1000, 2000, 4000, 8000], metavar="N",
                        help="words to ask for")
    parser.add_argument("--strategy-length", type=int, default=4000, metavar="N",
                        help="words to ask for where ways of decoding are compared")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="texts for each length and way")
    parser.add_argument("--max-tokens", type=int, default=16384, metavar="N")
    parser.add_argument("--min-tokens", type=int, default=2048, metavar="N")
    parser.add_argument("--beams", type=int, default=4, metavar="N")
    parser.add_argument("--length-penalties", type=float, nargs="+", default=[0.8, 1.0, 1.2, 2.0], metavar="X")
    arguments = sys.argv[1:]
    here = arguments.index("--") if "--" in arguments else len(arguments)
    choice = parser.parse_args(arguments[:here])
    choice.more = arguments[here + 1:]
    if min(choice.lengths + [choice.strategy_length, choice.count]) < 1:
        refuse("--lengths, --strategy-length and --count must be 1 or more")
    if choice.output:
        pyplot()  # missing, it is better said before hours of texts
    if choice.model:
        study(choice)
    parts, model = read(choice.rows)
    print_table(parts)
    if choice.output:
        draw(parts, model, choice.output)


if __name__ == "__main__":
    main()
