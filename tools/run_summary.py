#!/usr/bin/env python3
"""What a run did to the texts: a Markdown table of one line a stage and macro-iteration.

    tools/run_summary.py RUN [--program build/release/bin/selflengthen]

Words as the method counts them (the column of the dataset); accepted = accepted attempts of all attempts; 4-grams =
share of a response's runs of four words that are distinct, mean over the responses. Needs nothing but Python.
"""

import argparse

from run_data import DatasetError, Run, refuse
from text_measures import distinct_four_grams, percentile


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--program", help="default: the one built in this tree")
    choice = parser.parse_args()
    run = Run(choice.run, choice.program)
    print("| iteration | stage | responses | mean words | 90th percentile | longest | accepted | 4-grams | kept |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for iteration in run.iterations():
        for stage in ("initial", "extended"):
            if not run.has(iteration, stage):
                continue
            words, grams, kept = [], 0.0, 0
            try:
                for row in run.rows(iteration, stage):
                    words.append(row["words"])
                    grams += distinct_four_grams(row["response"])
                    kept += row["kept"]
            except DatasetError as error:
                refuse(str(error))
            words.sort()
            report = run.stage_report(iteration, stage)
            accepted = f"{report['accepted'] / max(1, report['attempts']):.1%}" if report else "-"
            print(
                f"| {iteration} | {stage} | {len(words)} | {sum(words) / len(words):.0f} "
                f"| {percentile(words, 0.9)} | {words[-1]} | {accepted} | {grams / len(words):.3f} | {kept} |"
            )


if __name__ == "__main__":
    main()
