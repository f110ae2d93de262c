"""From scores to findings: `thresholds` says what scores mean, `objects` finds what stands out."""
