#!/usr/bin/env python3
"""What a run did to the texts: a Markdown table of one line a stage and macro-iteration.

    tools/run_summary.py RUN [--program build/release/bin/selflengthen]

Words as the method counts them (the column of the dataset); accepted = accepted attempts of all attempts; 4-grams =
share of a response's runs of four words that are distinct, mean over the responses. Needs nothing but Python.
"""
import argparse
import json
import pathlib
import subprocess


def rows_of(program, run, dataset, iteration):
    text = subprocess.run(
        [program, "export", "--run", run, "--dataset", dataset, "--iteration", str(iteration), "--output", "-"],
        check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def distinct_four_grams(text):
    words = text.split()
    grams = [tuple(words[i:i + 4]) for i in range(len(words) - 3)]
    return len(set(grams)) / len(grams) if grams else 1.0


def report_of(run, iteration, stage):
    """The last report of a stage: a run that was continued may have several."""
    found = {}
    for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("iteration") == iteration and row.get("stage") == stage:
            found = row
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--program", default="build/release/bin/selflengthen")
    choice = parser.parse_args()
    print("| iteration | stage | responses | mean words | 90th percentile | longest | accepted | 4-grams | kept |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in sorted(pathlib.Path(choice.run).glob("iter_*")):
        iteration = int(folder.name.removeprefix("iter_"))
        for stage in ("initial", "extended"):
            if not (folder / f"{stage}.h5").exists():
                continue
            rows = rows_of(choice.program, choice.run, stage, iteration)
            report = report_of(choice.run, iteration, stage)
            words = sorted(row["words"] for row in rows)
            grams = sum(distinct_four_grams(row["response"]) for row in rows) / len(rows)
            print(f"| {iteration} | {stage} | {len(rows)} | {sum(words) / len(words):.0f} "
                  f"| {words[int(0.9 * (len(words) - 1))]} | {words[-1]} "
                  f"| {report['accepted'] / max(1, report['attempts']):.1%} | {grams:.3f} "
                  f"| {sum(row['kept'] for row in rows)} |")


if __name__ == "__main__":
    main()
