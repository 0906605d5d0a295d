"""Tasks: what data are, what a model answers, how answers are judged; one file for each kind."""
