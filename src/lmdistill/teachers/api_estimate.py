"""What asking would cost, before anything is asked. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmdistill.teachers.api_read import Reader
from lmdistill.teachers.api_types import Request, Usage
from lmdistill.teachers.api_wire import Identity, body_of, call_text, check_request, path_of, request_key
from lmdistill.teachers.ledger import Ledger
from lmdistill.teachers.limits import Budget
from lmdistill.teachers.prices import dollars

BYTES_OF_A_TOKEN = 4.0
"""Of English text, where no earlier answer says better."""
ENOUGH_ANSWERS = 20
"""Earlier answers of a model from which on expectations come from them."""


@dataclass(frozen=True)
class Estimate:
    """What a run would take. Expected figures count one call for each missing answer, limits the longest answers."""

    requests: int
    stored: int
    """Answers that are in the ledger, or are asked for twice here."""
    calls: int
    """Calls if none fails."""
    prompt_tokens: int
    """Expected."""
    output_tokens: int
    """Expected; the limit of each answer where there are too few earlier ones to learn from."""
    tokens_at_most: int
    money: float | None
    """Expected US dollars; None where the model has no price."""
    money_at_most: float | None
    learned_from: int
    """Earlier answers of this model that the expectations come from; 0 where there are too few."""

    def sentence(self) -> str:
        """All of it in words, for a dry run."""
        if not self.calls:
            return f"all {self.requests:,} answers are in the ledger: nothing is asked"
        money = ", the model has no price"
        if self.money is not None and self.money_at_most is not None:
            money = f", about US $ {self.money:.4g} and at most {self.money_at_most:.4g}"
        whence = f"like {self.learned_from:,} earlier ones" if self.learned_from else "if each is as long as it may be"
        return (
            f"{self.requests:,} requests, {self.stored:,} of them in the ledger or asked twice: {self.calls:,} calls, "
            f"{self.prompt_tokens:,} tokens of prompts and {self.output_tokens:,} of answers ({whence}), at most "
            f"{self.tokens_at_most:,} together{money}"
        )


def estimate(
    ledger: Ledger,
    reader: Reader,
    budget: Budget,
    identity: Identity,
    requests: Iterable[Request],
    enough: int = ENOUGH_ANSWERS,
) -> Estimate:
    """What answering these would take; `enough` earlier answers are learnt from.

    Raises DataError for a request that cannot be asked.
    """
    ledger.flush()
    sample = ledger.sample_usage(identity.model)
    learned = len(sample) if len(sample) >= enough else 0
    per_byte = sum(usage.prompt for _, usage in sample) / sum(size for size, _ in sample) if learned else None
    written = sum(usage.output for _, usage in sample) / learned if learned else None
    asked: set[str] = set()
    count = calls = at_most = money_at_most = 0
    prompt_tokens = output_tokens = 0.0
    for request in requests:
        check_request(request)
        count += 1
        key = request_key(identity, request)
        found = reader.find(key, request) if key not in asked else None
        if key in asked or (found is not None and reader.is_final(found)):
            continue
        asked.add(key)
        calls += 1
        call = call_text(path_of(request), body_of(request, identity.model))
        size, limit = len(call.encode("utf-8", "surrogatepass")), request.sampling.max_tokens
        most = budget.most(size, len(request.messages), limit)
        at_most += most.tokens
        money_at_most += most.money
        text = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
        prompt_tokens += size * per_byte if per_byte is not None else text / BYTES_OF_A_TOKEN
        output_tokens += min(written, limit) if written is not None else limit
    expected = Usage(prompt=round(prompt_tokens), output=round(output_tokens))
    price = reader.price
    return Estimate(
        requests=count,
        stored=count - calls,
        calls=calls,
        prompt_tokens=expected.prompt,
        output_tokens=expected.output,
        tokens_at_most=at_most,
        money=None if price is None else dollars(price.of(expected)),
        money_at_most=None if price is None else dollars(money_at_most),
        learned_from=learned,
    )
