"""Check this machine and report the health of a run; list failed checks.

videomae doctor [WORKDIR] [--json FILE]

Checks the versions, the devices, the decoder, the disk and, as a self-test, that a step overfits
eight clips. With WORKDIR also checks that run. Exits with 1 if a check fails.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdir", nargs="?", help="of a run to check as well; without it, check only this machine"
    )
    parser.add_argument("--json", metavar="FILE", help="write the findings here")


def main(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from videomae_jax.diagnostics import doctor
    from videomae_jax.errors import UserError

    # The run first: report a wrong path at once.
    run = doctor.examine_run(args.workdir) if args.workdir else []
    findings = [*doctor.examine_machine(args.workdir or "."), *run]
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'LOOK'}  {finding.name:<{width}}{finding.text}")
        if finding.advice:
            print(f"      {'':<{width}}-> {finding.advice}")
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        rows = [finding._asdict() for finding in findings]
        Path(args.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    failed = [finding.name for finding in findings if not finding.fine]
    if failed:
        raise UserError(f"failed checks: {', '.join(failed)}")
