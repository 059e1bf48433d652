"""What `collect` made of a run: its final set by source and by demand on the length, and its batches."""

import json

from run_data import DatasetError, number

from .page import heading, paragraph, table

DEMANDS = ("about", "range", "above", "below")


def share(part, whole):
    return f"{part / whole:.1%}" if whole else "-"


def final_rows(rows):
    """A line for each source of the final set, in their order, and for all of them; and how many demands of a type."""
    sources, demands = {}, dict.fromkeys(DEMANDS, 0)
    for row in rows:
        for name in (row["source"], "all"):
            sums = sources.setdefault(name, {"rows": 0, "words": 0, "demands": 0, "woven": 0})
            sums["rows"] += 1
            sums["words"] += row["words"]
            sums["demands"] += row["demand"] in demands
            sums["woven"] += row["woven"]
        if row["demand"] in demands:
            demands[row["demand"]] += 1
    together = sources.pop("all", None)
    return sources | ({"all": together} if together else {}), demands


def final_set(run):
    try:
        sources, demands = final_rows(run.rows(1, "final"))
    except (DatasetError, KeyError, TypeError) as error:
        run.warnings.append(f"collected/final: left out: {error}")
        return paragraph(f"The final set cannot be read: {error}", "warning")
    content = heading("Final set") + table(
        ["source", "rows", "mean words", "demands", "woven in", "appended", "share woven"],
        [
            [
                name,
                f"{s['rows']:,}",
                f"{s['words'] / s['rows']:,.1f}",
                f"{s['demands']:,}",
                f"{s['woven']:,}",
                f"{s['demands'] - s['woven']:,}",
                share(s["woven"], s["demands"]),
            ]
            for name, s in sources.items()
        ],
        "",
    )
    return (
        content
        + table(
            ["demands", "rows", "share"],
            [[name, f"{count:,}", share(count, sum(demands.values()))] for name, count in demands.items()],
            "",
        )
        + paragraph(
            "A demand on the length is woven into the instruction by the model, or appended to it where the model's"
            " wording did not pass.",
            "quiet",
        )
    )


def batches(path):
    """The last report of every stage of every batch; lines that are torn or of something else are left out."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("batch"), int) and number(row, "attempts"):
            found[row["batch"], str(row.get("stage"))] = row
    return found


def section(run):
    folder = run.folder / "collected"
    if not folder.is_dir():
        return ""
    content = ""
    if (folder / "final.h5").is_file():
        content += final_set(run)
    else:
        content += paragraph("The collection is not finished: it has no final set yet.")
    if reports := batches(folder / "metrics.jsonl"):
        columns = ["samples", "accepted", "given_up", "abandoned", "attempts", "tokens"]
        content += heading("Batches") + table(
            ["batch", "stage", *(name.replace("_", " ") for name in columns), "acceptance"],
            [
                [
                    batch or "all",
                    stage.replace("_", " "),
                    *(f"{number(row, name):,}" for name in columns),
                    share(number(row, "accepted"), number(row, "attempts")),
                ]
                for (batch, stage), row in reports.items()
            ],
        )
    return content
