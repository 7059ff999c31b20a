"""Every code block of README.md and docs/ is run, or says why it is not."""
