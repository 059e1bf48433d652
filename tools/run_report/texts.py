"""Sections on the texts: their lengths, which were kept, how varied they are, and five of them."""

from text_measures import NEAR_DUPLICATE, count_words, median, percentile

from . import svg
from .page import escaped, figure, folded, heading, paragraph, table

COLOURS = {"initial": (svg.BLUE, "#a9cfe8"), "extended": (svg.RED, "#f3c5a5")}  # kept; not kept
SAMPLES = 5


def row_name(stage):
    return f"iteration {stage.iteration}, {stage.name}"


def lengths(figures):
    stages = figures.responses()
    if not stages:
        return ""
    panels = []
    for stage in stages:
        strong, pale = COLOURS[stage.name]
        layers = [
            (strong, [w for w, kept in zip(stage.words, stage.kept) if kept]),
            (pale, [w for w, kept in zip(stage.words, stage.kept) if not kept]),
        ]
        panels.append((row_name(stage), layers, (median(stage.ordered), f"median {median(stage.ordered):,}")))
    entries = [
        (f"{name}, {'kept' if kept else 'not kept'}", COLOURS[name][1 - kept])
        for name in COLOURS
        if any(stage.name == name for stage in stages)
        for kept in (1, 0)
    ]
    content = figure(
        svg.histograms(panels, "Lengths of responses", "words of a response", "responses", entries),
        "Accepted responses by length. Kept: by length-bias sampling; kept initial responses are extended, kept "
        "extended ones are what the roles are trained on.",
    )
    if len({stage.iteration for stage in stages}) > 1:
        content += growth(stages)
    content += table(
        [
            "iteration",
            "stage",
            "responses",
            "mean words",
            "median",
            "90th percentile",
            "longest",
            "kept",
            "mean words of the kept",
        ],
        [
            [
                stage.iteration,
                stage.name,
                f"{len(stage.words):,}",
                f"{stage.mean_words:,.1f}",
                f"{median(stage.ordered):,}",
                f"{percentile(stage.ordered, 0.9):,}",
                f"{stage.ordered[-1]:,}",
                f"{sum(stage.kept):,}",
                mean_kept(stage),
            ]
            for stage in stages
        ],
    )
    return content


def mean_kept(stage):
    kept = [words for words, keep in zip(stage.words, stage.kept) if keep]
    return f"{sum(kept) / len(kept):,.1f}" if kept else "-"


def growth(stages):
    series = []
    for name, (colour, _) in COLOURS.items():
        of_stage = [stage for stage in stages if stage.name == name]
        if of_stage:
            series += [
                (f"{name} responses", colour, [[(s.iteration, s.mean_words) for s in of_stage]], "dotted"),
                ("", colour, [[(s.iteration, percentile(s.ordered, 0.9)) for s in of_stage]], "dashed"),
            ]
    iterations = sorted({stage.iteration for stage in stages})
    return figure(
        svg.lines(series, "Growth of the responses", "macro-iteration", "words", from_zero=True, x_ticks=iterations),
        "Mean length over the macro-iterations; dashed: the 90th percentile.",
    )


def shorter_shares(values):
    """Of every response, the share of the stage's responses that have fewer characters: 1 minus the method's rank."""
    ordered, below = sorted(values), {}
    for place, value in enumerate(ordered):
        below.setdefault(value, place)
    return [below[value] / len(values) for value in values]


def length_bias(figures):
    series = []
    curve = [(x, 100 * max(0.0, 1 - 2 * (1 - x / 100) ** 3)) for x in range(101)]
    for name, (colour, _) in COLOURS.items():
        pairs = [
            pair
            for stage in figures.responses()
            if stage.name == name
            for pair in zip(shorter_shares(stage.characters), stage.kept)
        ]
        if not pairs:
            continue
        groups = 10 if len(pairs) >= 200 else 5
        shares = [[kept for place, kept in pairs if int(place * groups) == group] for group in range(groups)]
        points = [
            (100 * (group + 0.5) / groups, 100 * sum(kept) / len(kept)) for group, kept in enumerate(shares) if kept
        ]
        series.append((f"{name} responses", colour, [points], "dotted"))
    if not series:
        return ""
    return figure(
        svg.lines(
            [("probability of the method", svg.GREY, [curve], "dashed"), *series],
            "Kept by length",
            "responses of the stage that are shorter, %",
            "kept, %",
            x_range=(0, 100),
            y_range=(0, 104),
        ),
        "Share kept by length-bias sampling, from the shortest responses to the longest, all iterations together. With"
        " few responses the dots scatter widely around the method's probability.",
    )


