"""What a report says of a run, as numbers: read once, in one pass over every dataset."""

import dataclasses
import functools
import statistics

import text_measures
from run_data import ROLES, SAMPLED_STAGES, DatasetError, number


@dataclasses.dataclass
class Stage:
    """A sampled stage of a macro-iteration. `report` is empty where metrics.jsonl lacks it; the lists are empty where
    the dataset is not there, cannot be read, or is that of the instructions (which have no words and are all kept)."""

    iteration: int
    name: str
    report: dict
    finished: bool
    journalled: int = 0
    rows: int = 0
    words: list = dataclasses.field(default_factory=list)
    characters: list = dataclasses.field(default_factory=list)
    kept: list = dataclasses.field(default_factory=list)
    texts: list = dataclasses.field(default_factory=list)  # rows whose text is looked at: all, or evenly spaced

    @property
    def label(self):
        return f"{self.iteration} {self.name}"

    @functools.cached_property
    def ordered(self):
        return sorted(self.words)

    @functools.cached_property
    def mean_words(self):
        return statistics.fmean(self.words)

    @functools.cached_property
    def distinct_four_grams(self):
        return statistics.fmean(text_measures.distinct_four_grams(row["response"]) for row in self.texts)

    @functools.cached_property
    def near_duplicates(self):
        return text_measures.near_duplicates([row["response"] for row in self.texts]) / len(self.texts)

    @functools.cached_property
    def languages(self):
        """{language: share of the responses}."""
        found = [text_measures.language(row["response"]) for row in self.texts]
        return {name: found.count(name) / len(found) for name in ("en", "zh", "other")}

    @property
    def acceptance(self):
        """Accepted attempts of all attempts, or nothing where no report says."""
        attempts = number(self.report, "attempts")
        return number(self.report, "accepted") / attempts if attempts else None

    @property
    def tokens_per_second(self):
        """Of the start that finished the stage: what was in its journals before is not its work."""
        seconds = number(self.report, "seconds")
        return (number(self.report, "tokens") - number(self.report, "tokens_before")) / seconds if seconds else None

    @property
    def replicas(self):
        """(seconds it was busy, tokens, steps) of each replica of the start that finished the stage, and the seconds
        until the last of them was done; or nothing where no report says."""
        said = self.report.get("replicas")
        if not isinstance(said, dict) or not number(said, "seconds"):
            return None
        lists = [said.get(key) for key in ("busy_seconds", "tokens", "steps")]
        if not all(isinstance(one, list) and one and len(one) == len(lists[0]) for one in lists):
            return None
        if not all(isinstance(value, (int, float)) for one in lists for value in one):
            return None
        return list(zip(*lists)), number(said, "seconds")

    @property
    def rejected(self):
        rules = self.report.get("rejected")
        return (
            {rule: count for rule, count in sorted(rules.items()) if isinstance(count, (int, float))}
            if isinstance(rules, dict)
            else {}
        )


@dataclasses.dataclass
class Training:
    """Steps of a role in a macro-iteration, as rows of metrics.jsonl."""

    iteration: int
    role: str
    steps: list

    @functools.cached_property
    def seconds(self):
        """Of the steps, or nothing where their tokens are not recorded."""
        times = [
            number(step, "tokens") / number(step, "tokens_per_second")
            for step in self.steps
            if number(step, "tokens") and number(step, "tokens_per_second")
        ]
        return sum(times) if times else None

    @property
    def tokens_per_second(self):
        return sum(number(step, "tokens") for step in self.steps) / self.seconds if self.seconds else None


@dataclasses.dataclass
class Figures:
    run: object
    stages: list
    trainings: list

    def responses(self):
        """The stages whose responses could be read."""
        return [stage for stage in self.stages if stage.words]

    def of(self, iteration):
        return [stage for stage in self.stages if stage.iteration == iteration]


def read_stage(run, iteration, name, most_texts):
    stage = Stage(iteration, name, run.stage_report(iteration, name), run.has(iteration, name))
    if not stage.finished:
        stage.journalled = run.journalled(iteration, name)
        return stage
    stride = 1
    try:
        for row in run.rows(iteration, name):
            if name != "instructions":
                for values, key in ((stage.words, "words"), (stage.characters, "characters"), (stage.kept, "kept")):
                    values.append(int(row[key]))
                if stage.rows % stride == 0:
                    stage.texts.append(
                        {
                            key: row[key]
                            for key in ("sample", "instruction", "initial", "response", "words", "kept")
                            if key in row
                        }
                    )
                if len(stage.texts) > most_texts:  # every second one of those so far, and of those to come
                    del stage.texts[1::2]
                    stride *= 2
            stage.rows += 1
    except (DatasetError, KeyError, TypeError, ValueError) as error:
        line = (
            str(error) if isinstance(error, DatasetError) else f"row {stage.rows} lacks a column of this stage: {error}"
        )
        run.warnings.append(f"iteration {iteration}, {name}: left out: {line}")
        return Stage(iteration, name, stage.report, finished=True)
    return stage


def read(run, most_texts):
    stages, trainings = [], []
    for iteration in run.iterations():
        stages += [read_stage(run, iteration, name, most_texts) for name in SAMPLED_STAGES]
        for role in ROLES:
            if steps := run.training_steps(iteration, role):
                trainings.append(Training(iteration, role, steps))
    return Figures(run, stages, trainings)
