"""Processes that compute one step per request, so that two programs can be timed in turns.

The parent writes a line and the child answers with one JSON object. In a single process the thread
pools of the two libraries would disturb each other, and their memory could not be told apart.
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
    """A process that answers "start", then "step" any number of times, then "end".

    Use it in a `with` block, which ends the process.
    """

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
        """Return the answer to a line. Raises UserError with its last error if it ended."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests and answers  # both are pipes
        try:
            requests.write(line + "\n")
            requests.flush()
        except BrokenPipeError:
            pass  # it has ended: the empty answer below is handled with its reason
        reply = answers.readline()
        if not reply:
            self._process.wait()
            self._errors.seek(0)
            lines = [text for text in self._errors.read().splitlines() if text.strip()]
            raise UserError(f"{self.name} ended: {lines[-1] if lines else 'without a word'}")
        answer = json.loads(reply)
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
    """Run our side of a comparison: time the job of a folder, one step per line of stdin."""
    replies, sys.stdout = sys.stdout, sys.stderr  # keep prints of libraries out of the answers

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
    """Write a job for `read_job`."""
    (folder / "job.json").write_text(json.dumps(job._asdict()))


def read_job(folder: Path) -> step_time.Job:
    """Read the job that `write_job` wrote."""
    return step_time.Job(**json.loads((folder / "job.json").read_text()))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
