"""Conditional requests: a status that has not changed since the caller saw it costs a 304."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Response

# For the OpenAPI document of a route that uses `IfChanged`.
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "Nothing has changed since the answer that `If-None-Match` names."}
}


@dataclass(frozen=True)
class Condition:
    """What the caller has seen, and the answer that it will get otherwise."""

    seen: frozenset[str]
    response: Response

    def check(self, version: str) -> None:
        """Tag the answer with the `version` of what it tells; end it here if that was seen.

        Take the version before reading what it tells: should that change in between, the tag is
        the older one, and the caller asks again.

        Args:
            version: Differs whenever the answer would.
        """
        tag = f'"{version}"'
        headers = {"ETag": f"W/{tag}"}
        if tag in self.seen:
            raise HTTPException(304, headers=headers)
        self.response.headers.update(headers)


async def _condition(
    response: Response, if_none_match: Annotated[str | None, Header()] = None
) -> Condition:
    # The comparison is the weak one: a `W/` does not count.
    tags = (tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(","))
    return Condition(frozenset(tags), response)


IfChanged = Annotated[Condition, Depends(_condition)]
