"""What `school preview-comment` makes of real event logs, and of logs that somebody tampered with."""

from __future__ import annotations

import copy
import json
import random
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from operations.cli import app
from operations.preview.comment import DEFAULT_LIMIT, LARGEST_LIMIT, SMALLEST_LIMIT, comment, marker
from operations.preview.log import Action, LogError, parse, read
from operations.preview.markdown import escaped
from operations.preview.redaction import HIDDEN, is_secret_name, redacted
from operations.preview.report import Report, Verdict, report
from operations.preview.values import PropertyChange, parse_path, shown
from tests.unit.previews.shorten import shorten

pytestmark = pytest.mark.unit

LOGS = Path(__file__).parent / "previews"
NAMES = sorted(log.stem for log in LOGS.glob("*.jsonl"))
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "ciphertext": "geheim-cipher"}
CANARY = "geheim-canary"

Event = dict[str, Any]


def events(name: str) -> list[Event]:
    return [json.loads(line) for line in (LOGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def lines(made: list[Event]) -> list[str]:
    return [json.dumps(event) + "\n" for event in made]


def steps(made: list[Event]) -> Iterator[dict[str, Any]]:
    for event in made:
        if "resourcePreEvent" in event:
            yield event["resourcePreEvent"]["metadata"]


def step(made: list[Event], name: str, op: str | None = None) -> dict[str, Any]:
    return next(one for one in steps(made) if one["urn"].endswith(f"::{name}") and op in (None, one["op"]))


def facts(source: str | list[Event]) -> Report:
    preview = parse(lines(source if isinstance(source, list) else events(source)))
    return report(preview, preview.stack or "school")


def text(source: str | list[Event], limit: int = DEFAULT_LIMIT) -> str:
    return comment(facts(source), limit)


def section(whole: str, heading: str) -> str:
    """One section of a comment, without its heading."""
    assert f"### {heading}\n" in whole, f"there is no section {heading!r} in:\n{whole}"
    return whole.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0]


def titles(found: Report, action: Action) -> list[str]:
    return [thing.title for change in found.changes if change.action is action for thing in change.things]


def words(found: Report, title: str) -> list[str]:
    (change,) = [one for one in found.changes if title in [thing.title for thing in one.things]]
    return list(change.words)


def update(made: list[Event], name: str, change: Callable[[dict[str, Any]], None], *paths: str) -> None:
    """Turn an unchanged step into an update of ``paths``."""
    one = step(made, name)
    one["op"] = "update"
    one["old"]["inputs"] = copy.deepcopy(one["new"].setdefault("inputs", {}))
    change(one["new"]["inputs"])
    one["detailedDiff"] = {path: {"diffKind": "update", "inputDiff": True} for path in paths}


def machine_memory(inputs: dict[str, Any]) -> None:
    inputs["memory"]["dedicated"] += 1024


# --- what changes


def test_what_is_new_is_named_as_people_name_it_and_described() -> None:
    found = facts("first")
    assert found.verdict is Verdict.CHANGES
    assert found.is_first
    made = titles(found, Action.CREATE)
    assert made[:3] == ["Proxmox host pve1", "Proxmox host pve2", "Proxmox host pve3"]
    assert made[3:9] == [
        "K3s server gl2",
        "K3s server gl3",
        "K3s worker gl6",
        "datastore and file server gl8",
        "API balancer gl9",
        "API balancer gl10",
    ]
    assert "the database wichtige-daten-3" in made
    assert titles(found, Action.UPDATE) == titles(found, Action.REPLACE) == titles(found, Action.DELETE) == []
    assert words(found, "K3s server gl2") == [
        "cores 2",
        "memory 4096 MiB",
        "disk 40 GiB",
        "address 10.0.145.110/24",
        "id 110",
        "on pve1",
    ]
    assert "None: nothing exists yet." in section(text("first"), "Expected interruption")


def test_what_a_failed_run_did_not_come_to_is_still_new() -> None:
    made = [event for event in events("first") if "::postgres-cluster" not in json.dumps(event)]
    assert "the database wichtige-daten-3" in titles(facts(made), Action.CREATE)


def test_small_resources_are_folded_into_the_thing_they_belong_to() -> None:
    found = facts("first")
    (server,) = [one for one in found.changes if one.things[0].title == "K3s server gl2"]
    # container, its component, six steps on it, K3s, three for its certificate and that component, one password
    assert server.parts == 13
    assert sum(one.parts for one in found.changes) == found.resources
    assert "-command" not in text("first")
    assert "urn:pulumi" not in "".join(text(name) for name in NAMES)


def test_changes_are_told_in_plain_words() -> None:
    found = facts("changed")
    assert words(found, "K3s worker gl6") == ["memory 4096 MiB -> 6144 MiB"]
    assert words(found, "K3s server gl2") == ["cores 2 -> 4"]
    assert words(found, "the database wichtige-daten-3") == ["PostgreSQL parameter work_mem 4MB -> 8MB"]
    # the component and the CronJob both say it: once is enough
    assert words(found, "the nightly backup") == ["schedule 0 2 * * * -> 30 1 * * *"]
    assert titles(found, Action.UPDATE) == [
        "K3s server gl2",
        "K3s worker gl6",
        "the database wichtige-daten-3",
        "the nightly backup",
    ]
    assert "memory 4096 MiB -&gt; 6144 MiB" in section(text("changed"), "What changes")


def test_what_happens_alike_to_several_machines_is_told_once() -> None:
    found = facts("upgrade")
    (k3s,) = [one for one in found.changes if list(one.words) == ["K3s is set up again"]]
    assert [thing.title for thing in k3s.things] == ["K3s server gl2", "K3s server gl3", "K3s worker gl6"]
    assert words(found, "Kubernetes (K3s)") == ["K3s v1.36.3+k3s1 -> v1.36.4+k3s1"]


def test_deletions_come_before_replacements_changes_and_new_things() -> None:
    assert [one.action for one in facts("worker-removed").changes] == [Action.DELETE, Action.UPDATE, Action.UPDATE]
    whole = section(text("worker-removed"), "What changes")
    assert whole.index("**Deleted (1)**") < whole.index("**Changed (7)**")
    whole = section(text("replaced"), "What changes")
    assert whole.index("**Deleted and made anew (3)**") < whole.index("**Changed (5)**")


def test_a_plan_without_a_change_says_so() -> None:
    found = facts("unchanged")
    assert found.verdict is Verdict.UNCHANGED
    whole = text("unchanged")
    assert "## Stack `school` is up to date: nothing changes" in whole
    assert "###" not in whole.replace("## Stack", "")
    assert found.unchanged == found.resources > 90


def test_a_destroy_is_called_one() -> None:
    assert "What `pulumi destroy` would do" in text("destroyed")
    assert facts("destroyed").unchanged == 0


def test_a_provider_that_gives_no_details_has_its_inputs_compared() -> None:
    made = events("changed")
    step(made, "gl6-container")["detailedDiff"] = None
    assert words(facts(made), "K3s worker gl6") == ["memory 4096 MiB -> 6144 MiB"]


def test_a_detail_about_an_output_takes_the_old_value_from_the_outputs() -> None:
    made = events("changed")
    container = step(made, "gl6-container")
    container["old"]["outputs"] = {"memory": {"dedicated": 4096}}
    del container["old"]["inputs"]["memory"]
    container["detailedDiff"]["memory.dedicated"]["inputDiff"] = False
    assert words(facts(made), "K3s worker gl6") == ["memory 4096 MiB -> 6144 MiB"]


def test_a_value_that_is_not_known_yet_is_called_so() -> None:
    made = events("changed")
    step(made, "gl6-container")["new"]["inputs"]["memory"]["dedicated"] = "3eeb2bf0-c639-47a8-9e75-3b44932eb421"
    assert words(facts(made), "K3s worker gl6") == ["memory 4096 MiB -> (known after `pulumi up`)"]


def test_a_component_that_only_begins_to_tell_something_changes_nothing() -> None:
    made = events("unchanged")
    backup = step(made, "backup")
    backup |= {"op": "update", "old": {**backup["new"], "inputs": dict(backup["new"]["inputs"])}}
    backup["new"]["inputs"]["keepMonths"] = 3
    assert words(facts(made), "the nightly backup") == ["only what Pulumi notes about it changes, nothing on it"]


def test_a_component_of_next_year_is_told_under_its_own_name() -> None:
    made = events("unchanged")
    urn = "urn:pulumi:school::school-postgres::school:index:ObjectStoreBackup::cold"
    made.append(
        {
            "sequence": 10_000,
            "resourcePreEvent": {
                "metadata": {
                    "op": "create",
                    "urn": urn,
                    "type": "school:index:ObjectStoreBackup",
                    "new": {"type": "school:index:ObjectStoreBackup"},
                }
            },
        }
    )
    assert titles(facts(made), Action.CREATE) == ["object store backup cold"]


# --- data


def test_what_loses_data_is_told_first_and_in_words() -> None:
    found = facts("replaced")
    assert [(one.title, one.action, one.why) for one in found.data_loss] == [
        ("K3s server gl3", Action.REPLACE, "id 111 -> 211"),
        ("datastore and file server gl8", Action.REPLACE, "Proxmox host pve3 -> pve2"),
        ("the database wichtige-daten-3", Action.REPLACE, "name wichtige-daten-3 -> wichtige-daten-4"),
    ]
    assert "state of Kubernetes" in found.data_loss[1].lost
    assert "all backups on the share" in found.data_loss[1].lost
    whole = text("replaced")
    headings = re.findall(r"^### (.*)$", whole, re.MULTILINE)
    assert headings == ["Data that would be lost", "Expected interruption", "What changes"]
    assert "**Data would be lost, see below.**" in whole.split("###")[0]


def test_a_deleted_worker_takes_a_volume_with_it() -> None:
    (lost,) = facts("worker-removed").data_loss
    assert lost.title == "K3s worker gl11"
    assert lost.action is Action.DELETE
    assert "volume of the member of the database" in lost.lost


def test_the_loss_of_every_copy_is_said() -> None:
    found = facts("destroyed")
    assert any("every copy of it is gone" in one.lost for one in found.data_loss)
    assert {"the namespace postgres", "the database wichtige-daten-3"} <= {one.title for one in found.data_loss}


def test_two_members_in_one_run_are_worse_than_one() -> None:
    made = events("replaced")
    other = copy.deepcopy(step(made, "gl3-container", "replace"))
    container = step(made, "gl2-container")
    container |= {"op": "replace", "keys": ["vmId"], "detailedDiff": other["detailedDiff"]}
    container["old"]["inputs"] = copy.deepcopy(container["new"]["inputs"])
    container["new"]["inputs"]["vmId"] = 210
    assert any("2 of the 3 machines" in one.lost for one in facts(made).data_loss)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("postgres-namespace", "the namespace postgres"),
        ("postgres-cluster", "the database wichtige-daten-3"),
        ("k3s-token", "the token of the K3s servers"),
        ("k3s-agent-token", "the token of the K3s workers"),
    ],
)
@pytest.mark.parametrize("action", [Action.REPLACE, Action.DELETE])
def test_each_holder_of_data_is_recognised(name: str, title: str, action: Action) -> None:
    made = events("unchanged")
    one = step(made, name)
    one |= {"op": action.value, "keys": ["metadata.name"]}
    known = {"postgres-namespace": "postgres", "postgres-cluster": "wichtige-daten-3"}
    one["old"]["inputs"] = {"metadata": {"name": known.get(name, name)}}
    if action is Action.DELETE:
        one["new"] = None
    assert [(lost.title, lost.action) for lost in facts(made).data_loss] == [(title, action)]


