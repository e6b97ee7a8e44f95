"""Fresh attacks on the frozen codes of a finished run, and what they found. Never a training adversary, never rows fitted on."""
