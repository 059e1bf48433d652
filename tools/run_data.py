"""Reading a run folder (doc/files.md) from Python, with the program's help and nothing but the standard library.

Datasets come through `selflengthen export`, row by row: a published run holds gigabytes of text.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

SAMPLED_STAGES = ("instructions", "initial", "extended")
ROLES = ("generator", "extender")


def refuse(message):
    """Ends the tool as the program ends on bad input: one line that says what, where, and what to do; code 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def number(row, key):
    """A number of a row of metrics.jsonl; 0 where it is missing or null (a loss that was not finite)."""
    value = row.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


class DatasetError(Exception):
    """A dataset cannot be read; the text is the program's own line."""


def find_program(given):
    """The program to ask: the one given, or one that was built in this tree, or the one that is installed."""
    if given:
        found = shutil.which(given)
        if not found:
            refuse(f"{given}: is no program; give the selflengthen that was built with --program")
        return found
    tree = pathlib.Path(__file__).resolve().parent.parent
    places = [tree / "build" / preset / "bin/selflengthen" for preset in ("release", "cuda", "serial-hdf5", "debug")]
    for place in [*map(str, places), "selflengthen"]:
        if found := shutil.which(place):
            return found
    refuse(f"{places[0]}: does not exist; build it (cmake --build --preset release), or give another with --program")


def ask(program, arguments):
    """What the program prints; refuses when it cannot be started at all."""
    try:
        return subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace")
    except OSError as error:
        refuse(f"{program}: cannot be started ({error.strerror}); give the selflengthen that was built with --program")


def default_options(program):
    """{option of `run`: its default as the help prints it}; empty where the help reads otherwise."""
    # Descriptions are wrapped: joined again, they end with "(default: ...)".
    text = re.sub(r"\n {34}(?=\S)", " ", ask(program, ["run", "--help"]).stdout)
    rows = re.findall(r"^ {2}--([a-z-]+)(?: [A-Z]\S*| \S+)? .*\(default: (.*?)\)(?: \(may be repeated\))?$", text, re.M)
    return dict(rows)


class Run:
    """A run folder as far as it is there. Constructing it refuses what is no run folder."""

    def __init__(self, folder, program):
        self.folder = pathlib.Path(folder)
        self.program = find_program(program)
        self.warnings = []  # what could not be read, one line each
        path = self.folder / "run.json"
        advice = "give the folder that `run` was told with --out"
        if not self.folder.is_dir():
            refuse(f"{folder}: {'is not a folder' if self.folder.exists() else 'does not exist'}; {advice}")
        try:
            self.facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            refuse(f"{folder}: is not the folder of a run (it has no run.json); {advice}")
        except OSError as error:
            refuse(f"{path}: cannot be read ({error.strerror}); {advice}")
        except ValueError:
            refuse(f"{path}: is not JSON; see what else is damaged with selflengthen inspect --verify {folder}")
        if not isinstance(self.facts, dict) or not isinstance(self.facts.get("options"), dict):
            refuse(f"{path}: has no options of a run; {advice}")
        self.metrics = self._read_metrics()

    def _read_metrics(self):
        path, rows = self.folder / "metrics.jsonl", []
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return rows
        except OSError as error:
            self.warnings.append(f"{path}: cannot be read ({error.strerror})")
            return rows
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line else None
            except ValueError:
                row = None
                if number < len(lines):  # a torn last line is a run that works, or was killed
                    self.warnings.append(f"{path}:{number}: is not JSON and is left out")
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                rows.append(row)
        return rows

    def iterations(self):
        """Numbers of the macro-iterations that have a folder."""
        try:
            names = [re.fullmatch(r"iter_(\d+)", path.name) for path in self.folder.iterdir() if path.is_dir()]
        except OSError as error:
            refuse(f"{self.folder}: cannot be listed ({error.strerror}); check its permissions")
        return sorted(int(name[1]) for name in names if name)

    def iteration_folder(self, iteration):
        return self.folder / f"iter_{iteration:02}"

    def has(self, iteration, dataset):
        return (self.iteration_folder(iteration) / f"{dataset}.h5").is_file()

    def rows(self, iteration, dataset):
        """The rows of a finished stage, one at a time. DatasetError when the program cannot read it."""
        command = [
            self.program,
            "export",
            "--run",
            str(self.folder),
            "--dataset",
            dataset,
            "--iteration",
            str(iteration),
            "--output",
            "-",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                for line in process.stdout:
                    yield json.loads(line)
            except ValueError:
                raise DatasetError(f"{dataset} of iteration {iteration}: the export is not JSON lines") from None
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
        if process.returncode != 0:
            raise DatasetError(said[-1] if said else f"{self.program} ended with code {process.returncode}")

    def stage_report(self, iteration, stage):
        """The last report of a stage: a run that was continued may have several. Empty where there is none."""
        found = [row for row in self.metrics if row["iteration"] == iteration and row.get("stage") == stage]
        return found[-1] if found else {}

    def training_steps(self, iteration, role):
        """Rows of the training steps in order. After a kill a step may stand twice: the later one counts."""
        steps = {
            row["step"]: row
            for row in self.metrics
            if row["iteration"] == iteration
            and row.get("stage") == "training"
            and row.get("role") == role
            and isinstance(row.get("step"), int)
        }
        return [steps[number] for number in sorted(steps)]

    def seconds_of(self, iteration, stage, role=None):
        """Sum of the seconds of all rows of a kind: each start of a run that was continued wrote its own."""
        return sum(
            number(row, "seconds")
            for row in self.metrics
            if row["iteration"] == iteration and row.get("stage") == stage and (role is None or row.get("role") == role)
        )

    def journalled(self, iteration, stage):
        """Samples that an unfinished stage has finished so far."""
        count = 0
        for path in sorted((self.iteration_folder(iteration) / "journal").glob(f"{stage}.*.log")):
            try:
                count += path.read_bytes().count(b"\n")
            except OSError:
                pass  # removed in this moment: the stage has just been finished
        return count