def test_the_share_and_a_volume_claim_hold_data() -> None:
    made = events("unchanged")
    share = step(made, "backup-share")
    share |= {"op": "delete", "old": share["new"], "new": None}
    claim = "kubernetes:core/v1:PersistentVolumeClaim"
    metadata = {"op": "delete", "urn": f"urn:pulumi:school::school-postgres::{claim}::data", "type": claim}
    metadata["old"] = {"type": claim, "custom": True, "inputs": {"metadata": {"name": "pgdata-0"}}}  # type: ignore[assignment]
    made.append({"sequence": 10_000, "resourcePreEvent": {"metadata": metadata}})
    assert [lost.title for lost in facts(made).data_loss] == [
        "the persistent volume claim pgdata-0",
        "the share backup",
    ]


def test_a_balancer_holds_no_data() -> None:
    made = events("unchanged")
    container = step(made, "gl9-container")
    container |= {"op": "delete", "old": container["new"], "new": None}
    found = facts(made)
    assert titles(found, Action.DELETE) == ["API balancer gl9"]
    assert found.data_loss == []


def test_a_machine_whose_roles_nobody_knows_may_hold_data() -> None:
    made = events("unchanged")
    container = step(made, "gl9-container")
    container |= {"op": "delete", "old": container["new"], "new": None}
    container["old"]["inputs"]["tags"] = []
    assert [lost.title for lost in facts(made).data_loss] == ["machine gl9"]


def test_the_rest_of_a_broken_replacement_counts_as_a_replacement() -> None:
    made = events("unchanged")
    rest = copy.deepcopy(step(made, "gl8-container"))
    rest |= {"op": "delete", "old": {**rest["new"], "delete": True}, "new": None}
    made.append({"sequence": 10_000, "resourcePreEvent": {"metadata": rest}})
    (lost,) = facts(made).data_loss
    assert (lost.title, lost.action) == ("datastore and file server gl8", Action.REPLACE)


def test_protection_that_is_lifted_is_told_even_when_nothing_else_changes() -> None:
    made = events("unchanged")
    for name in ("gl8-container", "postgres-cluster"):
        assert step(made, name)["old"]["protect"]
        del step(made, name)["new"]["protect"]
    found = facts(made)
    assert found.unprotected == ["datastore and file server gl8", "the database wichtige-daten-3"]
    assert "## Nothing of stack `school` changes but its protection" in text(made)
    assert "- datastore and file server gl8" in section(text(made), "Protection that would be lifted")


# --- interruptions


