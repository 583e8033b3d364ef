"""docs/policies.md, made from the policies themselves: ``python -m policy.reference > docs/policies.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pulumi_policy import EnforcementLevel

from policy.catalogue import POLICIES, TOPICS
from policy.rule import PlanPolicy, ResourcePolicy
from policy.stack_file import LONGEST_WAIVER_DAYS

_INTRODUCTION: Final = """\
# Policies

What every plan of this project has to hold, as a pack of policies for Pulumi ([policy/](../policy)). The configuration is checked
before there is a plan ([configuration](configuration.md)); the policies check the plan itself, whoever wrote it: a change of
the code that takes away the second balancer is refused in the same way as one of the configuration. This page is made from the
policies: `.venv/bin/python -m policy.reference > docs/policies.md`.

## Running the pack

```sh
pulumi preview --stack school --policy-pack policy          # the plan: nothing is changed
pulumi up --stack school --policy-pack policy               # the plan, and once more what has become of it
pulumi policy analyze --policy-pack policy --stack school   # what exists already, without a plan
```

Every violation is reported at once. Each message says which thing it is about, what it was, what is allowed, what to do, and
where on this page the reason stands. A violation of a mandatory policy ends the command with an exit code other than 0.

Policies of one resource are asked before that resource is touched. Policies of the whole plan are asked when the plan is
complete: `pulumi up` therefore shows its preview first, and `--skip-preview` would let them speak after the change.

An analysis of what exists reads the stack's state, secrets included, so it needs the passphrase like every other command. Without
it Pulumi blots the secrets out, and policies that look into them (such as the connection of a command) find nothing there.

## What a preview does not know

Some values come into being only when something is made, such as the host key of a new machine. A policy that needs such a value
can neither agree nor refuse: the preview names it under [checked-at-up](#checked-at-up) with what it could not read, and
passes. `pulumi up` asks the same policy again: one that looks at each resource before that resource is made, one that looks at
the whole plan when everything is made. What is refused only then stays as it is until the next `up`.

## Waiving a policy

What cannot be followed is waived, not switched off. A waiver stands in the stack's file, for one policy and one resource:

```yaml
school-postgres:policyWaivers:
  - policy: api-load-balancers-on-different-hosts
    resource: stack
    reason: The second Proxmox host arrives after the summer holidays.
    until: "2027-09-30"
```

`policy` is the name in the message. `resource` is the resource's name, `stack` for a policy of the whole plan, or `"*"` for every
resource. `until` is the last day it holds, {days} days from today at most. Waivers that hold are shown in every report, and
whether anything needs them; one that has ended, or that names what does not exist, is a violation itself
([configuration](configuration.md)). The reports of the pack itself cannot be waived.

## Advice

Advice is reported and lets the command go on: {advisory}.
All other policies are mandatory. The severity says how bad it is when a policy is not followed: critical means that data, or
the whole system, can be lost.

## Whether the policies notice anything

```sh
.venv/bin/python -m tests.policy.mutations
```

It changes the school's plan in one place at a time, asks the whole pack each time, and prints a table of what was changed
and which policies noticed; that takes about two minutes. It ends with an exit code other than 0 when a change goes unnoticed, or
when a policy notices none.
"""

_UNCHECKED: Final[Mapping[str, str]] = {
    "Proxmox's own high availability (HA rules)": "the program spreads machines over hosts itself and moves none of them; "
    "what is on a dead host is replaced by what runs on the others.",
    "The firewall of the machines": "Proxmox's filter of addresses drops the ARP answers of the addresses that move, so it is "
    "off for these machines; who may connect to the database is checked instead.",
    "Archives of the write-ahead log, and the fields of CloudNativePG and Barman": "the program offers Zalando's operator with "
    "nightly dumps, and writes no such field.",
    "Digests of images": "an image is pinned by registry, name and exact version. Digests differ between a registry and "
    "its mirror where the mirror repacks.",
    "Pods that charts and operators start": "a plan shows a chart's values, not what becomes of them. Where a value decides "
    "(the database's user, its images), the value is checked.",
    "The content of scripts": "a plan shows them as text. They have tests of their own.",
}


def page() -> str:
    """The whole page."""
    advisory = [f"[{policy.name}](#{policy.name})" for policy in POLICIES if is_advice(policy)]
    named = f"{', '.join(advisory[:-1])} and {advisory[-1]}"
    parts = [_INTRODUCTION.format(advisory=named, days=LONGEST_WAIVER_DAYS)]
    parts += [text for topic, policies in topics().items() for text in _section(topic, policies)]
    parts += ["## What the pack does not check\n", _table(("not checked", "because"), _UNCHECKED.items())]
    return "\n".join(parts)


def topics() -> dict[str, Sequence[ResourcePolicy | PlanPolicy]]:
    """Every policy by topic; those about the pack's own reports belong to no other topic."""
    sorted_in = {policy.name for policies in TOPICS.values() for policy in policies}
    return {**TOPICS, "The pack itself": [policy for policy in POLICIES if policy.name not in sorted_in]}


def is_advice(policy: ResourcePolicy | PlanPolicy) -> bool:
    """Whether a violation is reported and nothing more; whoever does not say so is mandatory."""
    return policy.enforcement_level is EnforcementLevel.ADVISORY


def severity(policy: ResourcePolicy | PlanPolicy) -> str:
    """How bad a violation is, in words."""
    return f"{policy.severity.value if policy.severity else 'none'}{', advice' if is_advice(policy) else ''}"


def _section(topic: str, policies: Sequence[ResourcePolicy | PlanPolicy]) -> Iterator[str]:
    yield f"## {topic}\n"
    yield _table(
        ("policy", "what holds", "severity"),
        [(f"[{policy.name}](#{policy.name})", policy.description, severity(policy)) for policy in policies],
    )
    for policy in policies:
        looks_at = "each resource" if isinstance(policy, ResourcePolicy) else "the whole plan"
        yield f"### {policy.name}\n"
        yield f"{policy.description} {policy.why}\n"
        yield f"- Severity: {severity(policy)}; looks at {looks_at}.\n- What to do: {policy.remediation_steps}\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
