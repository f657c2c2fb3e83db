# make demo       build, train and report on synthetic slides
# make test       fast tests (four minutes on two cores)
# make test-slow  slow tests; KILLS=5 kills 20 trainings and 20 builds instead of 8 and 8
# make test-jax   core tests with Keras on JAX
# make lint       ruff
# make types      mypy
# make benchmark  speed on SOURCE, a folder of IDC patches, and DATASET, built from it
# make clean      delete the environment and the demo
PYTHON ?= python3
SOURCE ?= datasets/original
DATASET ?= datasets/idc
VENV := .venv
BIN := $(VENV)/bin

demo: $(VENV)/ready
	$(BIN)/python build_dataset.py --sample --source datasets/sample --output datasets/demo
	$(BIN)/python train_model.py --dataset datasets/demo --output runs/demo --epochs 10 --batch-size 16 --members 3 --force

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# Left out: parts that do not depend on Keras' backend (building, evaluation, reports, pages), tests of backbones, whose
# layers are Keras' own, and parts that need TensorFlow or the backend a run was made with (page, export, benchmarks).
CORE := tests/training/test_distribution.py tests/training/test_fitting.py \
	tests/training/test_pipeline.py tests/training/test_scoring.py tests/explain/test_gradcam.py tests/training/test_batch_normalization.py tests/test_run.py
test-jax: $(VENV)/ready-dev
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(CORE)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	$(BIN)/mypy cancernet *.py

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

benchmark: $(VENV)/ready-dev
	$(BIN)/python benchmarks/training_speed.py --dataset $(DATASET)
	$(BIN)/python benchmarks/building_speed.py --source $(SOURCE)

clean:
	rm -rf $(VENV) datasets/sample datasets/demo runs/demo

.PHONY: demo test test-slow test-jax lint types benchmark clean