def interrupted(source: str | list[Event]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for one in facts(source).interruptions:
        found.setdefault(one.what, []).append((one.effect, one.basis.value))
    return found


def test_memory_reboots_a_machine_and_cores_do_not() -> None:
    found = interrupted("changed")
    assert found["K3s worker gl6"] == [("reboots, because its memory changes", "estimate")]
    assert "K3s server gl2" not in found
    ((effect, _),) = found["database"]
    assert effect.startswith("if the primary runs on gl6")


@pytest.mark.parametrize(
    ("path", "value", "reboots"),
    [
        ("memory.swap", 512, True),
        ("initialization.hostname", "gl66", True),
        ("initialization.dns.domain", "neu.lan", True),
        ("cpu.cores", 8, False),
        ("disk.size", 80, False),
        ("tags", ["neu"], False),
        ("description", "neu", False),
        ("startup.order", 9, False),
        ("features", {"nesting": True}, False),
    ],
)
def test_only_some_properties_reboot_a_container(path: str, value: Any, reboots: bool) -> None:
    made = events("unchanged")

    def change(inputs: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for part in outer:
            inputs = inputs[part]
        inputs[last] = value

    update(made, "gl6-container", change, path)
    assert any("reboots" in effect for effects in interrupted(made).values() for effect, _ in effects) is reboots


def test_two_k3s_machines_that_reboot_at_once_cut_the_database() -> None:
    made = events("unchanged")
    for name in ("gl2-container", "gl3-container"):
        update(made, name, machine_memory, "memory.dedicated")
    found = interrupted(made)
    assert "gl2, gl3 are away at the same time" in found["database"][0][0]
    assert any("without its servers (gl2, gl3)" in effect for effect, _ in found["Kubernetes API"])


def test_the_datastore_takes_the_api_and_spares_the_database() -> None:
    made = events("unchanged")
    update(made, "gl8-container", machine_memory, "memory.dedicated")
    found = interrupted(made)
    assert "does not answer without its datastore (gl8)" in found["Kubernetes API"][0][0]
    assert found["database"] == [("goes on without the datastore, but has no failover while it is away", "measured")]
    assert "backup" in found


def test_one_balancer_is_stood_in_for_and_two_are_not() -> None:
    made = events("unchanged")
    update(made, "gl9-container", machine_memory, "memory.dedicated")
    assert "answers through the other balancer" in interrupted(made)["Kubernetes API"][0][0]
    update(made, "gl10-container", machine_memory, "memory.dedicated")
    assert "without its balancers (gl9, gl10)" in interrupted(made)["Kubernetes API"][0][0]


def test_k3s_and_balancers_that_are_set_up_again_cut_little() -> None:
    effects = " ".join(effect for effect, _ in interrupted("upgrade")["Kubernetes API"])
    assert "K3s on gl2, gl3 restarts if version or settings differ" in effects
    assert "nginx and keepalived on gl9, gl10 load their settings" in effects
    assert "database" not in interrupted("upgrade")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("spec.postgresql.parameters.max_connections", "PostgreSQL restarts on every member, for max_connections"),
        ("spec.resources.limits.memory", "members restart one after the other"),
        ("spec.postgresql.version", "goes to another major version"),
        ('spec.masterServiceAnnotations["metallb.io/loadBalancerIPs"]', "gets another address"),
    ],
)
def test_what_cuts_the_database(path: str, part: str) -> None:
    made = events("unchanged")

    def change(inputs: dict[str, Any]) -> None:
        *outer, last = parse_path(path)
        for key in outer:
            inputs = inputs[key]  # type: ignore[index]
        inputs[last] = "8"  # type: ignore[index]

    update(made, "postgres-cluster", change, path)
    assert part in interrupted(made)["database"][0][0]


def test_a_parameter_that_is_only_loaded_cuts_nothing() -> None:
    made = events("unchanged")
    path = "spec.postgresql.parameters.work_mem"
    update(
        made, "postgres-cluster", lambda inputs: inputs["spec"]["postgresql"]["parameters"].update(work_mem="9MB"), path
    )
    assert facts(made).interruptions == []
    assert "No data is lost and nothing is interrupted." in text(made)


def test_a_figure_says_how_it_is_known() -> None:
    whole = section(text("changed"), "Expected interruption")
    assert "| estimate |" in whole
    assert "nobody has measured just this" in whole


def test_when_everything_goes_that_is_all_there_is_to_say() -> None:
    assert [one.what for one in facts("destroyed").interruptions] == ["everything"]


# --- policies


def test_policies_are_told_with_severity_level_remedy_and_link() -> None:
    whole = section(text("policies"), "Policies")
    assert "**database-members-on-different-machines** (critical, mandatory): the database wichtige-daten-3: " in whole
    assert "(docs/policies.md#database-members-on-different-machines)" in whole
    assert "components/operators/zalando.py" in whole
    assert whole.index("Refused:") < whole.index("Waivers that do not hold") < whole.index("Waivers in force")
    assert "ended on 2026-10-01" in whole
    assert "until 2027-01-31" in whole
    assert "Policy packs: school-postgres 1.0.0." in text("policies")


def test_a_plan_that_policies_refuse_is_a_failed_preview_that_says_so() -> None:
    found = facts("policies")
    assert found.verdict is Verdict.FAILED
    assert [cause.title for cause in found.causes] == ["A mandatory policy is violated"]
    assert "## Policies refuse the plan for stack `school`" in text("policies")
    assert words(found, "K3s worker gl6") == ["memory 4096 MiB -> 6144 MiB"]


def test_what_can_only_be_checked_at_up_is_told_apart_from_advice() -> None:
    made = events("first")
    message = "Something.\ncommand-host-key-pinned: connection of gl2-hosts-file and 32 more: not known yet."
    event = {"policyName": "checked-at-up", "message": message, "enforcementLevel": "advisory", "severity": "low"}
    made.append({"sequence": 10_000, "policyEvent": event})
    (found,) = facts(made).policies
    assert found.group.value == "checked at up"
    assert found.message == "command-host-key-pinned: connection of gl2-hosts-file and 32 more: not known yet."
    assert "Can only be checked at pulumi up (1)" in text(made)
    assert facts(made).verdict is Verdict.CHANGES


def test_advice_stands_folded_and_does_not_fail_the_preview() -> None:
    made = events("unchanged")
    advice = {"policyName": "datastore-redundant", "enforcementLevel": "advisory", "severity": "medium"}
    made.append({"sequence": 10_000, "policyEvent": {**advice, "message": "About.\nThere is one. Have three."}})
    whole = text(made)
    assert "<summary>Advice (1)</summary>" in whole
    assert "There is one. Have three." in whole
    assert "About." not in whole
    assert facts(made).verdict is Verdict.UNCHANGED


# --- failures


def test_faults_of_the_configuration_are_told_line_by_line() -> None:
    found = facts("invalid")
    assert found.verdict is Verdict.FAILED
    assert [cause.title for cause in found.causes] == ["The configuration has faults"]
    whole = text("invalid")
    assert "## The preview of stack `school` failed" in whole
    assert "What `pulumi up` would do is **not known**." in whole
    assert "memoryMiB (gl6) is 1" in whole
    assert "non-zero exit code" not in whole


def test_hosts_that_do_not_answer_are_two_causes_and_not_twenty_messages() -> None:
    found = facts("unreachable")
    assert [cause.title for cause in found.causes] == ["The Kubernetes API does not answer", "Proxmox does not answer"]
    assert all("preview failed" not in message.lower() for cause in found.causes for message in cause.messages)
    whole = text("unreachable")
    assert "- API balancer gl10: error retrieving container 115" in whole
    assert "more like these" in whole
    assert "stay as they are" not in whole


