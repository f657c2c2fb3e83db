"""A process that only reads needs little memory."""

import subprocess
import sys

from conftest import ROOT


def test_reading_needs_no_keras():
    code = "import sys, cancernet.inference.reading; print({'keras', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
