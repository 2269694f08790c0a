"""Why something cannot be had from the Hugging Face Hub, in words that say what to do."""

from collections.abc import Iterator

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

from renege_ray.errors import first_line
from renege_ray.models.folder import INDEX

# The base of all errors of the HTTP client, whichever one the Hub's library uses: it has changed before.
HTTPError: type[BaseException] = HfHubHTTPError.__bases__[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def why_not(error: BaseException, revision: str | None) -> str:
    """What went wrong, from the chain of causes: diffusers hides the Hub's own error behind an OSError."""
    causes = list(_causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    absent = f"is neither a folder nor whole in the Hub's cache ({INDEX} and what it names)"
    if is_any(OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{absent}, and HF_HUB_OFFLINE is set: unset it"
    if is_any(GatedRepoError):
        return "is gated: accept its conditions on the Hub and log in with `hf auth login`"
    if is_any(RevisionNotFoundError):
        return f"has no revision {revision!r} on the Hub: check model.revision"
    if is_any(RepositoryNotFoundError, HFValidationError):
        return "is neither a folder nor a model of the Hub (or it is private): check the spelling"
    if is_any(EntryNotFoundError) and not is_any(LocalEntryNotFoundError):
        return f"has no {INDEX} on the Hub: give a model in diffusers' format"
    if is_any(ConnectionError, LocalEntryNotFoundError, HTTPError) or "cached locally" in str(error):
        return f"{absent}, and the Hub cannot be reached: connect"
    return f"cannot be downloaded ({first_line(error)}): check model.id, model.variant"