def test_a_protected_machine_is_the_cause_and_the_loss_is_told() -> None:
    found = facts("protected")
    assert [cause.title for cause in found.causes] == [
        "Something that holds data is protected, and would be deleted or replaced"
    ]
    assert [lost.title for lost in found.data_loss] == ["K3s server gl3"]
    assert "`pulumi up` would **not run**" in text("protected")


def test_a_preview_that_ended_early_is_never_an_empty_plan() -> None:
    for made in ([], events("ended-early"), events("changed")[:-2]):
        found = facts(made)
        assert found.verdict is Verdict.FAILED
        assert found.causes[0].title == "The preview ended before it was finished"
        assert "failed" in text(made)


def test_a_log_whose_last_line_was_cut_off_ended_early() -> None:
    made = lines(events("changed"))[:20]
    preview = parse([*made, '{"sequence": 20, "resourcePre'])
    assert preview.result == "ended early"


def test_an_interrupted_preview_is_one() -> None:
    made = events("unchanged")
    next(event for event in made if "summaryEvent" in event)["summaryEvent"]["result"] = "canceled"
    assert facts(made).causes[0].title == "The preview was interrupted"


def test_a_crash_of_the_program_is_its_last_line() -> None:
    made = events("unchanged")
    crash = 'Program failed:\nTraceback (most recent call last):\n  File "/builds/x.py", line 3\nKeyError: "gl6"\n'
    made.append({"sequence": 9_000, "diagnosticEvent": {"severity": "error", "message": crash}})
    assert facts(made).causes[0].messages == ['KeyError: "gl6"']


def test_an_error_fails_the_preview_whatever_the_summary_says() -> None:
    made = events("unchanged")
    made.insert(0, {"sequence": 0, "diagnosticEvent": {"severity": "error", "message": "error: something else"}})
    assert facts(made).verdict is Verdict.FAILED
    assert [cause.title for cause in facts(made).causes] == ["Pulumi stopped with an error"]


