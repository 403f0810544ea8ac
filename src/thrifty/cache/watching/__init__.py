"""What policies are shown: statistics gathered while attention runs, rehearsals of the prompt."""
