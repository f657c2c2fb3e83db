# make demo: synthetic slides, built, trained on and reported.  make test: the test suite.  make test-slow: its slow part
# (with KILLS=5 at the end: 20 kills of trainings and 20 of builds in the place of 8 and 8).
# make test-jax: the core of it with Keras on JAX.
# make lint: the linter.  make clean: away with the environment and the demo.
# make benchmark: how fast, against what; on SOURCE, a folder of IDC patches, and DATASET, built of it.
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

# Without: the build, judging, pictures and pages, which do not know what Keras runs on; the transfer models' tests, whose
# layers are Keras' own; app, export and speed, which are for the backend that they were made with.
CORE := tests/training/test_distribution.py tests/training/test_epochs.py tests/training/test_pipeline.py \
	tests/training/test_scoring.py tests/explain/test_gradcam.py tests/training/test_fused.py tests/test_run.py
test-jax: $(VENV)/ready-dev
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(CORE)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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

.PHONY: demo test test-slow test-jax lint benchmark clean
