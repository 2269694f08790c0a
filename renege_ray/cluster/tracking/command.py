"""`renege-ray tracking send`: what a tracking server has missed of a run."""

from collections.abc import Sequence

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.refusals import says
from renege_ray.cluster.tracking.runs import send
from renege_ray.cluster.tracking.texts import one_line
from renege_ray.cluster.tracking.uris import ui_command
from renege_ray.config.argument_parser import ArgumentParser
from renege_ray.config.paths import tracking_uri
from renege_ray.errors import UserError
from renege_ray.output.console import say
from renege_ray.output.paths import absolute_path


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit code: 0 everything is sent, 1 the store did not take it.

    Raises:
        UserError: bad input.
    """
    parser = ArgumentParser(prog="renege-ray tracking", description="Send results to MLflow after a run.")
    commands = parser.add_subparsers(metavar="send")
    sending = commands.add_parser("send", help="send to MLflow what it has not got of a run, or all to another store")
    sending.add_argument("output_dir", type=absolute_path, metavar="OUTPUT_DIR", help="the output folder of a job")
    sending.add_argument("--tracking-uri", type=tracking_uri, metavar="URI", help="default: the run's own")
    given = parser.parse_args(list(argv))
    try:
        run_id, uri = send(given.output_dir, given.tracking_uri)
    except UserError:
        raise
    except Exception as error:  # servers and databases fail in many ways
        say(f"not everything was sent: MLflow {says(error)} ({one_line(error)}); the same command goes on", error=True)
        return 1
    if not (given.output_dir / journal.SUMMARY).exists():
        say(f"there is no {journal.SUMMARY}: the run still goes on or was killed, MLflow shows it as running")
    for folder in journal.family(given.output_dir.absolute()):
        for what, why in journal.refused(folder).items():
            say(f"not sent, since MLflow refuses it: {what} ({why})", error=True)
    say(f"sent as run {run_id}; {ui_command(uri)}")
    return 0
