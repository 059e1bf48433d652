"""Runs the programs of doc/python.md on a run, as a reader would.

Usage: .venv/bin/python tools/oracle/check_python_page.py RUN MODEL_DIR
RUN is a run folder with a collection, made with MODEL_DIR, a Hugging Face folder. Prints what they print; exit code 1 when one fails.
"""

import pathlib
import re
import subprocess
import sys

page = pathlib.Path(__file__).resolve().parents[2] / "doc" / "python.md"


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    run, model = sys.argv[1:]
    programs = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    arguments = [[f"{run}/iter_01/extended.h5"], [f"{run}/collected/final.h5", "0"], [model, f"{run}/iter_01/generator"]]
    if len(programs) != len(arguments):
        print(f"{page} has {len(programs)} programs; this script knows the arguments of {len(arguments)}", file=sys.stderr)
        return 1
    for program, words in zip(programs, arguments):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
        print(done.stdout)
        if done.returncode != 0 or not done.stdout.strip():
            print(f"{page} with {' '.join(words)}: exit code {done.returncode}\n{done.stderr}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
