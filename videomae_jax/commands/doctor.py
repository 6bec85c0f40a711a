"""Check this machine, and tell how a run fares: versions, devices, decoder, disk, a self-test.

videomae doctor [WORKDIR] [--json FILE]

Exits with 1 and the list of what is not fine.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdir", nargs="?", help="of a run: tell what happened there (else only this machine)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the findings here")


def main(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from videomae_jax.diagnostics import doctor
    from videomae_jax.errors import UserError

    # The run first: a wrong path is told at once.
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
        raise UserError(f"not fine: {', '.join(failed)}")
