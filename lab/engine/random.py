"""Stand-in for the ``random`` provider: RandomPassword, RandomString, RandomId, RandomBytes and RandomInteger.

The values come from the operating system's generator. Every input but the outputs' names replaces, as in the real one.
"""

from __future__ import annotations

import base64
import secrets
from typing import Final

import bcrypt

from lab.engine.provider import Call, InputError, Provider, ProviderError, Resource, Values, contains_unknown, serve

SDK_MODULES: Final = ("pulumi_random",)
"""Where the properties of the types are described."""
LOWER: Final = "abcdefghijklmnopqrstuvwxyz"
UPPER: Final = LOWER.upper()
DIGITS: Final = "0123456789"
SPECIAL: Final = "!@#$%&*()-_=+[]{}<>:?"
BCRYPT_BYTES: Final = 72
"""bcrypt looks at no more of a password."""


def random_text(inputs: Values) -> str:
    """A text of ``length`` characters of the wanted classes, with at least the wanted number of each."""
    special = inputs.get("overrideSpecial") or SPECIAL
    classes = {"lower": LOWER, "upper": UPPER, "numeric": DIGITS, "special": special}
    minimum = {"lower": "minLower", "upper": "minUpper", "numeric": "minNumeric", "special": "minSpecial"}
    drawn = [
        secrets.choice(letters) for name, letters in classes.items() for _ in range(inputs.get(minimum[name]) or 0)
    ]
    pool = "".join(letters for name, letters in classes.items() if inputs.get(name, True))
    if not pool and len(drawn) < inputs["length"]:
        raise ProviderError("the character set is empty; allow lower, upper, numeric or special characters")
    drawn += [secrets.choice(pool) for _ in range(inputs["length"] - len(drawn))]
    secrets.SystemRandom().shuffle(drawn)
    return "".join(drawn)


class _Text(Resource):
    replace_on = (
        "keepers",
        "length",
        "lower",
        "upper",
        "numeric",
        "number",
        "special",
        "minLower",
        "minUpper",
        "minNumeric",
        "minSpecial",
        "overrideSpecial",
    )
    computed_outputs: tuple[str, ...] = ("result",)

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        if contains_unknown(inputs):
            return inputs
        length = inputs.get("length")
        if not isinstance(length, int) or length < 1:
            raise InputError("length", f"expected a whole number of at least 1, got {length!r}")
        least = sum(inputs.get(name) or 0 for name in ("minLower", "minUpper", "minNumeric", "minSpecial"))
        if least > length:
            raise InputError("length", f"{length} characters cannot hold the {least} that the min* inputs ask for")
        return inputs

    def _outputs(self, inputs: Values, result: str) -> Values:
        defaults: Values = dict.fromkeys(("lower", "upper", "numeric", "number", "special"), True)
        defaults |= dict.fromkeys(("minLower", "minUpper", "minNumeric", "minSpecial"), 0)
        return {**defaults, **inputs, "result": result}

    def update(self, call: Call, resource_id: str, old_inputs: Values, old_state: Values, inputs: Values) -> Values:
        return {**old_state, **inputs}


class RandomPassword(_Text):
    """A secret text; its id is ``none``, and ``result`` and ``bcryptHash`` are secret."""

    inputs_class = "pulumi_random:RandomPasswordArgs"
    computed_outputs = ("result", "bcryptHash")
    secret_outputs = ("result", "bcryptHash")

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        result = random_text(inputs)
        hashed = bcrypt.hashpw(result.encode()[:BCRYPT_BYTES], bcrypt.gensalt(10)).decode()
        return "none", {**self._outputs(inputs, result), "bcryptHash": hashed}


class RandomString(_Text):
    """A text that is no secret; its id is the text itself."""

    inputs_class = "pulumi_random:RandomStringArgs"

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        result = random_text(inputs)
        return result, self._outputs(inputs, result)


class RandomId(Resource):
    """Random bytes, written in base64, hex and decimal, each after ``prefix``."""

    inputs_class = "pulumi_random:RandomIdArgs"
    replace_on = ("byteLength", "keepers", "prefix")
    computed_outputs = ("b64Std", "b64Url", "dec", "hex")

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        data = secrets.token_bytes(inputs["byteLength"])
        prefix = inputs.get("prefix") or ""
        plain = base64.urlsafe_b64encode(data).decode().rstrip("=")
        written = {
            "b64Std": prefix + base64.b64encode(data).decode(),
            "b64Url": prefix + plain,
            "dec": prefix + str(int.from_bytes(data, "big")),
            "hex": prefix + data.hex(),
        }
        return plain, {**inputs, **written}


class RandomBytes(Resource):
    """Secret random bytes in base64 and hex."""

    inputs_class = "pulumi_random:RandomBytesArgs"
    replace_on = ("keepers", "length")
    computed_outputs = ("base64", "hex")
    secret_outputs = ("base64", "hex")

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        data = secrets.token_bytes(inputs["length"])
        return "none", {**inputs, "base64": base64.b64encode(data).decode(), "hex": data.hex()}


class RandomInteger(Resource):
    """A whole number between ``min`` and ``max``, both included. ``seed`` is not offered."""

    inputs_class = "pulumi_random:RandomIntegerArgs"
    replace_on = ("keepers", "max", "min", "seed")
    computed_outputs = ("result",)

    def check(self, call: Call, inputs: Values, old_inputs: Values | None) -> Values:
        if inputs.get("seed") is not None:
            raise InputError("seed", "the lab's random provider draws without a seed; leave it out")
        if not contains_unknown(inputs) and inputs["min"] > inputs["max"]:
            raise InputError("min", f"{inputs['min']} is greater than max, {inputs['max']}")
        return inputs

    def create(self, call: Call, inputs: Values) -> tuple[str, Values]:
        result = inputs["min"] + secrets.randbelow(inputs["max"] - inputs["min"] + 1)
        return str(result), {**inputs, "result": result}


def provider() -> Provider:
    """The provider with all its types."""
    return Provider(
        "random",
        {
            "random:index/randomBytes:RandomBytes": RandomBytes(),
            "random:index/randomId:RandomId": RandomId(),
            "random:index/randomInteger:RandomInteger": RandomInteger(),
            "random:index/randomPassword:RandomPassword": RandomPassword(),
            "random:index/randomString:RandomString": RandomString(),
        },
        package="pulumi_random",
    )


def main() -> None:
    """Serve the provider until the engine ends it."""
    serve(provider())


if __name__ == "__main__":
    main()
