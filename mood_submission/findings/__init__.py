"""From scores to findings: `thresholds` says what scores mean, `objects` outlines the objects that stand out."""