# --- files that are something else


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("no json\n", "line 1 of the event log is no event of Pulumi"),
        ("[1, 2]\n", "line 1 of the event log is no event of Pulumi"),
        ('{"a": 1}\n', "line 1 of the event log is no event of Pulumi"),
        ('{\n    "config": {}\n}\n', "`pulumi preview --json`"),
        ('{"sequence": 1, "diagnosticEvent": {"severity": "error"}}\n', "diagnosticEvent.message: Field required"),
        (
            '{"sequence": 1, "diagnosticEvent": "error"}\n',
            "line 1 of the event log is no event that this command knows",
        ),
        ('{"sequence": 1, "summaryEvent": {"isPreview": false}}\n', "not by a preview"),
        ('{"sequence": 1, "cancelEvent": {}}\ngarbage\n', "line 2 of the event log is no event of Pulumi"),
    ],
)
def test_a_foreign_file_is_one_sentence(content: str, part: str) -> None:
    with pytest.raises(LogError, match=re.escape(part)) as caught:
        parse(content.splitlines(keepends=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", [None, [], {}, 0, "x", [None], {"a": [1]}, SECRET], ids=str)
def test_inputs_of_any_shape_are_told_without_a_crash(odd: Any) -> None:
    for name in ("changed", "replaced"):
        made = events(name)
        for one in steps(made):
            for side in ("old", "new"):
                if one.get(side) and one[side].get("inputs"):
                    one[side]["inputs"] = dict.fromkeys(one[side]["inputs"], odd)
        assert facts(made).verdict is Verdict.CHANGES
        assert "What changes" in text(made)


def test_what_a_newer_pulumi_adds_is_ignored() -> None:
    made = events("unchanged")
    made.insert(0, {"sequence": 0, "somethingNewEvent": {"x": 1}})
    for one in steps(made):
        one["news"] = {"deep": [1]}
        one["old"]["outputs"] = None
    assert text(made) == text("unchanged")


# --- secrets


def everything_written(made: list[Event]) -> str:
    found = facts(made)
    return text(made, LARGEST_LIMIT) + json.dumps(found.as_dict(), ensure_ascii=False)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_command_is_given_is_never_written(name: str) -> None:
    made = events(name)
    for one in steps(made):
        if one["type"].startswith("command:"):
            for side in ("old", "new"):
                if one.get(side):
                    inputs = one[side].setdefault("inputs", {})
                    inputs |= dict.fromkeys(("stdin", "environment", "connection"), f"{CANARY} {side}")
                    inputs["create"] = f"curl -u admin:{CANARY} {side}"
                    one[side]["outputs"] = {"stdout": CANARY, "stderr": CANARY}
    assert CANARY not in everything_written(made)


@pytest.mark.parametrize("name", NAMES)
def test_a_property_with_a_secret_name_is_never_written(name: str) -> None:
    secret = ("password", "apiToken", "clientSecret", "sshKey", "privateKey", "kubeconfig", "stringData", "pg_password")
    made = events(name)
    for one in steps(made):
        if one["op"] not in ("same", "refresh"):
            one["detailedDiff"] = {**(one.get("detailedDiff") or {})}
            for key in secret:
                one["detailedDiff"][key] = {"diffKind": "update", "inputDiff": True}
                for side in ("old", "new"):
                    if one.get(side):
                        one[side].setdefault("inputs", {})[key] = {"deep": [CANARY, side]}
    assert CANARY not in everything_written(made)


@pytest.mark.parametrize("name", ["backup-share-credentials", "postgres-password-bauer"])
def test_of_a_secret_nothing_is_written_whatever_it_is_called(name: str) -> None:
    made = events("unchanged")
    update(made, name, lambda inputs: inputs.update(data={"user": CANARY}, length=CANARY), "data.user", "length")
    assert "changes (not shown)" in everything_written(made)
    assert CANARY not in everything_written(made)


DEPLOYMENT = "kubernetes:apps/v1:Deployment"
CONTAINERS = "spec.template.spec.containers"


def changed_resource(
    type_name: str,
    before: Any,
    after: Any,
    details: dict[str, Any] | None,
    parent: str = "school:index:PostgresCluster",
) -> list[Event]:
    """The unchanged plan, and one resource of a kind it does not know that changes."""
    made = events("unchanged")
    above = next(one["urn"] for one in steps(made) if one["type"] == parent)
    urn = f"urn:pulumi:school::school-postgres::{parent}${type_name}::more"
    sides = {
        side: {"type": type_name, "custom": True, "parent": above, "inputs": inputs}
        for side, inputs in (("old", before), ("new", after))
    }
    one = {"op": "update", "urn": urn, "type": type_name, "detailedDiff": details, **sides}
    made.append({"sequence": 10_000, "resourcePreEvent": {"metadata": one}})
    return made


def a_pod(**container: Any) -> dict[str, Any]:
    containers = [{"name": "app", **container}]
    return {"metadata": {"name": "more"}, "spec": {"template": {"spec": {"containers": containers}}}}


def variable(name: str, value: str) -> dict[str, Any]:
    return a_pod(env=[{"name": "LANG", "value": "C"}, {"name": name, "value": value}])


def a_chart(**values: Any) -> dict[str, Any]:
    return {"chart": "app", "version": "1.0.0", "values": values}


def an_update(*paths: str) -> dict[str, Any]:
    return {path: {"diffKind": "update", "inputDiff": True} for path in paths}


@pytest.mark.parametrize("with_details", [True, False])
@pytest.mark.parametrize(
    ("type_name", "make", "path", "said"),
    [
        (DEPLOYMENT, lambda x: variable("APP_PASSWORD", x), f"{CONTAINERS}[0].env[1].value", CONTAINERS),
        (DEPLOYMENT, lambda x: variable("APP_MODE", x), f"{CONTAINERS}[0].env[1].value", CONTAINERS),
        (DEPLOYMENT, lambda x: a_pod(args=["--password", x]), f"{CONTAINERS}[0].args[1]", CONTAINERS),
        (DEPLOYMENT, lambda x: a_pod(command=["sh", "-c", x]), f"{CONTAINERS}[0].command[2]", CONTAINERS),
        (DEPLOYMENT, lambda x: {"metadata": {"annotations": {"note": x}}}, "metadata.annotations.note", "annotations"),
        ("kubernetes:core/v1:ConfigMap", lambda x: {"data": {"x": x}}, "data.x", "data.x changes"),
        ("kubernetes:core/v1:Secret", lambda x: {"data": {"x": x}}, "data.x", "the Secret more changes (not shown)"),
        ("kubernetes:core/v1:Service", lambda x: {"spec": {"note": x}}, "spec.note", "1 more property"),
        (
            "kubernetes:helm.sh/v3:Release",
            lambda x: a_chart(adminPwd=x),
            "values.adminPwd",
            "adminPwd of the chart app",
        ),
        ("kubernetes:helm.sh/v3:Release", lambda x: a_chart(env={"PGPASSWORD": x}), "values.env.PGPASSWORD", "env"),
        ("kubernetes:helm.sh/v3:Release", lambda x: a_chart(auth={"pass": x}), "values.auth.pass", "auth.pass"),
        ("kubernetes:helm.sh/v3:Release", lambda x: a_chart(note=x), "values.note", "note of the chart app changes"),
        ("kubernetes:helm.sh/v3:Release", lambda x: a_chart(notes=[{"a": x}]), "values.notes[0].a", "notes"),
        ("kubernetes:helm.sh/v3:Release", lambda x: {"chart": "app", "keyring": x}, "keyring", "keyring of the chart"),
        ("proxmoxve:download/file:File", lambda x: {"url": f"https://h/?x={x}"}, "url", "url changes"),
        ("random:index/randomPassword:RandomPassword", lambda x: {"keepers": {"x": x}}, "keepers.x", "(not shown)"),
        ("kubernetes:new.example/v1:Thing", lambda x: {"spec": {"mode": x}}, "spec.mode", "spec.mode changes"),
    ],
)
def test_the_value_of_what_has_no_label_is_never_written(
    type_name: str, make: Callable[[str], Any], path: str, said: str, with_details: bool
) -> None:
    made = changed_resource(type_name, make(CANARY), make(f"{CANARY}-new"), an_update(path) if with_details else None)
    written = everything_written(made)
    assert CANARY not in written
    assert said in " ".join(words(facts(made), "the database wichtige-daten-3"))


def test_a_variable_that_is_new_or_gone_is_only_named() -> None:
    path = "spec.template.spec.containers[0].env[1].value"
    for before, after, said in (
        (a_pod(), variable("APP_PASSWORD", CANARY), "is set"),
        (variable("APP_PASSWORD", CANARY), a_pod(), "is taken away"),
    ):
        made = changed_resource(DEPLOYMENT, before, after, an_update(path))
        assert CANARY not in everything_written(made)
        assert words(facts(made), "the database wichtige-daten-3") == [f"{CONTAINERS}.env.value {said}"]


def test_what_is_made_anew_or_lost_does_not_show_what_makes_it_so() -> None:
    claim = "kubernetes:core/v1:PersistentVolumeClaim"
    made = changed_resource(claim, {"spec": {"x": CANARY}}, {"spec": {"x": f"{CANARY}2"}}, an_update("spec.x"))
    made[-1]["resourcePreEvent"]["metadata"] |= {"op": "replace", "keys": ["spec.x"]}
    assert [lost.why for lost in facts(made).data_loss] == ["spec.x changes"]
    assert CANARY not in everything_written(made)


@pytest.mark.parametrize(
    ("type_name", "before", "after", "path", "said"),
    [
        (DEPLOYMENT, {"spec": {"replicas": 2}}, {"spec": {"replicas": 3}}, "spec.replicas", "replicas 2 -> 3"),
        (
            DEPLOYMENT,
            a_pod(image="registry.lan:5000/app:1.0"),
            a_pod(image="registry.lan:5000/app:1.1"),
            f"{CONTAINERS}[0].image",
            "image registry.lan:5000/app:1.0 -> registry.lan:5000/app:1.1",
        ),
        (
            "kubernetes:helm.sh/v3:Release",
            {"chart": "app", "version": "1.0.0"},
            {"chart": "app", "version": "1.1.0"},
            "version",
            "chart app 1.0.0 -> 1.1.0",
        ),
        (
            "kubernetes:helm.sh/v3:Release",
            a_chart(frr={"enabled": True}),
            a_chart(frr={"enabled": False}),
            "values.frr.enabled",
            "frr.enabled of the chart app yes -> no",
        ),
        (
            "kubernetes:helm.sh/v3:Release",
            a_chart(configGeneral={"docker_image": "ghcr.io/zalando/spilo-17:4.0-p2"}),
            a_chart(configGeneral={"docker_image": "ghcr.io/zalando/spilo-17:4.0-p3"}),
            "values.configGeneral.docker_image",
            "configGeneral.docker_image of the chart app ghcr.io/zalando/spilo-17:4.0-p2 -> ghcr.io/zalando/spilo-17:4.0-p3",
        ),
    ],
)
def test_versions_counts_and_switches_are_told(type_name: str, before: Any, after: Any, path: str, said: str) -> None:
    made = changed_resource(type_name, before, after, an_update(path))
    assert words(facts(made), "the database wichtige-daten-3") == [said]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("work_mem", "8MB", "is set to 8MB"),
        ("work_mem", "8 MB", "is set to 8 MB"),
        ("random_page_cost", "1.1", "is set to 1.1"),
        ("log_min_duration_statement", "-1", "is set to -1"),
        ("log_lock_waits", "on", "is set to on"),
        ("log_lock_waits", True, "is set to yes"),
        ("max_connections", 300, "is set to 300"),
        ("wal_level", "logical", "is set to logical"),
        ("ssl_min_protocol_version", "TLSv1.3", "is set"),
        ("auto_explain.log_min_duration", "250ms", "is set to 250ms"),
        ("archive_command", f"curl -u root:{CANARY} x", "is set"),
        ("archive_command", CANARY, "is set"),
        ("primary_conninfo", CANARY, "is set"),
        ("app.salt", CANARY, "is set"),
        ("app.password", "12345", f"changes {HIDDEN}"),
        ("log_line_prefix", f"%m {CANARY}", "is set"),
        ("work_mem", f"curl https://u:{CANARY}@backup.lan/", "is set"),
        ("work_mem", "8MB\nx", "is set"),
        ("work_mem", {"a": CANARY}, "is set"),
        ("work_mem", [CANARY, {"a": CANARY}], "is set"),
    ],
)
def test_of_a_parameter_only_numbers_switches_and_simple_words_are_shown(name: str, value: Any, said: str) -> None:
    made = events("unchanged")

    def change(inputs: dict[str, Any]) -> None:
        inputs["spec"]["postgresql"]["parameters"][name] = value

    update(made, "postgres-cluster", change, f'spec.postgresql.parameters["{name}"]')
    cluster = step(made, "postgres-cluster")
    cluster["old"]["inputs"]["spec"]["postgresql"]["parameters"].pop(name, None)
    assert words(facts(made), "the database wichtige-daten-3") == [f"PostgreSQL parameter {name} {said}"]
    assert CANARY not in everything_written(made)


