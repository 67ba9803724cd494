"""What `import baselines` finds where a file of the folder above is run: python baselines/ppo.py.

Python then looks for modules in that folder; from here on in the repository's, as with python -m.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
del sys.modules[__name__]
importlib.import_module(__name__)
