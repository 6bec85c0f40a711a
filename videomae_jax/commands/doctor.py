"""Check this machine and the health of a run; list failed checks.

Checks the versions, the devices, the decoder, the disk and, as a self-test, that training overfits
eight clips. With DIR, also checks that run. Exits with code 1 if a check fails.

examples:
  videomae doctor
  videomae doctor runs/demo --json doctor.json
"""

import argparse

from videomae_jax.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "workdir",
        metavar="DIR",
        nargs="?",
        help="work directory of a run to check (default: check only this machine)",
    )
    options.add_json(parser, of="the findings")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.diagnostics import doctor
    from videomae_jax.errors import UserError

    # The run first, to report a wrong path at once.
    run = doctor.examine_run(args.workdir) if args.workdir else []
    findings = [*doctor.examine_machine(args.workdir or "."), *run]
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'LOOK'}  {finding.name:<{width}}{finding.text}")
        if finding.advice:
            print(f"      {'':<{width}}-> {finding.advice}")
    options.write_json(args.json, [finding._asdict() for finding in findings])
    failed = [finding.name for finding in findings if not finding.fine]
    if failed:
        raise UserError(f"failed checks: {', '.join(failed)}")
