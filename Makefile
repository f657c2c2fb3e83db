# make demo       build, train and report on synthetic slides
# make test       fast tests (seven minutes on two cores)
# make test-slow  slow tests (under 20 minutes on two cores)
# make test-thorough  slow tests at full depth, before a release and after a change of storage or checkpoints: every error at
#                 every place of the sweep of faults, 20 trainings killed instead of 8, all random examples instead of a fifth
# make test-jax   core tests with Keras on JAX
# make test-versions  core tests with the lowest versions of pyproject.toml, and with the newest on Python 3.12 and 3.13
# make lint       ruff
# make types      mypy
# make benchmark  speed on SOURCE, a folder of IDC patches, and DATASET, built from it
# make clean      delete the environments and the demo
PYTHON ?= python3
SOURCE ?= datasets/original
DATASET ?= datasets/idc
VENV := .venv
BIN := $(VENV)/bin

demo: export PYTHONDONTWRITEBYTECODE :=
demo: $(VENV)/ready
	$(BIN)/python build_dataset.py --sample --source datasets/sample --output datasets/demo
	$(BIN)/python train_model.py --dataset datasets/demo --output runs/demo --epochs 4 --batch-size 32 --members 2 --force

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

test-thorough: export THOROUGH := 1
test-thorough: test-slow

# Left out: parts that do not depend on Keras' backend (building, evaluation, reports, pages), tests of backbones, whose
# layers are Keras' own, and parts that need TensorFlow or the backend a run was made with (page, export, benchmarks).
CORE := tests/training/test_distribution.py tests/training/test_fitting.py \
	tests/training/test_pipeline.py tests/training/test_scoring.py tests/explain/test_gradcam.py tests/training/test_batch_normalization.py tests/test_run.py
test-jax: $(VENV)/ready-dev
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(CORE)

# Where the versions of packages matter most; tests of extras that are not installed are skipped.
VERSIONED := tests/data tests/evaluation tests/training tests/workflow/test_build.py tests/workflow/test_train.py \
	tests/test_run.py tests/inference/test_predict.py
TOOLS := $(shell grep -oE '^(pytest|pytest-xdist|hypothesis|scikit-image)==[0-9.]+' requirements-dev.txt)
test-versions: $(VENV)/ready-dev
	@status=0; for version in 3.11 3.12 3.13; do \
		found=; for each in python$$version ~/.pyenv/versions/$$version.*/bin/python; do \
			$$each -c "" 2>/dev/null && found=$$each && break; \
		done; \
		[ "$$found" ] || { echo "Python $$version is not installed and was not tested."; continue; }; \
		resolution=highest; [ $$version != 3.11 ] || resolution=lowest-direct; \
		echo "Python $$version, versions: $$resolution"; \
		$(BIN)/uv venv --quiet --clear --python $$found .versions/$$version && \
		$(BIN)/uv pip install --quiet --python .versions/$$version --resolution $$resolution --requirement pyproject.toml $(TOOLS) && \
		.versions/$$version/bin/python -m pytest -m "not slow" -n 2 --dist loadfile $(VERSIONED) || status=1; \
	done; exit $$status

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	$(BIN)/mypy cancernet *.py

# The demo compiles the modules that it imports; compiling all of them would take pip 40 seconds.
$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --requirement requirements.txt
	touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

benchmark: $(VENV)/ready-dev
	$(BIN)/python benchmarks/training_speed.py --dataset $(DATASET)
	$(BIN)/python benchmarks/building_speed.py --source $(SOURCE)

clean:
	rm -rf $(VENV) .versions datasets/sample datasets/demo runs/demo

.PHONY: demo test test-slow test-thorough test-jax test-versions lint types benchmark clean