@pytest.mark.parametrize(
    ("name", "path", "value", "label"),
    [
        ("gl6-container", "description", CANARY, "description"),
        ("gl6-container", "nodeName", f"a {CANARY}", "Proxmox host"),
        ("gl6-container", "cpu.cores", CANARY, "cores"),
        ("gl6", "lxcLines", [f"lxc.environment: PASSWORD={CANARY}"], "raw lxc lines"),
        ("k3s", "version", CANARY, "K3s"),
        ("k3s", "serverSettings.datastore-endpoint", f"postgres://k3s:{CANARY}@h/k3s", "setting datastore-endpoint of"),
        ("k3s", "serverSettings.kube-apiserver-arg", [f"x={CANARY}"], "setting kube-apiserver-arg of the K3s servers"),
        ("backup", "schedule", CANARY, "schedule"),
    ],
)
def test_a_value_that_is_not_written_as_its_property_s_are_is_not_shown(
    name: str, path: str, value: Any, label: str
) -> None:
    made = events("unchanged")

    def change(inputs: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for part in outer:
            inputs = inputs[part]
        inputs[last] = value

    update(made, name, change, path)
    written = everything_written(made)
    assert CANARY not in written
    assert label in written


def test_of_a_new_thing_only_what_is_written_as_it_should_be_is_told() -> None:
    made = events("first")
    step(made, "backup")["new"]["inputs"]["schedule"] = f"at {CANARY}"
    assert words(facts(made), "the nightly backup") == ["time zone Europe/Berlin", "backups are kept for 14 days"]


def test_a_long_text_is_not_quoted() -> None:
    change = PropertyChange(path=("data", "dump.sh"), before="set -e\ntrue", after="set -e\nfalse")
    assert change.sentence("dump.sh") == "dump.sh changes"


def test_what_the_engine_marks_as_secret_is_never_written() -> None:
    made = events("changed")
    container = step(made, "gl6-container")
    container["new"]["inputs"]["memory"]["dedicated"] = SECRET
    assert words(facts(made), "K3s worker gl6") == [f"memory changes {HIDDEN}"]
    container["new"]["inputs"]["memory"]["dedicated"] = "[secret]"
    assert words(facts(made), "K3s worker gl6") == [f"memory changes {HIDDEN}"]
    container["new"]["inputs"]["memory"] = SECRET
    assert "geheim" not in everything_written(made)


def test_of_anything_but_plain_values_nothing_is_shown() -> None:
    assert shown([{"command": f"token={CANARY}"}]) == HIDDEN
    assert shown({"user": "bauer", "password": CANARY, "more": [SECRET]}) == HIDDEN
    assert shown(["a", 2, True, 4.0]) == "a, 2, yes, 4"
    assert shown([]) == shown(None) == "nothing"


@pytest.mark.parametrize(
    "message",
    [
        f"cannot connect to postgres://k3s:{CANARY}@10.0.145.113:5432/k3s",
        f"token: {CANARY}",
        f'{{"password": "{CANARY} with blanks"}}',
        f"PGPASSWORD={CANARY} psql",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY----- {CANARY}",
        "user school@pve!pulumi=9e1c5b0a-1111-2222-3333-444455556666 is not known",
        f"K10{'a1' * 32}::server:{CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"curl -H 'Authorization: Basic {CANARY}' https://backup.lan/",
        f"Cookie: PVEAuthCookie={CANARY}",
        f"curl -u root:{CANARY} https://backup.lan/",
        f"curl -u 'root:{CANARY} with blanks' https://backup.lan/",
        f'exec ["curl", "-u", "root:{CANARY}"] failed',
        f"smbclient -U admin%{CANARY}",
        f"psql --password {CANARY} -h db",
        f'command "psql --password {CANARY}" failed',
        f'args: ["--password","{CANARY}"]',
        f"sshpass -p {CANARY} ssh root@gl6",
        f"sshpass -p'{CANARY} with blanks' ssh root@gl6",
        f"smbclient --smb-pass={CANARY}",
        f"client-key-data: LS0{CANARY}",
        f"LS0tLS1CRUdJTi{CANARY.replace('-', '')} {HIDDEN}",
        f"SCRAM-SHA-256$4096:{CANARY}$a:b",
        f"AWS_SECRET_ACCESS_KEY={CANARY}",
        f"glpat-{CANARY}-0123456789",
        f"pass={CANARY}",
        f"host=db user=k3s pwd={CANARY}",
        f"postgresql://u:a@{CANARY}@host/db",
        f"postgresql://u:{CANARY}@b@host/db",
        '{"password":"a\\"' + CANARY + '","user":"u"}',
        '{\\"password\\":\\"a ' + CANARY + '\\"}',
        f"password: |\n  one\n  {CANARY}\n",
        f'ALTER ROLE bauer PASSWORD "{CANARY} with blanks"',
        f'v1.EnvVar{{Name:"APP_PASSWORD", Value:"{CANARY}"}}',
        f"- name: APP_PASSWORD\n  value: {CANARY}",
        f"<password>{CANARY}</password>",
        f"db.lan:5432:*:bauer:{CANARY}",
        f"PGPASSWORD='{CANARY} was cut o",
    ],
)
def test_a_message_that_quotes_a_secret_is_cleaned(message: str) -> None:
    made = events("unchanged")
    made.append({"sequence": 9_000, "diagnosticEvent": {"severity": "error", "message": message}})
    made.append({"sequence": 9_001, "diagnosticEvent": {"severity": "warning", "message": message}})
    policy = {"policyName": "p", "message": f"About.\n{message}", "enforcementLevel": "advisory"}
    made.append({"sequence": 9_002, "policyEvent": policy})
    written = everything_written(made)
    assert CANARY not in written
    assert "9e1c5b0a" not in written
    assert HIDDEN in written


def test_a_sentence_about_passwords_is_left_alone() -> None:
    sentence = "lets strangers try passwords: list the networks the applications are in"
    assert redacted(sentence) == sentence


@pytest.mark.parametrize(
    "message",
    [
        'spec.template.spec.tolerations[0].key: Invalid value: "x y"',
        'Secret "backup-share" is invalid: stringData: Required value',
        'secrets "backup-share" not found',
        'Head "https://10.0.145.116:6443/api": dial tcp 10.0.145.116:6443: connect: connection refused',
        "mirror postgres://k3s@10.0.145.113:5432/k3s, memory 4096 MiB, BC:24:11:00:00:12",
    ],
)
def test_a_message_without_a_secret_is_left_alone(message: str) -> None:
    assert redacted(message) == message


def test_what_stands_beside_a_secret_stays_readable() -> None:
    said = f'{{"password":"{CANARY}","user":"bauer"}} psql --password {CANARY} -h db'
    assert redacted(said) == f'{{"password":{HIDDEN},"user":"bauer"}} psql --password {HIDDEN} -h db'


def test_names_of_secrets_are_recognised_in_every_spelling() -> None:
    secret = ("password", "dbPassword", "DB_PASSWORD", "api-token", "privateKey", "client-key-data", "X-Amz-Signature")
    assert all(is_secret_name(name) for name in secret)
    assert not any(is_secret_name(name) for name in ("keepDays", "monkeys", "keyboard", "memory", "publicNetwork"))


@pytest.mark.parametrize(
    "part", ["password", 'token="', "-u '", "a://b:", "name=x,", "-----BEGIN PRIVATE KEY-----", "x"]
)
def test_a_long_message_takes_no_longer_than_its_length(part: str) -> None:
    before = time.perf_counter()
    redacted(part * (200_000 // len(part)))
    assert time.perf_counter() - before < 10, "it takes a fraction of a second where no word is read twice"


# --- the same plan, the same text


@pytest.mark.parametrize("name", NAMES)
def test_the_same_plan_gives_the_same_text_whatever_the_order_of_the_run(name: str) -> None:
    expected = text(name)
    for seed in range(5):
        made = events(name)
        random.Random(seed).shuffle(made)
        for number, event in enumerate(made):
            event |= {"sequence": number, "timestamp": 1_800_000_000 + seed}
        assert text(made) == expected


def test_nothing_in_a_comment_tells_when_or_where_it_was_made() -> None:
    made = events("policies")
    summary = next(event for event in made if "summaryEvent" in event)["summaryEvent"]
    summary["durationSeconds"] = 4711
    summary["PolicyPacks"] = {"school-postgres|local|/builds/17/policy": "1.0.0"}
    assert text(made) == text("policies")


# --- size


def many(count: int) -> list[Event]:
    """A plan in which ``count`` more workers are made."""
    made = events("first")
    urns = {one["urn"] for one in steps(made) if re.search(r"gl6($|-)", one["urn"].rsplit("::", 1)[1])}
    pattern = [
        json.dumps(event) for event in made if event.get("resourcePreEvent", {}).get("metadata", {}).get("urn") in urns
    ]
    for number in range(100, 100 + count):
        made += [json.loads(re.sub(r"\bgl6\b", f"gl{number}", event)) for event in pattern]
    return [{**event, "sequence": number} for number, event in enumerate(made)]


def test_a_big_plan_stays_under_the_limit_and_counts_what_it_leaves_out() -> None:
    found = facts(many(600))
    whole = comment(found, LARGEST_LIMIT)
    assert 60_000 < len(whole) <= LARGEST_LIMIT
    assert "gl699" in whole
    for limit in (DEFAULT_LIMIT, 20_000, SMALLEST_LIMIT):
        short = comment(found, limit)
        assert len(short) <= limit
        left = re.search(r"\.\.\. and (\d+) more things", short)
        assert left is not None
        told = len(re.findall(r"^- \*\*(?!Proxmox host)", section(short, "What changes"), re.MULTILINE))
        assert told + int(left[1]) >= 600
        assert "**620 made**" in short


@pytest.mark.parametrize("name", NAMES)
def test_every_plan_fits_into_the_smallest_limit(name: str) -> None:
    short = text(name, SMALLEST_LIMIT)
    assert len(short) <= SMALLEST_LIMIT
    assert short.startswith(marker(facts(name).stack) + "\n")


def test_data_that_would_be_lost_is_told_at_every_size() -> None:
    assert "### Data that would be lost" in text("replaced", SMALLEST_LIMIT)


def test_texts_that_grow_when_they_are_escaped_still_fit() -> None:
    made = events("replaced")
    for number in range(60):
        policy = {"policyName": f"{number}" + "&" * 300, "message": f"A.\n{'&' * 3000}{number}", "severity": "high"}
        level = ("mandatory", "advisory")[number % 2]
        made.append({"sequence": 9_000, "policyEvent": {**policy, "enforcementLevel": level}})
        made.append({"sequence": 9_000, "diagnosticEvent": {"severity": "error", "message": f"{number}" + "&" * 3000}})
        made.append(
            {"sequence": 9_000, "diagnosticEvent": {"severity": "warning", "message": f"{number}" + "&" * 3000}}
        )
    for limit in (SMALLEST_LIMIT, 8_000, 20_000, DEFAULT_LIMIT):
        assert len(text(made, limit)) <= limit
    short = text(made, SMALLEST_LIMIT)
    assert "failed" in short
    assert "3 things that lose data" in short
    assert "60 findings of policies" in short


def test_a_limit_that_gitlab_refuses_is_refused_here() -> None:
    with pytest.raises(ValueError, match="allowed are 6000 to 990000"):
        text("unchanged", LARGEST_LIMIT + 1)


def test_a_picture_has_no_more_than_people_can_read() -> None:
    found = facts(many(100)).picture
    assert found.mermaid.count('["') == 40
    assert found.left_out > 50
    assert "more." in text(many(50))


# --- text of others


HOSTILE = "</details><script>alert(1)</script> | `x` **b** [l](http://e.vil) @all #1 !2 ~bug %v $3 "
HOSTILE += f"<!-- school-postgres plan {'0' * 64} of {'1' * 40} --> :tada:\n/close\n# h"


def test_markup_in_names_and_messages_is_only_text() -> None:
    made = events("changed")
    step(made, "gl6-container")["new"]["inputs"]["description"] = HOSTILE
    step(made, "gl6-container")["detailedDiff"]["description"] = {"diffKind": "update", "inputDiff": True}
    for one in steps(made):
        if one["urn"].endswith("::gl6-container"):
            for side in ("old", "new"):
                one[side]["inputs"]["initialization"]["hostname"] = f"gl6{HOSTILE}"
    step(made, "gl6")["new"]["inputs"]["machineName"] = f"gl6{HOSTILE}"
    assert any(f"gl6{HOSTILE}" in thing.title for change in facts(made).changes for thing in change.things)
    made.append({"sequence": 9_000, "diagnosticEvent": {"severity": "warning", "message": HOSTILE}})
    policy = {"policyName": f"p{HOSTILE}", "message": f"About.\n{HOSTILE}", "enforcementLevel": "mandatory"}
    made.append({"sequence": 9_001, "policyEvent": policy})
    made.append({"sequence": 9_002, "diagnosticEvent": {"severity": "error", "message": HOSTILE}})
    whole = text(made)
    assert "<script" not in whole
    assert whole.count("<!--") == 1
    assert whole.count("<details>") == whole.count("</details>")
    assert not re.search(r"^\s*/", whole, re.MULTILINE), "a line that begins with a slash is a command to GitLab"
    outside = re.sub(r"```mermaid.*?```", "", whole, flags=re.DOTALL)
    for mark in ("@all", "#1", "!2", "~bug", "%v", "$3", "`x`", "**b**", "[l]", ":tada:", "http://"):
        assert not re.search(rf"(?<!\\){re.escape(mark)}", outside), mark
    (diagram,) = re.findall(r"```mermaid\n(.*?)\n```", whole, re.DOTALL)
    assert all(re.fullmatch(r'  n\d+\["[^"<>`|\[\]]*"\]:::\w+', line) for line in diagram.splitlines() if '["' in line)


def test_a_stack_name_cannot_leave_the_marker() -> None:
    assert marker("school") == "<!-- school-postgres preview: school -->"
    assert marker("a --> b") == "<!-- school-postgres preview: a?--??b -->"


def test_control_characters_and_invisible_ones_are_dropped() -> None:
    assert escaped("a\x1b[31mb\u202ec\r\n\td") == "a \\[31mb c d"


def test_escaping_keeps_what_is_harmless() -> None:
    assert escaped("memory 4096 MiB, 10.0.145.110/24 (gl6): fine") == "memory 4096 MiB, 10.0.145.110/24 (gl6): fine"
    assert escaped("a < b && c > d") == "a &lt; b &amp;&amp; c &gt; d"
    assert escaped("long " * 10, 12) == "long lon ..."


# --- the picture


def test_the_picture_shows_what_is_touched_and_what_stands_on_it() -> None:
    diagram = facts("changed").picture.mermaid
    assert diagram.startswith("flowchart LR\n")
    assert '["K3s worker gl6"]:::updates' in diagram
    assert '["Kubernetes (K3s)"]:::nones' in diagram
    assert "Proxmox host" not in diagram
    ids = set(re.findall(r"(n\d+)\[", diagram))
    assert all({a, b} <= ids for a, b in re.findall(r"(n\d+) --> (n\d+)", diagram))
    assert " --> " in diagram
    assert "<details>\n<summary>Picture" in text("changed")
    assert facts("unchanged").picture.mermaid == ""


# --- paths


def test_property_paths_are_read_as_the_engine_writes_them() -> None:
    assert parse_path('metadata.annotations["metallb.io/address-pool"]') == (
        "metadata",
        "annotations",
        "metallb.io/address-pool",
    )
    assert parse_path("networkInterfaces[0].bridge") == ("networkInterfaces", 0, "bridge")
    change = PropertyChange(path=("a", 0, "b"), before=True, after=None)
    assert change.dotted == "a.b"
    assert change.sentence("it", form=re.compile("true")) == "it yes is taken away"
    assert change.sentence("it") == "it is taken away"


# --- the command


@pytest.fixture
def school(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, ["preview-comment", *map(str, arguments)])

    return run


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("unchanged", ["--refuse-data-loss"], 0),
        ("changed", ["--refuse-data-loss"], 0),
        ("first", ["--refuse-data-loss"], 0),
        ("worker-removed", [], 0),
        ("worker-removed", ["--refuse-data-loss"], 3),
        ("replaced", ["--refuse-data-loss"], 3),
        ("protected", ["--refuse-data-loss"], 1),
        ("invalid", [], 1),
        ("unreachable", [], 1),
        ("policies", [], 1),
        ("ended-early", ["--stack", "school"], 1),
        ("ended-early", [], 2),
    ],
)
def test_the_exit_code_is_what_a_pipeline_decides_by(
    school: Callable[..., Any], name: str, options: list[str], code: int
) -> None:
    assert school(LOGS / f"{name}.jsonl", *options).exit_code == code


def test_the_comment_is_printed_as_it_is(school: Callable[..., Any]) -> None:
    assert school(LOGS / "changed.jsonl").stdout == text("changed")


def test_the_facts_are_there_for_programs(school: Callable[..., Any]) -> None:
    found = json.loads(school(LOGS / "replaced.jsonl", "--json").stdout)
    assert found == json.loads(json.dumps(facts("replaced").as_dict()))
    assert found["verdict"] == "changes"
    assert found["dataLoss"][0]["title"] == "K3s server gl3"


def test_help_names_the_exit_codes(school: Callable[..., Any]) -> None:
    shown_help = school("--help").stdout
    for part in ("0 ", "1 ", "2 ", "3 ", "4 ", "--event-log", "--refuse-data-loss"):
        assert part in shown_help


def test_a_wrong_file_is_one_sentence_and_no_comment(school: Callable[..., Any], tmp_path: Path) -> None:
    for content in ("hello\n", "{}\n"):
        (tmp_path / "log").write_text(content)
        outcome = school(tmp_path / "log", "--stack", "school")
        assert outcome.exit_code == 2
        assert outcome.stdout == ""
        assert outcome.stderr.count("\n") == 1
    (tmp_path / "log").write_bytes(b"\xff\xfe\x00")
    assert "not text" in school(tmp_path / "log").stderr


def test_a_log_that_was_never_written_is_a_failed_preview_of_a_named_stack(
    school: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = school(tmp_path / "none", "--stack", "school")
    assert outcome.exit_code == 1
    assert "## The preview of stack `school` failed" in outcome.stdout
    outcome = school(tmp_path / "none")
    assert outcome.exit_code == 2
    assert "cannot be read: No such file or directory" in outcome.stderr


class GitLab(types.ModuleType):
    """Stands for operations.gitlab."""

    class GitLabError(Exception):
        """Says why."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__("operations.gitlab")
        self.published: list[tuple[str, str]] = []
        self.refusal = refusal

    def publish(self, body: str, own: str) -> str:
        if self.refusal:
            raise self.GitLabError(self.refusal)
        self.published.append((body, own))
        return "https://gitlab.schule.lan/x/-/merge_requests/1#note_2"


def test_publishing_hands_over_the_comment_and_its_marker(
    school: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gitlab = GitLab()
    monkeypatch.setitem(sys.modules, "operations.gitlab", gitlab)
    outcome = school(LOGS / "worker-removed.jsonl", "--publish", "--refuse-data-loss")
    # published, and refused all the same
    assert outcome.exit_code == 3
    assert gitlab.published == [(text("worker-removed"), "<!-- school-postgres preview: school -->")]
    assert "note_2" in outcome.stderr
    assert outcome.stdout == ""


def test_a_failed_preview_is_published_too(school: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gitlab = GitLab()
    monkeypatch.setitem(sys.modules, "operations.gitlab", gitlab)
    assert school(LOGS / "unreachable.jsonl", "--publish").exit_code == 1
    assert "failed" in gitlab.published[0][0]


def test_a_comment_that_cannot_be_published_is_said_in_a_sentence(
    school: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "operations.gitlab", GitLab("GitLab answered 403: the token may not write notes."))
    outcome = school(LOGS / "unchanged.jsonl", "--publish")
    assert outcome.exit_code == 4
    assert outcome.stderr == "The comment was not published: GitLab answered 403: the token may not write notes.\n"
    # an older comment still stands there, so this matters more than what is wrong with the plan
    assert school(LOGS / "invalid.jsonl", "--publish").exit_code == 4


# --- the logs themselves


@pytest.mark.parametrize("name", NAMES)
def test_the_logs_are_short_and_of_no_machine(name: str) -> None:
    content = (LOGS / f"{name}.jsonl").read_text(encoding="utf-8")
    assert "\n".join(shorten(content.splitlines())) == content.rstrip("\n")
    assert not re.search(r"PRIVATE KEY|/home/|/root/|/work|\$PATH|/var/cache", content)
    assert not re.search(r'"ciphertext": "(?!\[secret\])', content)
    assert read(LOGS / f"{name}.jsonl").stack in ("school", None)
