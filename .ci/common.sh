# shellcheck shell=bash disable=SC2034
# What .ci/preview, .ci/up and .ci/drift share. Read by them from the repository's folder, with `set -euo pipefail`; the
# variables are theirs (SC2034).

# The stack, and its file.
STACK=school
STACK_FILE=Pulumi.$STACK.yaml
# What one job leaves for another: plan.json, events.jsonl, commit, state.
PLAN=plan
PYTHON=.venv/bin/python

# fail SENTENCE: end the job.
fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

# The variables with the stack's secrets. They are protected, because the code of a merge request runs with them: GitLab gives
# them to branches only that nobody but maintainers can push to.
require_secrets() {
    if [ -z "${PULUMI_BACKEND_URL:-}" ] || [ -z "${PULUMI_CONFIG_PASSPHRASE:-}" ]; then
        fail "This pipeline was not given the stack's secrets (PULUMI_BACKEND_URL, PULUMI_CONFIG_PASSPHRASE): only changes \
that a maintainer has read and merged into the branch next are previewed; see docs/pipelines.md."
    fi
}

# Prints a digest of the stack's state, which changes with every update. Secrets in the state are encrypted.
state_digest() {
    pulumi stack export --stack "$STACK" --non-interactive | sha256sum | cut -d' ' -f1
}

# pulumi_on_stack WORD...: a Pulumi command that asks nothing and prints no colours.
pulumi_on_stack() {
    pulumi "$@" --stack "$STACK" --non-interactive --color never
}
