"""Three runs on the same images, to be compared."""

import pytest
from judged_runs import make_predictions, write_run


@pytest.fixture
def folders(tmp_path):
    warned = {"warnings": ["Beware of the dog."]}
    return [
        write_run(tmp_path / "weak", make_predictions(1, 0.5), **warned),
        write_run(tmp_path / "strong", make_predictions(2, 2.5), **warned, decision=None),
        write_run(tmp_path / "$mine", make_predictions(5, 0.5), warnings=["Only here."]),
    ]
