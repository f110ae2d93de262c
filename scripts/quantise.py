#!/usr/bin/env python3
"""The command `mood-submission quantise`, from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mood_submission.lab.cli.quantise import main

sys.exit(main())
