# Thin: each target is one command that can as well be typed.
.PHONY: .venv lab lab-down test bench lint

lab: .venv
	.venv/bin/school lab up

lab-down: .venv
	.venv/bin/school lab down

test: .venv
	.venv/bin/pytest

bench: .venv
	.venv/bin/school bench

lint: .venv
	.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy *.py components lab operations policy settings tests && git ls-files -z -- '*.sh' '.ci/*' ':!components/hosts' | xargs -0 shellcheck

# Exactly the versions in requirements.txt, checked by their hashes, and the `school` command of this working tree.
.venv: .venv/complete

.venv/complete: requirements.txt pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
