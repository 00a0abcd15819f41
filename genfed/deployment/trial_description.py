"""What a server says to a site about a trial, and the bounds within which a site acts on it. docs/deployment.md has the
table of all that a server says.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from genfed.core.errors import GenfedError, RecordError
from genfed.core.json_text import read_json
from genfed.core.phase import Phase, Repeat
from genfed.core.settings import settings

LONGEST_TRIAL = 2**20
"""Maximum length of the description of a trial, in characters."""
MOST_TRIALS = 1000
"""Maximum number of trials of a run."""
MOST_CLIENTS = 10_000
"""Maximum number of clients."""
MOST_CLASSES = 100_000
"""Maximum number of classes."""
MOST_ROUNDS = 100_000
"""Maximum number of rounds of a trial, over all phases."""
MOST_SELECTIONS = 1_000_000
"""Maximum number of rounds times clients, each of which a site looks at once to plan its noise (1 s)."""
LARGEST_WHOLE = 10**7
"""Maximum absolute value of a whole number in the settings of a method or mechanism."""
LARGEST_NUMBER = 1e9
"""Maximum absolute value of any other number there."""
LONGEST_TEXT = 10_000
"""Maximum length of a text there, in characters."""
DEEPEST = 8
"""Maximum number of lists and tables inside one another there."""
MOST_VALUES = 10_000
"""Maximum number of values there."""

_FolderName = Annotated[str, Field(pattern=r"^\w[\w+-]{0,63}$")]
_Table = dict[str, Any]


@settings
class FederationSize:
    """The clients of a trial."""

    clients: Annotated[int, Field(ge=1, le=MOST_CLIENTS)]
    """Number of clients."""
    client_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the clients that is selected for each round."""


@settings
class TrialDescription:
    """What a server says to a site about a trial. Numbers and texts in its tables are bounded by `check_values`, and by
    the settings that are built of them.
    """

    run: _FolderName
    """Name of the run."""
    label: _FolderName
    """Label of the method."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    """Seed of the trial."""
    method: _Table
    """Settings of the method, with its `kind`."""
    classes: Annotated[tuple[str, ...], Field(max_length=MOST_CLASSES)]
    """Names of the classes, in order; they must be the site's."""
    federation: FederationSize
    """The clients."""
    precision: Literal["float32", "bfloat16"]
    """Precision of the arithmetic in training."""
    flops: bool
    """Whether floating-point operations are counted."""
    secure_aggregation: _Table | None
    """Settings of secure aggregation. None: the server sees every upload."""
    privacy: _Table | None
    """Settings of DP-SGD. None: no differential privacy of examples."""
    client_privacy: _Table | None
    """Settings of DP-FedAvg whose noise clients add. None: they add none."""
    sum_privacy: _Table | None = None
    """Settings of privacy of sums, whose bounds clients keep to. None: there are no bounds."""


def read_description(text: object) -> TrialDescription:
    """Reads the JSON that describes a trial.

    Raises:
        GenfedError: it is something else, or exceeds a bound; the message names the part.
    """
    if not isinstance(text, str):
        raise GenfedError("a trial is described by a text in JSON")
    try:
        read_json(text, longest=LONGEST_TRIAL, most=MOST_VALUES + MOST_CLASSES)
    except RecordError as error:
        raise GenfedError(f"the description of a trial is {error}") from None
    found = _validate(text)
    if isinstance(found, str):
        raise GenfedError(f"the description of a trial is wrong: {found}")
    for name in ("method", "secure_aggregation", "privacy", "client_privacy", "sum_privacy"):
        check_values(getattr(found, name), name)
    return found


def fingerprint_description(about: TrialDescription) -> str:
    """Returns a fingerprint of all that a server says about a trial: equal descriptions have equal ones."""
    text = TypeAdapter(TrialDescription).dump_json(about).decode()
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()


def _validate(text: str) -> TrialDescription | str:
    """Returns the description, or what is wrong with it: genfed's and pydantic's words alone, not the server's."""
    try:
        return TypeAdapter(TrialDescription).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        known = [str(part) for part in first["loc"] if part in TrialDescription.__annotations__]
        return f"{known[0] if known else 'a name'}: {first['msg']}"


def check_values(table: _Table | None, name: str) -> None:
    """Refuses settings with numbers, texts or a structure that no run needs, before anything is built of them.

    Raises:
        GenfedError: a value exceeds a bound.
    """
    left: list[tuple[Any, int]] = [(table, 0)]
    for _ in range(MOST_VALUES + 1):
        if not left:
            return
        value, depth = left.pop()
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise GenfedError(f"{name} has a text of {len(value)} characters; at most {LONGEST_TEXT} are allowed")
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
            raise GenfedError(f"{name} has a whole number above {LARGEST_WHOLE:g}")
        if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
            raise GenfedError(f"{name} has a number that is not finite, or above {LARGEST_NUMBER:g}")
        if isinstance(value, dict | list):
            if depth == DEEPEST:
                raise GenfedError(f"{name} has more than {DEEPEST} lists or tables inside one another")
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            left += [(part, depth + 1) for part in parts]
    raise GenfedError(f"{name} has more than {MOST_VALUES} values")


def check_rounds(plan: Sequence[Phase[Any] | Repeat[Any]], clients: int) -> None:
    """Refuses a method with more rounds than a run can have, before they are listed.

    Raises:
        GenfedError: it has.
    """
    rounds = _count_rounds(plan)
    most = min(MOST_ROUNDS, MOST_SELECTIONS // clients)
    if rounds > most:
        raise GenfedError(f"the method has {rounds} rounds; with {clients} clients at most {most} are allowed")


def _count_rounds(plan: Sequence[Phase[Any] | Repeat[Any]]) -> int:
    """Returns the number of rounds; a phase without rounds, or of which it is not known, counts as one."""
    total = 0
    for item in plan:
        if isinstance(item, Repeat):
            total += item.times * _count_rounds(item.phases)
        else:
            total += 1 if callable(item.rounds) else max(1, item.rounds)
    return total


def read_whole(head: Mapping[str, Any], name: str, least: int, below: int) -> int:
    """Returns a whole number of a request's header.

    Raises:
        GenfedError: it is missing, something else, or out of bounds.
    """
    value = head.get(name)
    if type(value) is not int or not least <= value < below:
        raise GenfedError(f"{name} is no whole number from {least} to below {below}")
    return value


def read_descriptions(head: Mapping[str, Any]) -> list[TrialDescription]:
    """Returns the trials of a run that a request describes.

    Raises:
        GenfedError: there are none, too many, or one is wrong.
    """
    texts = head.get("open")
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_TRIALS:
        raise GenfedError(f"open is no list of 1 to {MOST_TRIALS} trials")
    return [read_description(text) for text in texts]
