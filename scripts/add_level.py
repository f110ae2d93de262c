#!/usr/bin/env python3
"""The command `mood-submission add-level`, from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mood_submission.lab.cli.add_level import main

sys.exit(main())
