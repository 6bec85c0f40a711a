"""Two programs timed in turns: each a process that computes only when it is told to.

The parent writes a line, the child answers with one JSON object. In one process the two
libraries' thread pools would disturb each other, and their memory could not be told apart.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from videomae_jax.devices.host_memory import disable_async_dispatch
from videomae_jax.diagnostics import step_time
from videomae_jax.errors import UserError


class Child:
    """A process that answers "start", then any number of "step", then "end"; use it in a `with`."""

    def __init__(self, name: str, command: list[str], *, env: dict[str, str]):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as problem:
            raise UserError(f"{name} does not start: {command[0]}: {problem.strerror}") from None

    def ask(self, line: str) -> dict:
        """Return the answer to a line; UserError with the child's own reason where it has none."""
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the empty answer below says so, with its reason
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            lines = [text for text in self._errors.read().splitlines() if text.strip()]
            raise UserError(f"{self.name} ended: {lines[-1] if lines else 'without a word'}")
        answer = json.loads(answer)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def serve(folder: Path) -> None:
    """Be our side of a comparison: time the job of a folder, one step a line."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever prints must not look like an answer

    def answer(**values):
        print(json.dumps(values), file=replies, flush=True)

    disable_async_dispatch()
    job = read_job(folder)
    try:
        for line in map(str.strip, sys.stdin):
            if line == "write":
                step_time.write_inputs(job, folder)
                answer()
            elif line == "start":
                bench = step_time.build_bench(job)
                if bench.facts["devices"] > 1:
                    devices = bench.facts["devices"]
                    raise UserError(f"a peer runs on one device, this on {devices}: hide the rest")
                answer(**bench.facts)
            elif line == "step":
                seconds, loss = bench.step(None)
                answer(seconds=seconds, loss=loss)
            else:
                answer(**bench.after())
    except UserError as error:
        answer(error=str(error))


def write_job(folder: Path, job: step_time.Job) -> None:
    (folder / "job.json").write_text(json.dumps(job._asdict()))


def read_job(folder: Path) -> step_time.Job:
    return step_time.Job(**json.loads((folder / "job.json").read_text()))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
