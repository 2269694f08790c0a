"""What the Hub, a library or a damaged file has to say, in one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from renege_ray.errors import UserError, causes, first_line

# The base of all errors of the HTTP client, whichever one the Hub's library uses: it has changed before.
HTTPError: type[BaseException] = HfHubHTTPError.__bases__[0]


@contextmanager
def user_errors(subject: str, remedy: str, *, hub: bool = False, revision: str | None = None) -> Iterator[None]:
    """Whatever is raised in reading files becomes a UserError: the libraries raise dozens of kinds.

    Args:
        subject: the field and its value, or the file.
        remedy: what to do.
        hub: whether the files may come from the Hub, so that there may be more to do than the remedy.
        revision: of the Hub's files, where one was asked for.

    Raises:
        UserError: "SUBJECT cannot be read (WHY): REMEDY"; of the Hub, as in "SUBJECT is gated: log in, or REMEDY".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        trouble = _trouble_with_the_hub(error, revision) if hub else ""
        what = f"{trouble}, or {remedy}" if trouble else f"cannot be read ({_reason(error)}): {remedy}"
        raise UserError(f"{subject} {what}") from error


def _trouble_with_the_hub(error: BaseException, revision: str | None) -> str:
    """What went wrong, from the chain of causes: diffusers hides the Hub's own error behind an OSError."""
    chain = list(causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if is_any(OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return "is not all on this machine, and HF_HUB_OFFLINE is set: unset it"
    if is_any(GatedRepoError):
        return "is gated: accept its conditions on the Hub and log in with `hf auth login`"
    if is_any(RevisionNotFoundError):
        return f"has no revision {revision!r} on the Hub: check model.revision"
    if is_any(RepositoryNotFoundError, HFValidationError):
        return "is neither on this machine nor on the Hub (or it is private): check the spelling, log in"
    if is_any(EntryNotFoundError) and not is_any(LocalEntryNotFoundError):
        return ""  # its own first line names the file
    if is_any(ConnectionError, LocalEntryNotFoundError, HTTPError) or "cached locally" in str(error):
        return "is not all on this machine, and the Hub cannot be reached: connect"
    return ""


def _reason(error: Exception) -> str:
    """The first layer that does not fit, if that is it: torch's own first line names none."""
    lines = str(error).splitlines()
    return next((line.strip() for line in lines if "size mismatch" in line), first_line(error))
