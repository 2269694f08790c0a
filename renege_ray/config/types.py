"""What the sections of the configuration are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
# YAML has lists only; what is in them stays strictly typed.
AsTuple = Field(strict=False)


class Section(BaseModel):
    """Immutable and strict: no unknown fields, no texts or booleans in place of numbers, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
