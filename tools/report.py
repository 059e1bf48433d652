#!/usr/bin/env python3
"""One page on a run, report.html: lengths, acceptance, losses, variety, speed, times, and five samples.

    tools/report.py RUN [--output FILE] [--program build/release/bin/selflengthen]

The page needs no other file and no network. A run that is not finished is shown as far as it is. Needs nothing but
Python, and the program to read the datasets with.
"""

import argparse
import datetime
import os
import pathlib
import sys

from run_data import Run, refuse
from run_report import figures as run_figures
from run_report import collection, page, texts, work

STATES = ("running", "stopped", "done", "failed")


def last_change(folder):
    times = [path.stat().st_mtime for path in (folder / "run.json", folder / "metrics.jsonl") if path.exists()]
    return datetime.datetime.fromtimestamp(max(times)).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def duration(seconds):
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def first_to_last(stages, name):
    means = [f"{stage.mean_words:,.0f}" for stage in stages if stage.name == name]
    return " → ".join(means if len(means) < 2 else (means[0], means[-1])) or "-"


def head(run, figures):
    state = str(run.facts.get("state", "unknown"))
    why = str(run.facts.get("why") or "") if state != "running" else "It works, or was killed."
    name = run.folder.resolve().name
    mark = f'<span class="state {state if state in STATES else ""}">{page.escaped(state)}</span>'
    seconds = sum(sum(work.seconds_of(figures, k).values()) for k in {stage.iteration for stage in figures.stages})
    stages = figures.responses()
    wanted = run.facts["options"].get("iterations", "?")
    finished = sum(
        all((run.iteration_folder(k) / role / "adapter_config.json").is_file() for role in ("generator", "extender"))
        for k in run.iterations()
    )
    content = f"<h1>{page.escaped(name)} {mark}</h1>\n"
    content += page.paragraph(
        f"A run of selflengthen; last change {last_change(run.folder)}." + (f" {why}" if why else ""), "quiet"
    )
    content += page.cards(
        [
            ("macro-iterations finished", f"{finished} of {wanted}"),
            ("mean words, initial responses", first_to_last(stages, "initial")),
            ("mean words, extended responses", first_to_last(stages, "extended")),
            ("extended responses kept", f"{sum(sum(stage.kept) for stage in stages if stage.name == 'extended'):,}"),
            ("recorded time", duration(seconds) if seconds else "-"),
        ]
    )
    return content + "".join(page.paragraph(f"Not read: {line}", "warning") for line in run.warnings)


def write(path, content):
    """Under its own name the page is whole, like every file of a run."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(content, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    except OSError as error:
        refuse(f"{path}: cannot be written ({error.strerror}); choose another --output")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--output", metavar="FILE", help="default: report.html in that folder")
    parser.add_argument("--program", metavar="PATH", help="selflengthen; default: the one built in this tree")
    parser.add_argument(
        "--texts",
        metavar="N",
        type=int,
        default=1000,
        help="responses of a stage whose text is looked at, at most (default: 1000)",
    )
    choice = parser.parse_args()
    if choice.texts < 2:
        refuse(f"--texts {choice.texts}: is too few; give 2 or more")
    run = Run(choice.run, choice.program)
    figures = run_figures.read(run, choice.texts)
    collected = collection.section(run)
    for line in run.warnings:
        print(f"warning: {line}", file=sys.stderr)
    output = pathlib.Path(choice.output) if choice.output else run.folder / "report.html"
    write(
        output,
        page.whole(
            f"{run.folder.resolve().name}: report of a run",
            head(run, figures),
            [
                ("State", work.progress(figures)),
                ("Lengths", texts.lengths(figures)),
                ("Attempts", work.attempts(figures)),
                ("Length bias", texts.length_bias(figures)),
                ("Variety", texts.variety(figures)),
                ("Training", work.training(figures)),
                ("Time", work.times(figures)),
                ("Collection", collected),
                ("Samples", texts.samples(figures)),
                ("Configuration", work.facts(run) + work.configuration(run)),
            ],
        ),
    )
    print(output)


if __name__ == "__main__":
    main()