def variety(figures):
    stages = figures.responses()
    if not stages:
        return ""
    content = ""
    if any(len(stage.texts) < len(stage.words) for stage in stages):
        content += paragraph(
            "Of long stages not every response is looked at here, but an even choice of them; the table says how many.",
            "quiet",
        )
    colours = {"initial": svg.BLUE, "extended": svg.RED}
    used = {name: colours[name] for name in colours if any(stage.name == name for stage in stages)}

    def rows_of(value):
        return [(row_name(s), {s.name: 100 * value(s)}, f"{100 * value(s):.1f} %") for s in stages]

    content += heading("Distinct 4-grams") + figure(
        svg.bars(
            rows_of(lambda s: s.distinct_four_grams),
            "Distinct 4-grams",
            "distinct runs of four words in a response, %",
            used,
            100,
        ),
        "Mean over the responses of the share of a response's runs of four words that are distinct: less means that it"
        " repeats itself.",
    )
    content += heading("Near-duplicates") + figure(
        svg.bars(
            rows_of(lambda s: s.near_duplicates), "Near-duplicates", "responses that resemble another one, %", used, 100
        ),
        f"Responses that have another in the stage with a Jaccard index of {NEAR_DUPLICATE} or more of their runs of"
        " five words, as MinHash (128 smallest hashes) estimates it: more means that the responses repeat each other.",
    )
    names = {"en": "English", "zh": "Chinese", "other": "other"}
    rows = [(row_name(s), {names[key]: 100 * share for key, share in s.languages.items()}, "") for s in stages]
    content += heading("Languages") + figure(
        svg.bars(
            rows, "Languages", "responses, %", {"English": svg.SKY, "Chinese": svg.ORANGE, "other": svg.GREY}, 100
        ),
        "Chinese: half of the words or more are Chinese characters; English: a tenth or more are among twenty of the"
        " commonest English words. A guess by these two rules, meant to show drift.",
    )
    content += table(
        ["iteration", "stage", "looked at", "distinct 4-grams", "near-duplicates", "English", "Chinese", "other"],
        [
            [
                s.iteration,
                s.name,
                f"{len(s.texts):,}",
                f"{s.distinct_four_grams:.3f}",
                f"{s.near_duplicates:.1%}",
                *(f"{share:.1%}" for share in s.languages.values()),
            ]
            for s in stages
        ],
    )
    return content


def samples(figures):
    """Five responses of the last finished stage, from the shortest to the longest: kept ones, where so many are."""
    stages = figures.responses()
    if not stages:
        return ""
    stage = stages[-1]
    kept = by_length(row for row in stage.texts if row["kept"])
    count = min(SAMPLES, len(kept))
    chosen = [kept[round(i * (len(kept) - 1) / max(1, count - 1))] for i in range(count)]
    others = by_length(row for row in stage.texts if not row["kept"])
    chosen = by_length(chosen + others[len(others) - min(len(others), SAMPLES - count) :])
    content = paragraph(
        f"{stage.name.capitalize()} responses of iteration {stage.iteration}, from the shortest to the longest, as "
        "they were written."
    )
    for place, row in enumerate(chosen):
        brief = " ".join(row["instruction"].split())
        brief = brief if len(brief) <= 110 else brief[:108] + " …"
        fate = "" if row["kept"] else ", not kept"
        content += folded(
            f"Sample {row['sample']}, {row['words']:,} words{fate}", sample_texts(row), brief, is_open=place == 0
        )
    return content


def by_length(rows):
    return sorted(rows, key=lambda row: (row["words"], row["sample"]))


def sample_texts(row):
    def one(kind, title, words):
        return f'<div><h3>{escaped(title)}</h3><div class="text {kind}">{escaped(words)}</div></div>'

    instruction = one("instruction", "Instruction", row["instruction"])
    if "initial" in row:
        pair = one("initial", f"Initial response, {count_words(row['initial']):,} words", row["initial"]) + one(
            "extended", f"Extended response, {row['words']:,} words", row["response"]
        )
        return f'{instruction}<div class="pair">{pair}</div>'
    return instruction + one("initial", f"Initial response, {row['words']:,} words", row["response"])
