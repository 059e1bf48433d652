"""Sections on the run itself: its configuration, attempts, training, and where the time went."""

import json

from run_data import ROLES, default_options, number

from . import svg
from .page import figure, folded, heading, paragraph, table
from .texts import row_name

# A fixed colour a rule; a rule that is not known here shares the last one.
RULES = {
    "words": svg.SKY,
    "unsuitable": svg.GREY,
    "ending": svg.BLUE,
    "banned_word": svg.ORANGE,
    "repetition": svg.RED,
    "not_longer": svg.PURPLE,
    "too_short": svg.GREEN,
}
ROLE_COLOURS = dict(zip(ROLES, (svg.BLUE, svg.RED)))
PLACES = ("out", "model", "prompts", "seeds")  # options that say where, not what: never compared with defaults


def shown(value):
    """An option's value as the program's help writes defaults."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if set(value) & set(' \n\t\\"') else value
    if isinstance(value, list):
        return " ".join(json.dumps(one, ensure_ascii=False) for one in value)
    return json.dumps(value, ensure_ascii=False)


def configuration(run):
    options, defaults = run.facts["options"], default_options(run.program)
    different = [
        [name, shown(value), defaults.get(name, "none")]
        for name, value in sorted(options.items())
        if name not in PLACES and shown(value) != defaults.get(name, "")
    ]
    content = (
        paragraph(
            f"Of {len(options)} options, {len(different)} differ from the defaults. Memory and engine options"
            " are shown as they were resolved on the machine."
        )
        if defaults
        else ""
    )
    if defaults and different:
        content += table(["option", "value", "default"], different, "plain")
    return content + folded(
        "All options",
        table(["option", "value"], [[name, shown(value)] for name, value in sorted(options.items())], "plain"),
    )


def attempts(figures):
    stages = [stage for stage in figures.stages if number(stage.report, "attempts")]
    if not stages:
        return ""
    content = heading("Acceptance") + figure(
        svg.bars(
            [(row_name(s), {"accepted": 100 * s.acceptance}, f"{100 * s.acceptance:.1f} %") for s in stages],
            "Acceptance",
            "accepted attempts of all attempts, %",
            {"accepted": svg.GREEN},
            100,
        ),
        "An attempt is accepted when its text passes the method's rules; a sample is tried again until one is, or its"
        " attempts are used up.",
    )
    rules = {
        rule: RULES.get(rule, svg.BLACK)
        for rule in [*RULES, *sorted({r for s in stages for r in s.rejected} - set(RULES))]
        if any(stage.rejected.get(rule) for stage in stages)
    }
    if rules:
        rows = []
        for stage in stages:
            every = 100 / number(stage.report, "attempts")
            rows.append(
                (
                    row_name(stage),
                    {rule: every * stage.rejected.get(rule, 0) for rule in rules},
                    f"{every * sum(stage.rejected.values()):.0f}",
                )
            )
        content += heading("Rejections by rule") + figure(
            svg.bars(rows, "Rejections by rule", "rejections in 100 attempts", rules),
            "Why texts were rejected. An attempt to extend is checked in every micro-iteration, so it can be rejected"
            " several times.",
        )
        content += table(
            ["iteration", "stage", *rules],
            [[s.iteration, s.name, *(f"{s.rejected.get(rule, 0):,}" for rule in rules)] for s in stages],
        )
    content += heading("Counts")
    columns = ["samples", "accepted", "given_up", "abandoned", "attempts", "tokens"]
    content += table(
        ["iteration", "stage", *(name.replace("_", " ") for name in columns), "acceptance"],
        [
            [s.iteration, s.name, *(f"{number(s.report, name):,}" for name in columns), f"{s.acceptance:.1%}"]
            for s in stages
        ],
    )
    return content + paragraph(
        "Given up: all attempts used up; abandoned: cut off as stragglers, and counted neither in attempts nor in"
        " tokens.",
        "quiet",
    )


def thinned(points, most=500):
    """Means of neighbours where there are more points than a chart can show."""
    width = -(-len(points) // most)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(group[len(group) // 2][0], sum(y for _, y in group) / len(group)) for group in groups]


def running_mean(points):
    """Mean over a twentieth of the points around each; fewer at the ends."""
    half = len(points) // 40
    around = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(points, around)]


def over_steps(figures, key):
    """Curves of a number of the training steps, a piece an iteration, steps counted on from one to the next; and where
    the iterations begin."""
    starts, after = {}, 0
    for training in figures.trainings:
        last = max([step["step"] for t in figures.trainings if t.iteration == training.iteration for step in t.steps])
        if training.iteration not in starts:
            starts[training.iteration] = after
            after += last
    series = []
    for role in ROLES:
        pieces = [
            [(starts[t.iteration] + step["step"], step[key]) for step in t.steps if number(step, key)]
            for t in figures.trainings
            if t.role == role
        ]
        pieces = [piece for piece in pieces if piece]
        if not pieces:
            continue
        if max(map(len, pieces)) > 40:
            series += [
                ("", ROLE_COLOURS[role], [thinned(piece) for piece in pieces], "faint"),
                (role, ROLE_COLOURS[role], [thinned(running_mean(piece)) for piece in pieces], "plain"),
            ]
        else:
            series.append((role, ROLE_COLOURS[role], pieces, "plain"))
    marks = [(start + 0.5, f"iteration {iteration}") for iteration, start in starts.items()] if len(starts) > 1 else []
    return series, marks


def training(figures):
    series, marks = over_steps(figures, "loss")
    if not series:
        return ""
    content = heading("Loss") + figure(
        svg.lines(
            series, "Loss of both roles", "training step, counted on over the iterations", "loss, nats a token", marks
        ),
        "Mean loss over the learnt tokens of a step. Where there are many steps, the line is a running mean over a"
        " twentieth of the iteration's, and the steps are faint behind it.",
    )
    rows = []
    for t in figures.trainings:
        losses = [step["loss"] for step in t.steps if number(step, "loss")]
        rows.append(
            [
                t.iteration,
                t.role,
                len(t.steps),
                sum(1 for step in t.steps if step.get("skipped")),
                f"{losses[0]:.4f}" if losses else "-",
                f"{losses[-1]:.4f}" if losses else "-",
                f"{t.tokens_per_second:,.0f}" if t.tokens_per_second else "-",
            ]
        )
    return content + table(["iteration", "role", "steps", "skipped", "first loss", "last loss", "tokens/s"], rows)


def seconds_of(figures, iteration):
    """{part of the iteration: seconds}, the parts whose time is recorded."""
    parts = {stage.name: number(stage.report, "seconds") for stage in figures.of(iteration)}
    for t in figures.trainings:
        if t.iteration == iteration:
            parts[f"{t.role} training"] = t.seconds or 0
    parts["preparing"] = sum(
        figures.run.seconds_of(iteration, stage) for stage in ("rollouts begin", "training begins")
    )
    return parts


def times(figures):
    iterations = sorted({stage.iteration for stage in figures.stages})
    seconds = {iteration: seconds_of(figures, iteration) for iteration in iterations}
    content = ""
    colours = {
        "instructions": svg.GREY,
        "initial": svg.BLUE,
        "extended": svg.RED,
        "generator training": svg.SKY,
        "extender training": svg.ORANGE,
        "preparing": svg.PURPLE,
    }
    longest = max([sum(parts.values()) for parts in seconds.values()], default=0)
    if longest > 0:
        size, unit = next(
            (size, unit)
            for size, unit in ((1, "seconds"), (60, "minutes"), (3600, "hours"))
            if longest < 200 * size or size == 3600
        )
        rows = [
            (
                f"iteration {k}",
                {name: parts.get(name, 0) / size for name in colours},
                f"{sum(parts.values()) / size:.1f}",
            )
            for k, parts in seconds.items()
        ]
        content += heading("Where the time went") + figure(
            svg.bars(rows, "Time by stage", unit, colours),
            "Preparing: memory taken, adapters read and placed, rows tokenised. Of a stage that was interrupted, only"
            " the time of the start that finished it is recorded.",
        )
        content += table(
            ["iteration", *(f"{name}, s" for name in colours), "together, s"],
            [
                [
                    k,
                    *(f"{parts[name]:,.1f}" if parts.get(name) else "-" for name in colours),
                    f"{sum(parts.values()):,.1f}",
                ]
                for k, parts in seconds.items()
            ],
            "",
        )
    rates = [
        (row_name(s), {s.name: s.tokens_per_second}, f"{s.tokens_per_second:,.0f}")
        for s in figures.stages
        if s.tokens_per_second
    ]
    if rates:
        content += heading("Throughput of sampling") + figure(
            svg.bars(
                rates,
                "Throughput of sampling",
                "tokens/s, all ranks together",
                {name: colour for name, colour in colours.items() if any(name in parts for _, parts, _ in rates)},
            ),
            "Tokens generated for the samples that were not abandoned, by the seconds of the stage. It falls where a"
            " stage waits for its last samples.",
        )
    content += replicas(figures)
    series, marks = over_steps(figures, "tokens_per_second")
    if series:
        content += heading("Throughput of training") + figure(
            svg.lines(
                series,
                "Throughput of training",
                "training step, counted on over the iterations",
                "tokens/s, all ranks together",
                marks,
                from_zero=True,
            ),
            "Tokens put through the model in a step, by its seconds; sequences of different lengths make it jump.",
        )
    return content


def replicas(figures):
    """How evenly the replicas of the model shared a stage, and how long they had nothing left to do."""
    rows = []
    for stage in figures.stages:
        if not stage.replicas:
            continue
        each, seconds = stage.replicas
        busy = [(time, tokens, steps) for time, tokens, steps in each if time > 0]
        if not busy:
            continue
        idle = [100 * (1 - time / seconds) for time, _, _ in each]
        rates = [tokens / time for time, tokens, _ in busy]
        steps = sum(steps for _, _, steps in busy)
        rows.append(
            [
                stage.iteration,
                stage.name,
                f"{len(each):,}",
                f"{sum(idle) / len(idle):.1f} %",
                f"{max(idle):.1f} %",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{sum(time for time, _, _ in busy) / steps * 1e3:,.2f}" if steps else "-",
                f"{sum(tokens for _, tokens, _ in busy) / steps:,.1f}" if steps else "-",
            ]
        )
    if not rows:
        return ""
    return (
        heading("Replicas in sampling")
        + table(
            [
                "iteration",
                "stage",
                "replicas",
                "idle, mean",
                "idle, most",
                "tokens/s of a replica",
                "step, ms",
                "tokens a step",
            ],
            rows,
        )
        + paragraph(
            "Each holds the whole model and takes samples until none are left; then it is idle until the last is done."
            " Tokens/s while it was busy, those of abandoned samples and of rejected texts included.",
            "quiet",
        )
    )


def progress(figures):
    """What is finished, and what is under way: of a run that is not done."""
    run = figures.run
    rows = []
    for iteration in sorted({stage.iteration for stage in figures.stages}):
        folder = run.iteration_folder(iteration)
        row = [iteration]
        for stage in figures.of(iteration):
            there = f"{stage.journalled} samples so far" if stage.journalled else "-"
            row.append((f"{stage.rows:,} rows" if stage.rows else "damaged") if stage.finished else there)
        for role in ROLES:
            steps = next((len(t.steps) for t in figures.trainings if (t.iteration, t.role) == (iteration, role)), 0)
            trained = (folder / role / "adapter_config.json").is_file()
            row.append(f"trained, {steps:,} steps" if trained else f"{steps:,} steps so far" if steps else "-")
        rows.append(row)
    if not rows:
        return paragraph("No macro-iteration has begun.")
    return table(["iteration", "instructions", "initial", "extended", *ROLES], rows, "plain")


def facts(run):
    grid = run.facts.get("grid") if isinstance(run.facts.get("grid"), dict) else {}
    rows = [
        ["model", run.facts.get("model", "-")],
        ["fingerprint", run.facts.get("fingerprint", "-")],
        ["version of the program", run.facts.get("version", "-")],
        ["last grid", f"dp {grid.get('dp', '?')} x tp {grid.get('tp', '?')}"],
        ["sequences of a training step", run.facts.get("batch_sequences", "-")],
    ]
    return table(["fact", "value"], rows, "plain")
